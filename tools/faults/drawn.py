"""Faults drawn at random from the syntax: a comparison flipped, a number off by one, a line dropped, operands swapped."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import TypeVar

from equivalent import EQUIVALENT

T = TypeVar("T")
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
    """One fault.

    Attributes:
        what: the kind of fault.
        text: the file, under ``src/foveate``, and the lines of it as they are, and with the fault.
        lines: their numbers.
        source: the file with the fault.
    """

    what: str
    text: tuple[str, str, str]
    lines: range
    source: bytes

    @property
    def file(self) -> str:
        return self.text[0]

    def __str__(self) -> str:
        return f"{self.what} in line {self.lines[0]}, {self.text[2]}"


def draw(package: Path, folders: Sequence[str], count: int, seed: int) -> list[Drawn]:
    """``count`` different faults in ``folders``: as many of each kind, in as many files as there are.

    They are the same for a seed, and what is drawn in a file hardly depends on the other files: a commit changes few of them.
    """

    def chance(*what: str) -> str:
        return hashlib.sha1(" ".join([str(seed), *what]).encode()).hexdigest()

    paths = sorted((path for folder in folders for path in (package / folder).rglob("*.py")), key=str)
    kinds: dict[str, dict[str, list[Drawn]]] = defaultdict(lambda: defaultdict(list))
    for fault in _that_matter([fault for path in paths for fault in _faults(package, path)]):
        kinds[fault.what][fault.file].append(fault)
    drawn = []
    for kind, files in sorted(kinds.items()):
        order = sorted(files, key=lambda file: chance(kind, file))
        drawn.append(in_turns(sorted(files[file], key=lambda fault: chance(kind, *fault.text)) for file in order))
    return sorted(in_turns(drawn)[:count], key=lambda fault: (fault.file, fault.lines[0]))


def in_turns(groups: Iterable[Sequence[T]]) -> list[T]:
    """The first of each group, then the second of each, until all are empty."""
    return [each for turn in zip_longest(*groups) for each in turn if each is not None]


def _that_matter(faults: list[Drawn]) -> list[Drawn]:
    """Those that change what the program does; fails loudly if one that is said not to is not there any more."""
    known = {fault.text for fault in faults}
    gone = [text for text in EQUIVALENT if text not in known]
    if gone:
        sys.exit(f"no fault is like {gone[0]} any more: take it out of tools/faults/equivalent.py")
    return [fault for fault in faults if fault.text not in EQUIVALENT]


def _faults(package: Path, path: Path) -> Iterator[Drawn]:
    source = path.read_bytes()
    rows = source.splitlines(keepends=True)
    starts = list(accumulate(map(len, rows), initial=0))

    def fault(node: ast.expr | ast.stmt, what: str, new: str) -> Drawn:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first, last = node.lineno - 1, node.end_lineno
        start, end = starts[first] + node.col_offset, starts[last - 1] + node.end_col_offset
        before, after = source[starts[first] : start], source[end : starts[last]]
        old, faulty = (before + text + after for text in (source[start:end], new.encode()))
        return Drawn(
            what,
            (str(path.relative_to(package)), old.decode().strip(), faulty.decode().strip()),
            range(first + 1, last + 1),
            source[: starts[first]] + faulty + source[starts[last] :],
        )

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
