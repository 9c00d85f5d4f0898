"""Faults that change nothing: the program means the same with them, so no test can notice. None of them is drawn."""

from __future__ import annotations

# The file, under src/foveate, the lines as they are, and with the fault: why it is the same.
EQUIVALENT: dict[tuple[str, str, str], str] = {}
