"""All experiments, for docs/results.md."""

from __future__ import annotations

import os
from collections.abc import Mapping

from stored.experiment import Experiment
from stored.result import Result

PAGE = "docs"  # the folder of the page, which links are relative to


def markdown(experiments: Mapping[str, Experiment], results: Mapping[str, Result]) -> str:
    """A section for each: what it says, its command, its result, where that is shown."""
    shown = [one for experiment in experiments.values() for one in experiment.shown]
    return "\n\n".join(
        _section(experiment, results.get(name), list(dict.fromkeys(one.file for one in shown if name in one.of)))
        for name, experiment in experiments.items()
    )


def _section(experiment: Experiment, result: Result | None, files: list[str]) -> str:
    lines = [f"### {experiment.name}", "", _sentence(experiment.says)]
    if experiment.needs:
        lines[-1] += f" Needs {', '.join(f'{module} (`{how}`)' for module, how in experiment.needs.items())}."
    lines += ["", f"    {experiment.run}", ""]
    if result is None:
        takes = "" if experiment.awaits is None else f": it takes {experiment.awaits}"
        return "\n".join([*lines, f"No result yet{takes}."])
    about = [f"[Result](../benchmarks/results/{experiment.name}.json) of {result.date}"]
    about += [f"commit {result.commit[:7]}{' with changes' if result.dirty else ''}"] if result.commit else []
    about += [f"{name} {version}" for name, version in result.versions.items() if version and name != "foveate"]
    about += [_machine(result), "" if result.seconds is None else _duration(result.seconds)]
    lines.append(", ".join(part for part in about if part) + ".")
    if experiment.stale is not None:
        lines.append(f"**Stale**: {_sentence(experiment.stale.why)}")
    if files:
        lines.append(f"Shown in {', '.join(f'[{file}]({os.path.relpath(file, PAGE)})' for file in files)}.")
    return "\n".join(lines)


def _machine(result: Result) -> str:
    machine = result.machine
    words = [str(machine[key]) for key in ("cpu", "architecture") if machine.get(key)]
    if machine.get("cores"):
        words.append(f"with {machine['cores']} core{'s' if machine['cores'] > 1 else ''}")
    if machine.get("accelerator") not in (None, "none"):
        words.append(f"and {machine['accelerator']}")
    return " ".join(dict.fromkeys(words))


def _duration(seconds: float) -> str:
    return f"in {seconds / 60:.0f} minutes" if seconds >= 90 else f"in {seconds:.0f} seconds"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith(".") else f"{text}."
