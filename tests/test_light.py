"""``import foveate`` is light: it loads neither the lab, nor torch, and using the library loads no part of the lab."""

from __future__ import annotations

import json
import subprocess
import sys

LAB = ("foveate.lab", "foveate_reference", "typer", "rich", "matplotlib", "scipy")


def loaded(program: str) -> set[str]:
    """The modules that are there when a program has run in a process of its own."""
    return set(json.loads(run(f"{program}; import json, sys; print(json.dumps(list(sys.modules)))")))


def seconds(program: str) -> float:
    """Processor time of a program, imports and all, over that of an interpreter."""
    timed = f"import time; start = time.process_time(); {program}; print(time.process_time() - start)"
    return float(run(timed))


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_library_loads_no_lab() -> None:
    alone = loaded("import foveate")
    assert not {name for name in alone if name.split(".")[0] in ("torch", "transformers", "numpy")}
    used = loaded("import foveate; foveate.compress; foveate.list_methods(); foveate.list_families()")
    others = loaded("import torch, transformers, transformers.modeling_utils")
    assert not {name for name in used - others if name.startswith(LAB)}


def test_the_import_takes_no_longer_than_that_of_transformers() -> None:
    assert min(seconds("import foveate") for _ in range(3)) < 1.2 * seconds("import transformers")
