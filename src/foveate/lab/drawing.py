"""How pictures of results look: the site's colours, and letters that can be read where a page shows a picture 700 pixels wide.

matplotlib is an extra: what is here is given to it, and nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WIDTH, DPI = 7.0, 200  # inches, and 1,400 pixels: sharp on a dense screen
LETTERS = 9.0  # points: 12.5 of 700 pixels

INK, SOFT, LINE = "#18181b", "#6b7280", "#d4d4d8"
#: As far apart as ten lines can be on white; the first three are those of the site's pages.
COLOURS = ("#0f766e", "#b45309", "#5b57b8", "#a8336b", "#5f7d0e", "#2374b8", "#b3261e", "#7a4ca0", "#9a6a00", "#3f7f4f")
#: Controls and bounds are grey or black, so that methods stand out.
QUIET = {
    "oracle": (INK, "-"),
    "antioracle": (INK, ":"),
    "random": (SOFT, ":"),
    "stride": (SOFT, "--"),
    "downsample": (SOFT, "-."),
}
#: matplotlib's settings, for `matplotlib.rc_context`.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": LETTERS,
    "axes.titlesize": LETTERS,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": LETTERS,
    "xtick.labelsize": LETTERS - 1,
    "ytick.labelsize": LETTERS - 1,
    "legend.fontsize": LETTERS - 1,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "text.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "ytick.left": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "none",
}


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and mark of each label; no two look alike up to thirty methods."""
    found: dict[str, dict[str, Any]] = {}
    loud = 0
    for label in dict.fromkeys(labels):
        name = label.partition("(")[0]
        if name in QUIET and "+" not in label:
            color, line = QUIET[name]
            found[label] = {"color": color, "linestyle": line, "marker": ".", "linewidth": 1.2}
        else:
            turn = loud // len(COLOURS)
            found[label] = {
                "color": COLOURS[loud % len(COLOURS)],
                "linestyle": ("-", "--", "-.")[turn % 3],
                "marker": "os^"[turn % 3],
            }
            loud += 1
    return found
