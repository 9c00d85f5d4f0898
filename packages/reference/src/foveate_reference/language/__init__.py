"""A reference model whose language model was pretrained on text: SmolLM2-135M-Instruct, thirty layers.

`base` finds the language model, which other people trained and which is not in this package; `model` joins a vision
tower to it; `sentences` has the questions in English; `packing` and `train` teach it.
"""

from .base import BaseMissingError, base_folder
from .model import NAME, load
from .sentences import in_english

__all__ = ["NAME", "BaseMissingError", "base_folder", "in_english", "load"]
