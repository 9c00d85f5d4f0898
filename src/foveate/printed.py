"""A report for a person: as text, and as a table for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from foveate.amounts import scaled

if TYPE_CHECKING:
    from foveate.cost import Report, Visit

#: What a unit counts (`foveate.units`), in words.
_COUNTED = {
    "tokens": "visual tokens in a decoder layer, on average",
    "tower": "patches in a vision block, on average",
    "decode": "visual keys and values that a step reads",
    "cache": "visual keys and values in the cache after the prompt",
    "compute": "visual tokens' work in FFNs",
}


def text(report: Report) -> str:
    """Lines of a word and what it says."""
    lines = [f"visual tokens   {_tokens(report)}"]
    lines += [f"  {site:<15} {said}" for site, said in _sites(report)]
    shares = _left(report)
    lines += ["left of stock   of what `keep` may count, text left out"] if shares else []
    lines += [f"  {unit:<14}{said}" for unit, said in shares]
    lines.append(f"FLOPs           {_flops(report)} for the whole call, text included")
    lines += [f"  {stage:<14}{said}" for stage, said in _stages(report)]
    lines.append(f"KV cache        {_kv(report)}")
    if report.thread is not None:
        lines.append(f"thread          {report.thread}, not this one")
    lines.append(f"time            {_time(report)}")
    return "\n".join(lines)


def html(report: Report) -> str:
    """The same as a table."""
    rows = [("visual tokens", _tokens(report), True)]
    rows += [(site, said, False) for site, said in _sites(report)]
    shares = _left(report)
    rows += [("left of stock", "of what `keep` may count, text left out", True)] if shares else []
    rows += [(unit, said, False) for unit, said in shares]
    rows.append(("FLOPs", f"{_flops(report)} for the whole call, text included", True))
    rows += [(stage, said, False) for stage, said in _stages(report)]
    rows.append(("KV cache", _kv(report), True))
    if report.thread is not None:
        rows.append(("thread", f"{report.thread}, not this one", True))
    rows.append(("time", _time(report), True))
    cells = [
        f'<tr><th style="text-align: left; padding-left: {0 if whole else 2}em; font-weight: {"bold" if whole else "normal"}">'
        f'{escape(name)}</th><td style="text-align: left">{escape(said)}</td></tr>'
        for name, said, whole in rows
    ]
    return f"<table>{''.join(cells)}</table>"


def _tokens(report: Report) -> str:
    return f"{report.visual_tokens}, {report.mean_tokens:.1f} per row and decoder layer on average"


def _sites(report: Report) -> list[tuple[str, str]]:
    found = []
    for site, visits in _runs(report.visits):
        before, after = (sum(sum(counts) for counts in each) for each in zip(*((v.before, v.after) for v in visits)))
        unit, then = visits[0].units
        counts = f"{before}{'' if unit == then else f' {unit}'} -> {after} {then}"
        found.append((site, f"{visits[0].method}: {visits[0].says or counts}"))
    return found


def _left(report: Report) -> list[tuple[str, str]]:
    """What is left of each unit; work in FFNs is said where it is not that of the tokens which are there."""
    shares = {unit: share for unit, share in report.shares.items() if share < 1}
    if "compute" in shares and shares["compute"] == shares.get("tokens"):
        del shares["compute"]
    return [(unit, f"{share:.1%} of {_COUNTED[unit]}") for unit, share in shares.items()]


def _flops(report: Report) -> str:
    total, full = sum(report.flops.values()), sum(report.full_flops.values())
    return _with_share(total, full, "FLOPs")


def _stages(report: Report) -> list[tuple[str, str]]:
    return [
        (stage, scaled(flops, report.full_flops[stage], "FLOPs"))
        for stage, flops in report.flops.items()
        if flops or report.full_flops[stage]
    ]


def _kv(report: Report) -> str:
    return _with_share(report.kv_bytes, report.full_kv_bytes, "B")


def _with_share(now: float, full: float, unit: str) -> str:
    return scaled(now, full, unit) + (f" ({now / full:.1%})" if full else "")


def _time(report: Report) -> str:
    times = ", ".join(f"{stage} {seconds * 1e3:.1f} ms" for stage, seconds in report.seconds.items())
    return f"{times} ({report.decode_steps} decode step{'' if report.decode_steps == 1 else 's'})"


def _runs(visits: Sequence[Visit]) -> list[tuple[str, list[Visit]]]:
    """Group visits by the name of their site; those that one method makes at once to the caches of several layers are one."""
    found: list[tuple[str, str, list[Visit]]] = []
    for visit in visits:
        name, at, step = visit.site.partition(" at step ")
        place, _, layer = name.partition(" ")
        last, when, of = found[-1] if found else ("", "", [])
        if place == "cache" and last.startswith("cache") and when == at + step and of[0].method == visit.method:
            found[-1] = (f"{last}, {layer}", when, [*of, visit])
        else:
            found.append((name, at + step, [visit]))
    return [((name if len(of) < 4 else f"{len(of)} caches") + when, of) for name, when, of in found]
