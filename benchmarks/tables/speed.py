"""Tables of what was timed: `overhead.py`, `prefill.py`, `systems.py`, `serving.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import table

#: Where a step of decoding should be, in times of a stock step: the upper end of its interval, without and with a decode site.
STEP, CHOOSING = 1.05, 1.10
REALISED = 0.95  # of the ideal speed-up, at least
OVERHEAD = {
    "keep = 1": "nothing removed, three sites",
    "keep = 0.5 before layer 0": "half of the tokens before layer 0",
    "keep = 0.5 at 1/3 and 2/3 of the depth": "half at 1/3 and again at 2/3 of the depth",
}


def overhead(found: dict[str, Any]) -> str:
    """What the hooks cost, and how much of the ideal arrives."""
    rows = []
    for name, case in found["cases"].items():
        low, high = case["speed_up_quartiles"]
        speed = f"{case['speed_up']:.2f} ({low:.2f} to {high:.2f})"
        rows.append((OVERHEAD[name], speed, f"{case['ideal_speed_up']:.2f}", f"{case['realised_over_ideal']:.2f}"))
    return table(("`Stride`", "speed-up of a forward", "by its FLOPs", "realised / ideal"), rows)


def prefill(found: dict[str, Any]) -> str:
    """A table for each number of visual tokens: how much of the ideal is realised, and what our own functions take."""
    heads = ["", "prefill", "ideal", "realised / ideal", "by FLOPs", "finds", "chooses", "gathers", "arguments"]
    heads += ["scatters", "hooks"]
    parts = []
    for run in found["runs"]:
        rows = []
        for name, row in run["cases"].items():
            speeds = (f"{row['speed_up']:.2f}x", f"{row['ideal_speed_up']:.2f}x", f"{row['realised_over_ideal']:.2f}")
            own = (f"{share:.1%}" if run["rounds"] > 1 else "" for share in row["parts"].values())  # of one run: chance
            rows.append((name, *speeds, f"{row['by_flops']:.2f}x", *own))
        shape = f"language model of width {run['width']} and {run['layers']} layers"
        images = "1 image" if run["images"] == 1 else f"{run['images']} images"
        parts += [f"{run['visual']:,} visual tokens ({images}), {shape}:", table(heads, rows)]
    return "\n\n".join(parts)


def prefill_below(*results: dict[str, Any]) -> str:
    """The cases of which less of the ideal arrives than should, the worst first, in a few words; or ``none``."""
    rows = [
        (row["realised_over_ideal"], f"{name}, {run['visual']:,} tokens, width {run['width']}")
        for found in results
        for run in found["runs"]
        for name, row in run["cases"].items()
    ]
    return "; ".join(f"{share:.2f} ({name})" for share, name in sorted(rows) if round(share, 2) < REALISED) or "none"


def mergers(found: dict[str, Any]) -> str:
    """What mergers gain in a deep tower, by where they act."""
    rows = [
        (name, f"{row['flops']:.0%}", f"{1 / row['flops']:.2f}x", f"{row['speed_up']:.2f}x")
        for name, row in found["tower"].items()
    ]
    return table(("hands over", "FLOPs of the tower left", "by its FLOPs", "tower"), rows)


def decoding(found: dict[str, Any]) -> str:
    """Steps of an answer over stock ones, by method and by how the model is called; then with more and more visual tokens."""
    cases = found["cases"]
    rows = []
    for name in cases["one row"]:
        cells = (cases[case].get(name) for case in cases)
        rows.append((f"`{name}`", *("" if cell is None else _interval(cell) for cell in cells)))
    longer = [(f"{int(visual):,}", _interval(row)) for visual, row in found["longer"].items()]
    steps = table((f"a step over stock's, {found['shape']['visual']} visual tokens", *cases), rows)
    return "\n\n".join(
        [steps, table(("visual tokens, of which `Stride` keeps a quarter", "a step over stock's"), longer)]
    )


def decoding_above(found: dict[str, Any]) -> str:
    """The cases whose interval ends above the target, in a few words; or ``none``."""
    above = [
        f"`{name}` {row['interval'][1]:.2f} ({case})"
        for case, rows in found["cases"].items()
        for name, row in rows.items()
        if round(row["interval"][1], 2) > (CHOOSING if name == "DyCoke" else STEP)
    ]
    return ", ".join(above) or "none"


def decoding_share(found: dict[str, Any]) -> str:
    """The smallest and the largest share of methods without a decode site, and that of DyCoke."""
    shares = dict(found["shares"])
    chooses = shares.pop("DyCoke")
    return f"{min(shares.values()):.1%} to {max(shares.values()):.1%}, with DyCoke {chooses:.1%}"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def systems(found: dict[str, Any]) -> str:
    """A table for each number of images."""
    heads = ("", "FLOPs left", "KV left", "tower", "prefill", "of the ideal", "first token", "decoding", "peak memory")
    parts = []
    for run in found["runs"]:
        rows = []
        for name, row in run["cases"].items():
            ratio = row["ratios"]
            times = [f"{ratio[key]:.2f}x" for key in ("tower", "prefill", "first", "decode")]
            times.insert(2, f"{ratio['prefill_of_ideal']:.2f}")
            rows.append((f"`{name}`", f"{row['flops']:.0%}", f"{row['kv']:.0%}", *times, f"{row['peak']:.0%}"))
        images = "1 image" if run["images"] == 1 else f"{run['images']} images"
        head = f"{run['visual']} visual tokens ({images}), {found['machine']['threads']} threads:"
        parts += [head, table(heads, rows)]
    return "\n\n".join(parts)


def systems_gain(found: dict[str, Any]) -> str:
    """The speed-ups that the three systems are built for, in a sentence."""
    ratios = {name: row["ratios"] for name, row in found["runs"][0]["cases"].items()}
    luvc, adsc, ipcv = (ratios[f"{name}()"] for name in ("LUVC", "ADSC", "IPCV"))
    both = ratios["IPCV() + ADSC()"]["first"]
    return (
        f"the prefill is {luvc['prefill']:.1f} times as fast with LUVC and {adsc['prefill']:.1f} with ADSC, the tower "
        f"{ipcv['tower']:.1f} with IPCV; the first token, which waits for the tower, too, comes {luvc['first']:.1f} times as "
        f"soon with LUVC, {adsc['first']:.1f} with ADSC, and {both:.1f} with IPCV + ADSC, on {where(found)}"
    )


def where(found: dict[str, Any]) -> str:
    """The model, its shape and the machine of `systems.py`."""
    shape, machine = found["shape"], found["machine"]
    return (
        f"a Qwen2.5-VL with random weights ({shape['layers']} layers of width {shape['width']} behind a tower of "
        f"{shape['blocks']} blocks), {found['runs'][0]['visual']:,} visual tokens, {machine['threads']} threads of an "
        f"{machine['cpu']}"
    )


def serving(found: dict[str, Any]) -> str:
    """A row for each method: over stock, requests a second (more is better), time to the first token (less is better)."""
    stock = found["methods"]["stock"]
    heads = [head for n in stock for head in (f"requests/s at {n}", f"TTFT at {n}")]
    most = next(reversed(stock))
    if told := "kv" in stock[most]:  # the share of the cache in use at the peak; less is better
        heads.append(f"KV at {most}")
    rows = []
    for name, loads in found["methods"].items():
        cells = ["stock" if name == "stock" else f"`{name}`"]
        for n, load in loads.items():
            if name == "stock":
                cells += [f"{load['requests_per_second']:.2f}", f"{load['ttft']:.2f} s"]
            else:
                cells += [f"{load[key] / stock[n][key]:.2f}x" for key in ("requests_per_second", "ttft")]
        if told:
            used = loads[most]["kv"]
            cells.append(f"{used:.1%}" if name == "stock" else f"{used / stock[most]['kv']:.2f}x")
        rows.append(cells)
    return table(["method", *heads], rows)


def serving_gain(found: dict[str, Any]) -> str:
    """The smallest and the largest gain in requests per second."""
    methods = dict(found["methods"])
    stock = methods.pop("stock")
    key = "requests_per_second"
    gains = [load[key] / stock[n][key] for loads in methods.values() for n, load in loads.items()]
    return f"{min(gains):.1f} to {max(gains):.1f}"
