"""A leaderboard that nobody measured."""

from __future__ import annotations

from foveate.lab.bench.summary import Spread
from foveate.lab.evaluation.results import Spent
from foveate.lab.evaluation.statistics import Share
from foveate.lab.leaderboard.board import Compared, Kind, Leaderboard, Missed, Row, Speed

NASTY = "<script>window.hacked = 1</script>"
VERSIONS = {"torch": "2", "transformers": "5", "foveate": "0"}
METHOD, CONTROL = Kind("method", ("decoder",), True, "free"), Kind("control", ("decoder",), False, "free")
BOUND = Kind("bound", (), False, "free")


def compared(value: float) -> Compared:
    return Compared(Share(value, value - 0.01, value + 0.01, 100), Share(value - 0.9, value - 0.91, value - 0.89, 100))


def row(label: str, by: str | None, budget: float | None, value: float, kind: Kind, times: float | None = None) -> Row:
    groups = {"counting": compared(value), "video": compared(1 - value)}
    command = f"foveate eval reference --method '{label}' --budget {budget}"
    speed = None
    if times is not None:
        speed = Speed(Spread(times, times, times), None, Spent(0.5, 0.6, 0.5), "a CPU, 1 threads", "foveate bench ...")
    method = {"method": label, "positions": "keep"}
    return Row(label, by, budget, method, kind, (0,), compared(value), groups, Spent(0.5, 0.65, 0.5), command, speed)


def made(model: str = "llava") -> Leaderboard:
    """Two methods, a control and the stock model, at two costs; one method cannot spend one of them."""
    common = {"model": model, "weights": "w", "split": "test", "tasks": ["count", "move"], "per_task": 50, "seed": 0}
    groups = {"counting": ("count",), "video": ("move",)}
    board = Leaderboard(
        "foveate leaderboard", {**common, "versions": VERSIONS}, groups, "a shape", notes=("left out: x",)
    )
    rows = [
        row("dense", None, None, 0.9, BOUND),
        row("fastv", "flops", 0.65, 0.7, METHOD, 0.8),
        row(NASTY, "flops", 0.65, 0.88, Kind("method", ("tower",), False, "free"), 1.25),
        row("stride", "flops", 0.65, 0.8, CONTROL, 1.4),
        row("fastv", "kv", 0.5, 0.75, METHOD),
        row("stride", "kv", 0.5, 0.85, CONTROL),
    ]
    board.add(rows, [Missed(NASTY, "kv", 0.5, 1.0)])
    return board
