"""The committed results of `foveate eval`; nothing else here knows where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from repository import DOCS, ROOT

FILES = "benchmarks/results/*.json"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        command: what repeats it.
        model: which reference model.
        by: what a budget counts: ``tokens`` or ``flops``.
        questions: how many.
        rows: as `foveate.lab.evaluation.report.to_dict` writes them.
        report: its page of the site; "" if it has none.
    """

    command: str
    model: str
    by: str
    questions: int
    rows: tuple[dict[str, Any], ...]
    report: str

    def of(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """Rows with a budget in which a method acts, alone or in a sum, by label."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["budget"] is not None and name in _names(row["method"]):
                found.setdefault(row["label"], []).append(row)
        return found

    @property
    def dense(self) -> dict[str, Any]:
        """The stock model's row."""
        return self.rows[0]


@cache
def runs() -> tuple[Run, ...]:
    """All runs with the original position ids, those with most questions first."""
    found = []
    for file in sorted(ROOT.glob(FILES)):
        data = json.loads(file.read_text(encoding="utf-8"))
        data = data.get("found", data)  # the result store keeps it in an envelope
        if (
            isinstance(data, dict)
            and {"rows", "by", "model", "questions"} <= set(data)
            and not _renumbered(data["rows"])
        ):
            found.append(_run(data))
    return tuple(sorted(found, key=lambda run: (-run.questions, run.model != "qwen2_5_vl", run.command)))


def of_method(name: str) -> list[Run]:
    """For each model the largest run that has the method alone: with budgets of tokens, or else with budgets of FLOPs."""
    for by in ("tokens", "flops"):
        found: dict[str, Run] = {}
        for run in runs():
            if run.by == by and any("+" not in label for label in run.of(name)):
                found.setdefault(run.model, run)
        if found:
            return list(found.values())
    return []


def _run(data: dict[str, Any]) -> Run:
    reports = (
        page for page in DOCS.glob("results/**/results.md") if data["command"] in page.read_text(encoding="utf-8")
    )
    page = next(reports, None)
    report = page.relative_to(DOCS).as_posix() if page else ""
    return Run(data["command"], data["model"], data["by"], data["questions"], tuple(data["rows"]), report)


def _renumbered(rows: Iterable[dict[str, Any]]) -> bool:
    return any(row["method"] and row["method"].get("positions", "keep") != "keep" for row in rows)


def _names(method: dict[str, Any] | None) -> set[str]:
    if method is None:
        return set()
    return {method["method"]}.union(*map(_names, method.get("methods", ())))
