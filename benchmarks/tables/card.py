"""Tables of the reference models' card, from `foveate_reference.evaluate`."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from foveate_reference.vocabulary import CORE, STANDS_FOR, TASKS

from tables.cells import table

MODELS = ("`qwen2_5_vl`", "`llava`")


def metrics(found: dict[str, Any]) -> str:
    """The file beside the weights."""
    return json.dumps(found, indent=2)


def accuracy(*models: dict[str, Any]) -> str:
    """Every task, seeing and blind."""
    columns = [model[key] for model in models for key in ("accuracy", "accuracy_blind")]
    rows = []
    for task in TASKS:
        rows.append((task, STANDS_FOR[task], *(f"{100 * column[task]:.0f}" for column in columns)))
        if task == CORE[-1]:
            rows.append(("*mean of these, the core*", "", *(_mean(column, CORE) for column in columns)))
    rows.append(("*mean of all*", "", *(_mean(column, TASKS) for column in columns)))
    return table(("task", "stands for", *(head for name in MODELS for head in (name, "blind"))), rows, names=2)


def layers(*models: dict[str, Any]) -> str:
    """Mean accuracy when every visual token leaves before a layer."""
    profiles = [model["accuracy_when_visual_tokens_leave_at_layer"] for model in models]
    rows = [(name, *(_mean(found, TASKS) for found in profile)) for name, profile in zip(MODELS, profiles)]
    return table(("layer", *map(str, range(len(profiles[0]) - 1)), "never"), rows)


def _mean(accuracies: dict[str, float], tasks: Any) -> str:
    return f"{100 * fmean(accuracies[task] for task in tasks):.0f}"
