"""Public benchmarks, asked and scored by lmms-eval.

`manifest` is the entry point that makes ``lmms-eval --model foveate`` work: `model` has the classes that lmms-eval calls.
``foveate eval tasks`` runs lmms-eval for the stock model, for each method and for `Downsample` at the same cost: `plan` says
what, `run` does it and keeps what is done, `scores` and `report` compare. Nothing else in foveate imports lmms-eval.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval reads from the entry points of the group ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    place = "foveate.lab.evaluation.lmms.model"
    return ModelManifest("foveate", simple_class_path=f"{place}.Simple", chat_class_path=f"{place}.Conversational")
