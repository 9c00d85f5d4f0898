"""Qianfan-OCR: InternVL whose blocks may be skipped at random while it is trained."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import internvl

FAMILY = replace(internvl.FAMILY, model_type="qianfan_ocr", tower=replace(internvl.FAMILY.tower, blocks="layers"))
