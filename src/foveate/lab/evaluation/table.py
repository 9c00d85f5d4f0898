"""What accuracy is shown of: the tables of the reference benchmark, and what those of public benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from foveate.lab.checks import COUNTED, DENSE
from foveate.lab.evaluation.curve import can_draw, draw
from foveate.lab.evaluation.report import CURVE, Content, Report, Table, percent, short
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.results import Judged, Result, Row
from foveate.lab.evaluation.statistics import Share

FEW = 5  # questions of a task
ALONE = "One question of a task says little of that task: intervals take all such tasks for one and are wide; raise --per-task."
COLUMNS = ("method", "budget", "accuracy", "95 % CI", "retention", "p", "Group-A", "tokens", "FLOPs", "KV")
AGAINST = ("against stock", "95 % CI")


J = TypeVar("J", bound=Judged)


class Evaluation(Result[Reference, Row]):
    """What came out on the reference benchmark; the first row is the stock model's."""

    words: ClassVar[str] = "foveate eval reference"

    def facts(self) -> dict[str, Any]:
        return {"seeds": list(self.request.seeds), "questions": self.rows[0].accuracy.n}

    def files(self) -> Mapping[str, Content]:
        """The curve."""
        dense = self.rows[0]
        title = f"{self.model}: {dense.accuracy.n} questions"
        return (
            {CURVE: partial(draw, self.rows, title=title, guess=None if self._fewest == 1 else dense.chance[1])}
            if can_draw()
            else {}
        )

    def report(self) -> Report:
        """Two tables: methods with costs, and methods by task."""
        from foveate_reference import STANDS_FOR

        rows, tasks, several = ordered(self.rows), list(self.rows[0].tasks), len(self.request.seeds) > 1
        first = Table(
            (*COLUMNS, *(AGAINST if self._paired else ()), *(["seeds"] if several else [])),
            [
                (
                    *cells(row),
                    *(_against(row) if self._paired else ()),
                    *([_range(row.seeds.values())] if several else []),
                )
                for row in rows
            ],
        )
        of_tasks = Table(
            ("method", "budget", *tasks),
            [(row.label, short(row.budget), *(_accuracy(row.tasks.get(task)) for task in tasks)) for row in rows],
            title="By task",
            after=f"Accuracy in %. What each task stands for: {'; '.join(f'{t}: {STANDS_FOR[t]}' for t in tasks)}.",
            shown=False,
        )
        title = f"{self.model}: accuracy and cost"
        return Report(title, self.command, self._summary(), (first, of_tasks), tuple(self._remarks()), drawn=True)

    @property
    def _paired(self) -> bool:
        """Whether each line knows its difference to the stock model; lines of older results do not."""
        return all(row.difference is not None for row in self.rows)

    def _summary(self) -> str:
        dense = self.rows[0]
        often = "" if self._fewest == 1 else f"; always the most frequent answer: {dense.chance[1]:.1%}"
        return (
            f"{dense.accuracy.n} questions, {len(dense.tasks)} task{'' if len(dense.tasks) == 1 else 's'}, "
            f"seeds {', '.join(map(str, self.request.seeds))} of "
            f"the {self.request.split} split. Guessing at random: {dense.chance[0]:.1%}{often}."
        )

    @property
    def _fewest(self) -> int:
        """Questions of the task that has the fewest; where that is one, its most frequent answer is the right one."""
        return min((share.n for share in self.rows[0].tasks.values()), default=FEW)

    def _remarks(self) -> list[str]:
        lines = [
            "No budget: every method as its options say (tokens, FLOPs and KV: over those of the stock model)."
            if self.request.as_is
            else f"Budget: {COUNTED[self.request.by]}, over those of the stock model (tokens, FLOPs and KV: what was really "
            "spent).",
            "Accuracy: mean over tasks; 95 % intervals by bootstrap, stratified by task. Retention: over the stock model's, "
            "the same questions drawn for both.",
            "p: exact McNemar test against the stock model on the same questions, not corrected for the number of lines.",
        ]
        if self._paired:
            lines.append(
                "Against stock: accuracy minus the stock model's, in points, the same questions drawn for both."
            )
        if any(row.method is not None and row.method["method"] == "downsample" for row in self.rows):
            lines.append("Group-A: questions that the stock model gets right and Downsample at this budget gets wrong.")
        else:
            lines.append("Group-A needs Downsample at the same budget: add --method downsample.")
        for row in self.rows:
            if row.questions != "all":
                guess = f"; guessing the most frequent answer gets {row.chance[1]:.1%} of those"
                lines.append(
                    f"{row.label}: the {row.accuracy.n} questions {row.questions} only{guess * (self._fewest > 1)}."
                )
        if len(self.request.seeds) > 1:
            lines.append("Seeds are pooled; the last column has the lowest and the highest accuracy of a single one.")
        few = self._fewest
        if few == 1:
            lines.append(ALONE)
        elif few < FEW:
            lines.append(
                f"{few} questions of a task say little: below {FEW}, intervals are too narrow and the most frequent answer "
                "guesses too well; raise --per-task."
            )
        return [*lines, *self.left_out()]


def ordered(rows: Sequence[J]) -> list[J]:
    """What has no budget as it came, then from the largest budget to the smallest, the best first."""
    return sorted(
        rows, key=lambda row: (row.budget is not None, -(row.budget or 0), -row.accuracy.value if row.budget else 0)
    )


def cells(row: Judged) -> tuple[str, ...]:
    """Of the first table."""
    kept = "-" if row.retention is None else percent(row.retention.value)
    costs = (percent(value) for value in (row.spent.tokens, row.spent.flops, row.spent.kv))
    accuracy = (percent(row.accuracy.value), interval(row.accuracy))
    return row.label, short(row.budget), *accuracy, kept, p_value(row.paired.p), group(row.group_a), *costs


def _against(row: Row) -> tuple[str, ...]:
    """Points more or less than the stock model, and from where to where."""
    share = row.difference
    if share is None or row.label == DENSE:
        return "-", "-"
    return f"{100 * share.value:+.1f}", interval(share, "{:+.1f} to {:+.1f}")


def interval(share: Share, form: str = "{:.1f}-{:.1f}") -> str:
    """In %."""
    return "-" if share.low is None or share.high is None else form.format(100 * share.low, 100 * share.high)


def group(share: Share | None) -> str:
    """The accuracy of a part of the questions, and how many they are."""
    return "-" if share is None else f"{share.value:.1%} of {share.n}"


def p_value(value: float) -> str:
    """Three digits."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _range(values: Any) -> str:
    return f"{100 * min(values):.1f}-{100 * max(values):.1f}"


def _accuracy(share: Share | None) -> str:
    return "-" if share is None else f"{100 * share.value:.0f}"
