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


def tasks(found: dict[str, Any]) -> str:
    """Every task of one model, seeing and blind."""
    rows = [
        (
            task,
            *(f"{100 * found[key][task]:.0f}" for key in ("accuracy", "accuracy_blind")),
            str(found["questions"][task]),
        )
        for task in TASKS
    ]
    means = (_mean(found[key], TASKS) for key in ("accuracy", "accuracy_blind"))
    rows.append(("*mean of all*", *means, str(sum(found["questions"].values()))))
    return table(("task", "accuracy", "blind", "questions"), rows)


def depth(found: dict[str, Any]) -> str:
    """Layer by layer, one model: accuracy when visual tokens leave before it, and what goes on in it."""
    profile, inside = found["accuracy_when_visual_tokens_leave_at_layer"], found["inside"]["layers"]
    rows = []
    for number, (layer, left) in enumerate(zip(inside, profile)):
        attention = ("first_token", "visual", "asked", "visual_sinks")
        rows.append(
            (
                str(number),
                _mean(left, TASKS),
                *(f"{100 * layer[f'attention_{name}']:.1f}" for name in attention),
                f"{layer['visual_sinks']:.1f}",
                f"{layer['largest_over_median']:.0f}",
            )
        )
    rows.append(("never", _mean(profile[-1], TASKS), *[""] * 6))
    head = ("layer", "leave before it", "first token", "visual", "asked", "sinks", "sink tokens", "largest / median")
    return table(head, rows)


def summary(found: dict[str, Any]) -> str:
    """A sentence on where a model's text reads the image, its largest number, and how much looks at the first token."""
    layers, reads = found["inside"]["layers"], found["reads"]
    largest = max(range(len(layers)), key=lambda number: layers[number]["largest_over_median"])
    first = max(range(len(layers)), key=lambda number: layers[number]["attention_first_token"])
    where = "the image is worth less than five points, so no layer can be said to read it"
    if reads is not None:
        where = (
            f"the text reads the image from layer {reads['first']} to layer {reads['last']}, of 0 to {len(layers) - 1}"
        )
    return (
        f"the largest number is {layers[largest]['largest_over_median']:,.0f} times the median, in layer {largest}; the first "
        f"token gets up to {layers[first]['attention_first_token']:.0%} of the attention, in layer {first}; {where}."
    )


def _mean(accuracies: dict[str, float], tasks: Any) -> str:
    return f"{100 * fmean(accuracies[task] for task in tasks):.0f}"
