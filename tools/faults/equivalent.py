"""Faults that change nothing: the program means the same with them, so no test can notice. None of them is drawn."""

from __future__ import annotations

# The file, under src/foveate, its lines as they are, and with the fault: why these mean the same.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "methods/random.py",
        "generator = torch.Generator().manual_seed((self.seed * 65_537 + site.layer) % 2**63)",
        "generator = torch.Generator().manual_seed((self.seed * 65_537 + site.layer) % 2**64)",
    ): "torch takes seeds up to there; with a seed of 2**47 or more other numbers are drawn, as random as these",
    (
        "runtime/calls.py",
        "self._changed.notify_all()",
        "pass",
    ): "who waits looks ten times a second, told or not",
    (
        "runtime/shared.py",
        "value = value[0] if isinstance(value, tuple) else value",
        "value = value[1] if isinstance(value, tuple) else value",
    ): "it is asked for its shape, and sines have that of cosines",
    (
        "runtime/tower.py",
        "self.merges_at = merger.block(config) if merger is not None and merger.rows(config) > 1 else None",
        "self.merges_at = merger.block(config) if merger is not None and merger.rows(config) > 2 else None",
    ): "a merger makes a row of a square of rows: of one, or of four at least",
}
