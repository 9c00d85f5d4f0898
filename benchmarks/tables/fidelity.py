"""Reports of `foveate eval fidelity`, and what they have to do with accuracy."""

from __future__ import annotations

from typing import Any

from scipy import stats

from foveate.lab import typed
from foveate.lab.evaluation import report
from foveate.lab.evaluation.fidelity.table import Faithful, Line, nats
from foveate.lab.evaluation.plan import Missed
from foveate.lab.evaluation.request import Fidelity
from foveate.lab.evaluation.results import Spent
from foveate.lab.evaluation.statistics import Share

from tables.cells import MODELS, table
from tables.evaluations import NAMES

Rows = dict[tuple[str, float], dict[str, Any]]
#: Of a model: fidelity, and the accuracies of the benchmark and of the systems.
EACH = 3


def page(found: dict[str, Any]) -> str:
    """The report as ``foveate eval fidelity`` writes it."""
    faithful = Faithful(
        request=typed.request(Fidelity, found["command"]),
        model=found["model"],
        identity={},
        prompts=found["count"],
        length=found["answer_tokens"],
        rows=tuple(map(line, found["rows"])),
        missed=tuple(Missed(**missed) for missed in found["out_of_reach"]),
        notes=tuple(found["notes"]),
    )
    return report.markdown(faithful.report())


def line(row: dict[str, Any]) -> Line:
    """What `dataclasses.asdict` made plain, as it was."""
    shares = {key: Share(**row[key]) for key in ("kl", "first_kl", "top1", "first_top1", "same")}
    return Line(row["label"], row["budget"], row["method"], **shares, spent=Spent(**row["spent"]))


def ranks(*results: dict[str, Any]) -> str:
    """Spearman's correlation of KL and accuracy, for every model and budget; `EACH` results of each model."""
    return table(
        ("", "Spearman, KL and accuracy", "methods"),
        [(f"{model}, budget {budget}", f"{rho:.2f}", str(n)) for model, budget, rho, n in _correlations(*results)],
    )


def span(*results: dict[str, Any]) -> str:
    """The least and the largest of these correlations."""
    rhos = [rho for _, _, rho, _ in _correlations(*results)]
    return f"{min(rhos):.2f} to {max(rhos):.2f}"


def beside_accuracy(*results: dict[str, Any]) -> str:
    """KL, same answers and accuracy at half of the tokens; the results of one model."""
    heard, accuracy = _both(*results)
    known = [key for key in _shared(heard, accuracy) if key[1] == 0.5]
    return table(
        ("", "KL", "same answer", "accuracy"),
        [
            (
                NAMES.get(key[0], key[0]),
                nats(heard[key]["kl"]["value"]),
                f"{heard[key]['same']['value']:.0%}",
                f"{accuracy[key]['accuracy']['value']:.1%}",
            )
            for key in known
        ],
    )


def _correlations(*results: dict[str, Any]) -> list[tuple[str, float, float, int]]:
    """Model, budget, correlation, methods."""
    found = []
    for begin in range(0, len(results), EACH):
        own = results[begin : begin + EACH]
        heard, accuracy = _both(*own)
        for budget in sorted({budget for _, budget in heard}, reverse=True):
            known = [key for key in _shared(heard, accuracy) if key[1] == budget]
            kl = [heard[key]["kl"]["value"] for key in known]
            wrong = [-accuracy[key]["accuracy"]["value"] for key in known]
            found.append((MODELS[own[1]["model"]], budget, float(stats.spearmanr(kl, wrong).statistic), len(known)))
    return found


def _both(heard: dict[str, Any], benchmark: dict[str, Any], systems: dict[str, Any]) -> tuple[Rows, Rows]:
    """Rows of fidelity and of accuracy, by label and budget; the benchmark has more questions than the systems."""
    return _rows(heard), _rows(systems) | _rows(benchmark)


def _rows(found: dict[str, Any]) -> Rows:
    return {(row["label"], row["budget"]): row for row in found["rows"] if row["budget"] is not None}


def _shared(heard: Rows, accuracy: Rows) -> list[tuple[str, float]]:
    """What both have, nearest to the stock model first."""
    return sorted(heard.keys() & accuracy.keys(), key=lambda key: (heard[key]["kl"]["value"], key))
