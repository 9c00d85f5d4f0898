"""``import foveate`` is light: it loads neither the lab, nor torch, and using the library loads no part of the lab."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

LAB = ("foveate.lab", "foveate_reference", "typer", "rich", "matplotlib", "scipy")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def seconds(program: str) -> float:
    """Processor time of a program, imports and all, over that of an interpreter."""
    timed = f"import time; start = time.process_time(); {program}; print(time.process_time() - start)"
    return float(run(timed))


def test_the_library_needs_no_lab_and_the_import_loads_nothing_that_is_large() -> None:
    """And no function has the name of a module, whatever is imported first."""
    program = f"""
import sys
sys.modules |= dict.fromkeys({LAB})
import foveate
assert not {{name.split(".")[0] for name in sys.modules}} & {{"torch", "transformers", "numpy"}}
assert foveate.methods.visionzip.VisionZip is foveate.VisionZip
import foveate.methods.vtw, types
assert isinstance(foveate.methods, types.ModuleType)
assert callable(foveate.compress)
foveate.list_methods(), foveate.list_families()
"""
    run(program)


def test_the_import_takes_no_longer_than_that_of_transformers() -> None:
    """In turn, as a machine may be slower for a while."""
    both = [(seconds("import foveate"), seconds("import transformers")) for _ in range(3)]
    ours, theirs = map(median, zip(*both))
    assert ours < 1.2 * theirs
