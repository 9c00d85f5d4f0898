"""Faults drawn at random from the syntax: a comparison flipped, a number off by one, a line dropped, operands swapped."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)


@dataclass(frozen=True)
class Drawn:
    """One fault: the source of ``file`` with ``new`` in place of the text from ``start`` to ``end`` (bytes)."""

    file: Path
    line: int
    what: str
    start: int
    end: int
    new: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


def draw(files: list[Path], count: int, seed: int) -> list[Drawn]:
    """``count`` different faults in ``files``, the same for a seed: first a kind, then a file with one, then a place."""
    known = [fault for path in sorted(files) for fault in _faults(path)]
    chance = random.Random(seed)
    found: set[Drawn] = set()
    kinds = sorted({fault.what for fault in known})
    while len(found) < min(count, len(known)):
        kind = chance.choice(kinds)
        path = chance.choice(sorted({fault.file for fault in known if fault.what == kind}))
        found.add(chance.choice([fault for fault in known if (fault.what, fault.file) == (kind, path)]))
    return sorted(found, key=lambda fault: (fault.file, fault.start))


def _faults(path: Path) -> Iterator[Drawn]:
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def fault(node: ast.expr | ast.stmt, what: str, new: str) -> Drawn:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        return Drawn(path, node.lineno, what, start, end, new)

    for node in _inside_functions(ast.parse(source)):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
            flipped = ast.Compare(node.left, [FLIPPED[type(node.ops[0])](), *node.ops[1:]], node.comparators)
            yield fault(node, "comparison", f"({ast.unparse(flipped)})")
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield fault(node, "off by one", str(node.value + 1))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ORDERED):
            swapped = ast.BinOp(node.right, node.op, node.left)
            yield fault(node, "operands", f"({ast.unparse(swapped)})")
        elif isinstance(node, (ast.AugAssign, ast.Expr)) and not _says_nothing(node):
            yield fault(node, "dropped line", "pass")


def _says_nothing(node: ast.AST) -> bool:
    """A docstring, or a hint for what reads the code."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _inside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs: no annotations, no messages of errors, no checks that only say what the reader may take for granted."""
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for statement in function.body:
                yield from _running(statement)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.Raise, ast.Assert, ast.FunctionDef, ast.JoinedStr)):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _running(child)
