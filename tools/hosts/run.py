"""Run transformers' own tests with a method on the models, and compare with what is expected of that.

``python tools/hosts/run.py`` fetches the source distribution of the installed transformers into build/hosts and runs its
common model tests on tiny models of ours (`common.py`). A distribution carries no tests of single models and none of
`generate`, so the two modules that the common tests import from there, ``exporters.test_export`` and
``generation.test_utils``, are stand-ins with empty mixins. ``--generate CHECKOUT`` takes the latter from a source checkout, of
this version or one near it, and runs what it asks of `generate`. ``--transformers CHECKOUT`` runs, in a source checkout of the
same version, its real tests of our families.

Each runs three times (`attach.MODES`): stock, with a method that keeps everything, and with ``Stride(keep=0.5)``. With
everything kept, no test may end in another way than in stock transformers, unless it compiles. What ends in another way is in
``expected/<version>.json`` (``-generate``, ``-checkout``), by pattern, with the reason; there, ``without`` has the types that
the tests of `generate` were not run on, and why. ``--write`` takes what fails in stock
transformers for expected, and counts there what passed with everything kept, for each family.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from foveate.models import list_families

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "hosts"
MODES = ("stock", "everything", "stride")  # of `attach`, the first to compare with
GENERATE = "generation/test_utils.py"
STAND_INS = {
    "exporters/test_export.py": ("ExportTesterMixin", "ExportGenerateTesterMixin"),
    GENERATE: ("GenerationTesterMixin",),
}


def fetch(version: str, generate: Path | None = None) -> Path:
    """The unpacked source distribution, with stand-ins for what its tests import and it does not carry; ``generate`` is a
    checkout that has the tests of that name."""
    folder = BUILD / f"transformers-{version}"
    if not folder.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, "--dest", str(BUILD), f"transformers=={version}"], check=True)
        with tarfile.open(BUILD / f"transformers-{version}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    for path, names in STAND_INS.items():
        file = folder / "tests" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text('"""A stand-in."""\n' + "".join(f"\n\nclass {name}:\n    pass\n" for name in names))
    if generate:
        shutil.copy(generate / "tests" / GENERATE, folder / "tests" / GENERATE)
    return folder


def files_of(checkout: Path) -> list[Path]:
    """The tests of our families in a source checkout; those of `generate` are in them, by a mixin."""
    kinds = {each for family in list_families().values() for each in family.types} & {*CONFIG_MAPPING}
    folders = sorted({CONFIG_MAPPING[kind].__module__.split(".")[-2] for kind in kinds})  # as in transformers/models
    return [
        file for name in folders for file in sorted((checkout / "tests" / "models" / name).glob("test_modeling_*.py"))
    ]


def run(mode: str, files: Sequence[Path], root: Path, more: Sequence[str] = ()) -> dict[str, str]:
    """The outcome of every test, by its name."""
    base = ROOT if files[0].is_relative_to(ROOT) else root
    with TemporaryDirectory() as folder:
        out, ini = Path(folder) / "outcomes.json", Path(folder) / "pytest.ini"
        ini.write_text("[pytest]\n")
        path = os.pathsep.join(map(str, (HERE, ROOT / "tests", root, *sys.path[1:])))
        settings = {
            "FOVEATE_HOSTS_MODE": mode,
            "FOVEATE_HOSTS_OUT": str(out),
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-c", str(ini), "--rootdir", str(base), "-p", "attach"]
        command += ["-p", "no:cacheprovider", "--tb=line", "-W", "ignore", *more, *map(str, files)]
        subprocess.run(command, env={**os.environ, **settings}, cwd=folder, check=False)
        if not out.exists():
            raise SystemExit(f"the tests did not run in mode {mode}: see above")
        outcomes: dict[str, str] = json.loads(out.read_text())
        return outcomes


def compare(found: Mapping[str, Mapping[str, str]], expected: Mapping[str, Any]) -> list[str]:
    """What is not as expected, a line each. ``expected``: ``stock``, names; the other modes, pattern -> reason."""
    stock, lines = found["stock"], []
    failing = {name for name, outcome in stock.items() if outcome.startswith("failed")}
    listed = {*expected["stock"]} & {*stock}
    lines += [f"stock: {name} {stock[name]}" for name in sorted(failing - listed)]
    lines += [f"stock: {name} is listed as failing, and does not" for name in sorted(listed - failing)]
    for mode in ("everything", "stride"):
        reasons = expected.get(mode, {})
        for name in sorted({*found[mode]} | {*stock} if mode in found else ()):
            now, before = found[mode].get(name, "missing"), stock.get(name, "missing")
            if now.split(":")[0] == before.split(":")[0] or any(fnmatch.fnmatch(name, pattern) for pattern in reasons):
                continue
            lines.append(f"{mode}: {name} {now}, and in stock transformers {before}")
    return lines


def update(expected: dict[str, Any], found: Mapping[str, Mapping[str, str]]) -> None:
    """Take what was found for expected: what fails in stock transformers, and how many tests passed with everything kept, by
    family. What did not run stays as it is."""
    stock, kept = found["stock"], found.get("everything", {})
    failing = {name for name, outcome in stock.items() if outcome.startswith("failed")}
    expected["stock"] = sorted(({*expected["stock"]} - {*stock}) | failing)
    passed = Counter(name.split("::")[1] for name, outcome in kept.items() if outcome == stock.get(name) == "passed")
    expected["passed"] = dict(sorted({**expected.get("passed", {}), **passed}.items()))
    if "without" in expected:
        expected["without"] = {name: why for name, why in expected["without"].items() if name not in passed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", type=Path, help="a source checkout, whose own tests are run")
    parser.add_argument(
        "--generate", type=Path, help="a source checkout, whose tests of `generate` our tiny models get, too"
    )
    parser.add_argument("--modes", default=",".join(MODES), help="those to compare with stock: everything, stride")
    parser.add_argument("--write", action="store_true", help="take what fails in stock transformers for expected")
    parser.add_argument("-k", default="", help="as pytest's")
    options = parser.parse_args()
    version = transformers.__version__
    root = options.transformers.resolve() if options.transformers else fetch(version, options.generate)
    BUILD.mkdir(parents=True, exist_ok=True)
    files = files_of(root) if options.transformers else [HERE / "common.py"]
    if not files:
        raise SystemExit(
            f"{root} has no tests of our families under tests/models: give a source checkout of transformers {version}"
        )
    kind = "-checkout" if options.transformers else "-generate" if options.generate else ""
    listed = HERE / "expected" / f"{version}{kind}.json"
    expected = json.loads(listed.read_text()) if listed.exists() else {"stock": [], "stride": {}}
    modes = [mode for mode in MODES if mode == "stock" or mode in options.modes.split(",")]
    more = [*(["-k", options.k] if options.k else []), *(["-m", "generate"] if options.generate else [])]
    found = {mode: run(mode, files, root, more) for mode in modes}
    (BUILD / "outcomes.json").write_text(json.dumps(found, indent=1))
    if options.write:
        update(expected, found)
        listed.write_text(json.dumps(expected, indent=1) + "\n")
    lines = compare(found, expected)
    print("\n".join(lines) or f"{len(found['stock'])} tests of transformers {version} end as expected")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
