"""The best methods of an earlier run, for a second round with more questions and budgets."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.errors import first_line
from foveate.lab.checks import BLIND, ORACLE
from foveate.lab.evaluation.request import Reference
from foveate.lab.terminal import CommandError

CONTROLS = ("random", "stride", "downsample")


def with_best(request: Reference) -> Reference:
    """The request with the methods that it takes from an earlier run, and the controls that any method must beat."""
    if request.best_of is None:
        return request
    rows, controls = _rows(request.best_of), (BLIND, ORACLE, *CONTROLS)
    accuracy: dict[str, float] = defaultdict(float)
    methods: dict[str, Any] = {}
    for row in rows:
        name = (row["method"] or {}).get("method")
        if row["budget"] is not None and name not in controls:
            # A budget that a method could not spend counts as nothing.
            accuracy[row["label"]] += row["accuracy"]["value"]
            methods[row["label"]] = row["method"]
    best = sorted(accuracy, key=lambda label: -accuracy[label])[: request.best]
    described = (*request.described, *(json.dumps(methods[label]) for label in best))
    return replace(request, methods=tuple(dict.fromkeys((*request.methods, *controls))), described=described)


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
