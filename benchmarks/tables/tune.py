"""Reports of `foveate tune`, the methods that it compared, and what they are worth on questions with answers."""

from __future__ import annotations

import json
from typing import Any

from foveate import method_from_dict
from foveate.lab import typed
from foveate.lab.evaluation import report
from foveate.lab.evaluation.fidelity.table import interval, nats
from foveate.lab.evaluation.statistics import Share
from foveate.lab.evaluation.tune.request import Tune
from foveate.lab.evaluation.tune.table import Tuned
from foveate.lab.options import method_from_words

from tables.cells import MODELS, table
from tables.fidelity import line

SHORT = {"fastv": "FastV", "spu": "SPU"}
REFERENCES = {"reference": "qwen2_5_vl", "reference-llava": "llava"}


def page(found: dict[str, Any]) -> str:
    """The report as ``foveate tune`` writes it."""
    return report.markdown(tuned(found).report())


def given(found: dict[str, Any]) -> str:
    """The method that was given, at the cost of what was found, for ``--method-json``."""
    return json.dumps(found["held_out"][-2]["method"])


def searched(found: dict[str, Any]) -> str:
    """The method that was found."""
    return json.dumps(found["found"])


def tuned(found: dict[str, Any]) -> Tuned:
    """What `foveate.lab.evaluation.tune.table.Tuned.to_dict` made plain, as it was."""
    request = typed.request(Tune, found["command"])
    return Tuned(
        request=request,
        given=method_from_words(request.method, None, request.options, request.described),
        model=found["model"],
        identity={},
        search=found["search"],
        found=method_from_dict(found["found"]),
        trials=found["trials"],
        exhausted=found["exhausted"],
        calibration=tuple(map(line, found["calibration"])),
        held_out=tuple(map(line, found["held_out"])),
        gain=None if found["gain"] is None else Share(**found["gain"]),
    )


def gained(*results: dict[str, Any]) -> str:
    """KL and accuracy of what was given and of what was found; of each model the searches, then `foveate eval`."""
    rows, searches = [], list[dict[str, Any]]()
    for result in results:
        if "calibration" in result:
            searches.append(result)
            continue
        model = MODELS[result["model"]]
        for search in searches:
            rows += [_row(model, search, place, result) for place in (-2, -1)]
        dense = next(row for row in result["rows"] if row["label"] == "dense")
        rows.append((model, "*dense*", "100.0%", "", "", "", _accuracy(dense)))
        searches = []
    heads = ("", "", "tokens", "KL, searched", "KL, held out", "less KL, held out", "accuracy, test split")
    return table(heads, rows, names=2)


def lifted(search: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """The accuracies of what was given and of what was found, in a sentence."""
    before, after = (_at(evaluation, search["held_out"][place]["method"])["accuracy"]["value"] for place in (-2, -1))
    return f"from {before:.0%} to {after:.0%}"


def withdrawn(*results: dict[str, Any]) -> str:
    """Where VTW may withdraw tokens, of each model."""
    rows = []
    for result in results:
        for name, place in (("default", 0), ("found", -1)):
            on_seen, on_unseen = result["calibration"][place], result["held_out"][place]
            depth = f"{on_unseen['spent']['tokens']:.0%} of the depth"
            kls = (nats(each["kl"]["value"]) for each in (on_seen, on_unseen))
            model = MODELS[REFERENCES[result["model"]]]
            rows.append((model, f"{name}: {depth}", *kls, f"{on_unseen['spent']['flops']:.1%}"))
    return table(("", "layer", "KL, searched", "KL, held out", "FLOPs"), rows, names=2)


def _row(model: str, search: dict[str, Any], place: int, evaluation: dict[str, Any]) -> tuple[str, ...]:
    on_seen, on_unseen = search["calibration"][place], search["held_out"][place]
    name = SHORT[search["found"]["method"]]
    gain = f"{nats(search['gain']['value'])} ({interval(Share(**search['gain']))})" if place == -1 else ""
    kls = (nats(each["kl"]["value"]) for each in (on_seen, on_unseen))
    row = _at(evaluation, on_unseen["method"])
    if place == -1 and on_unseen["method"] == search["held_out"][-2]["method"]:
        gain = "nothing better was found"
    tokens = f"{row['spent']['tokens']:.1%}"
    return model, f"{name}, {'tuned' if place == -1 else 'as given'}", tokens, *kls, gain, _accuracy(row)


def _at(evaluation: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [row for row in evaluation["rows"] if row["method"] == method]
    if not rows:  # a search that was run again, and its evaluation not yet
        raise LookupError(f"the evaluation has no {method}")
    return rows[0]


def _accuracy(row: dict[str, Any]) -> str:
    return f"{row['accuracy']['value']:.1%} ({row['accuracy']['low']:.1%} to {row['accuracy']['high']:.1%})"
