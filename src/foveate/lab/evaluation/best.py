"""The best methods of an earlier run, for a second round with more questions and budgets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.errors import first_line
from foveate.lab.checks import BLIND, ORACLE
from foveate.lab.evaluation.request import Reference
from foveate.lab.terminal import CommandError

CONTROLS = ("random", "stride", "downsample")
#: What is asked beside the best methods.
BESIDE = (BLIND, ORACLE, *CONTROLS)


def with_best(request: Reference) -> Reference:
    """The request with the methods that it takes from an earlier run, and the controls that any method must beat."""
    if request.best_of is None:
        return request
    described = (*request.described, *map(json.dumps, best_of(_rows(request.best_of), request.best)))
    return replace(request, methods=tuple(dict.fromkeys((*request.methods, *BESIDE))), described=described)


def best_of(rows: Iterable[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """The methods that are most accurate over all budgets, as plain data; one that could not be spent counts as nothing."""
    accuracy: dict[str, float] = defaultdict(float)
    methods: dict[str, Any] = {}
    for row in rows:
        name = (row["method"] or {}).get("method")
        if row["budget"] is not None and name not in BESIDE:
            accuracy[row["label"]] += row["accuracy"]["value"]
            methods[row["label"]] = row["method"]
    return [methods[label] for label in sorted(accuracy, key=lambda label: -accuracy[label])[:count]]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a result, as a run leaves it or as a store of results keeps it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = data.get("found", data)["rows"]
        if not all({"label", "budget", "method", "accuracy"} <= set(row) for row in rows):
            raise KeyError("a line without label, budget, method or accuracy")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"--best-of {str(path)!r} is not the results.json of `foveate eval reference`: {first_line(error)}"
        ) from None
    return rows
