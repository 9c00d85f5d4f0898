"""A reference model whose language model was pretrained on text: SmolLM2-135M-Instruct, thirty layers.

`base` finds the language model, which other people trained and which is not in this package; `model` joins a vision
tower to it; `sentences` has the questions in English; `tower`, `packing` and `train` teach it.
"""

from .base import BaseMissingError, base_folder
from .model import ADAPTER, NAME, adapter_file, is_run, load
from .sentences import PHRASES, answer_in_english, in_english, question_in_english

__all__ = [
    "ADAPTER",
    "NAME",
    "PHRASES",
    "BaseMissingError",
    "adapter_file",
    "answer_in_english",
    "base_folder",
    "in_english",
    "is_run",
    "load",
    "question_in_english",
]
