"""The house rules: what no file may do, and how long a file may get.

Who may import whom is in `[tool.importlinter]` of pyproject.toml, and `make lint` checks it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import runpy
import sys
from pathlib import Path

import pytest

import foveate
import foveate_reference
from foveate.methods import list_methods
from foveate.runtime import engines

SRC = Path(foveate.__file__).parent
REFERENCE = Path(foveate_reference.__file__).parent
METHOD_FILES = sorted(path for path in (SRC / "methods").glob("*.py") if path.name != "__init__.py")


def files(*parts: str) -> list[Path]:
    """Every Python file under a folder of the package."""
    return sorted(SRC.joinpath(*parts).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SRC.parent if path.is_relative_to(SRC) else REFERENCE.parent))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Everything that a file says, taken apart."""
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Absolute dotted names of everything a file imports, type-checking blocks and function bodies included."""
    root = SRC if path.is_relative_to(SRC) else REFERENCE
    package = path.relative_to(root.parent).parent.parts
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def of_ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "foveate"}


def under(names: set[str], *packages: str) -> set[str]:
    """Those names that lie in one of the packages."""
    return {name for name in names for package in packages if f"{name}.".startswith(f"foveate.{package}.")}


def test_ops_import_torch_only() -> None:
    for path in files("ops"):
        ours = of_ours(path)
        others = {name.split(".")[0] for name in imports(path) - ours} - {*sys.stdlib_module_names, "torch"}
        assert not (ours - under(ours, "ops")) | others, name_of(path)


def test_runtime_names_no_method_and_no_family() -> None:
    """Not even in a comment."""
    classes = {cls.__name__ for cls in list_methods().values()}
    names = set(list_methods()) - {"stride", "random"} | set(foveate.list_families())  # those are words of their own
    for path in files("runtime"):
        words = set(re.findall(r"\w+", path.read_text()))
        assert not words & classes, name_of(path)
        assert not {word.lower() for word in words} & names, name_of(path)


def test_serving_takes_public_names_only() -> None:
    """Those that the runtime publishes for engines, each of which says what it is; `lint-imports` forbids other modules."""
    taken = {name for path in files("serving") for name in of_ours(path)}
    assert not {name for name in taken if name.rpartition(".")[2].startswith("_")}
    published = {f"foveate.runtime.engines.{name}" for name in engines.__all__}
    assert under(taken, "runtime") == published
    assert all(inspect.getdoc(getattr(engines, name)) for name in engines.__all__)


def test_lmms_eval_is_imported_only_where_it_is_asked_for() -> None:
    allowed = {SRC / "lab" / "evaluation" / "lmms" / name for name in ("__init__.py", "model.py", "harness.py")}
    importing = {path for path in files() if any(name.split(".")[0] == "lmms_eval" for name in imports(path))}
    assert not importing - allowed


def calls(path: Path) -> set[str]:
    """Dotted names of everything a file calls."""
    return {ast.unparse(node.func) for node in nodes(path) if isinstance(node, ast.Call)}


def test_nothing_executes_data() -> None:
    for path in [*files(), *sorted(REFERENCE.rglob("*.py"))]:
        roots = {name.split(".")[0] for name in imports(path)}
        forbidden = calls(path) & {"eval", "exec", "compile", "__import__", "torch.load"}
        forbidden |= roots & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        assert not forbidden, name_of(path)


def test_a_file_of_the_page_is_short() -> None:
    lengths = {name_of(path): length(path) for path in [*files("lab", "report"), *files("lab", "story")]}
    assert not {name: n for name, n in lengths.items() if n >= 280}


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", METHOD_FILES, ids=name_of)
def test_a_method_file_is_short_and_names_its_paper(path: Path) -> None:
    assert length(path) <= 120
    here = [cls for cls in list_methods().values() if Path(inspect.getfile(cls)) == path]
    assert here, f"{path.name} defines no method that foveate.list_methods() finds"
    for cls in here:
        assert (cls.paper is None) == cls.control, f"{cls.__name__} is either a control or has a `paper`"
        assert cls.paper is None or re.fullmatch(r"\d{4}\.\d{4,5}", cls.paper.arxiv)
        assert cls.paper is None or re.fullmatch(r"|[\w.-]+/[\w.-]+", cls.paper.code)


def test_packages_are_not_hidden() -> None:
    """No function has the name of a module; test_light.py imports them in another order."""
    assert not {path.stem for path in SRC.iterdir()} & {*foveate.__all__}


def test_a_runtime_file_fits_in_the_head() -> None:
    assert not [name_of(path) for path in files("runtime") if length(path) >= 450]


def test_seeded_faults_are_of_this_code() -> None:
    """What `tools/faults` replaces is there exactly once, and so are the tests that should notice."""
    root = Path(__file__).parent.parent
    gone = []
    for fault in runpy.run_path(str(root / "tools" / "faults" / "chosen.py"))["CHOSEN"]:
        if (SRC / fault.file).read_text().count(fault.old) != 1:
            gone.append(f"{fault.name}: {fault.file} does not have its text once")
        gone += [
            f"{fault.name}: there is no {test}"
            for test in fault.tests
            if test.endswith(".py") and not (root / test).is_file()
        ]
    assert not gone, "\n".join(gone)
