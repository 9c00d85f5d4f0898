"""GLM-4.6V: the tower of GLM-4.1V, and the language model of that or of GLM-4.5V. GLM-GA is the same."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import glm4v
from foveate.models.family import Decoder

ALSO = ("glmga",)
FAMILY = replace(glm4v.FAMILY, model_type="glm46v", decoder=Decoder(complete=("router_logits",)))
