"""torchvision beside a torch that its compiled part does not fit, as PyPI's does not fit a CPU build of torch.

Its Python part is all that video processors use, but asks for two operators of the compiled one when it is imported. Here
they get a schema; nothing calls them. ``python tools/torchvision_ops.py`` puts this file into the environment that runs it,
where torchvision cannot be imported otherwise; see Makefile.
"""

from __future__ import annotations

import sys
from typing import Any

OPERATORS = ("nms", "qnms")
library: Any = None  # its operators live as long as it does


class Finder:
    """Finds nothing, but knows when torchvision is about to be imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        global library
        if name == "torchvision" and library is None:
            from torch import library as operators

            library = operators.Library("torchvision", "DEF")
            for operator in OPERATORS:
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def install() -> None:
    """Put this file where every start of Python finds it."""
    import shutil
    import sysconfig
    from pathlib import Path

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # operator torchvision::nms does not exist
        folder = Path(sysconfig.get_path("purelib"))
        shutil.copy(__file__, folder / "torchvision_ops.py")
        (folder / "torchvision_ops.pth").write_text("import torchvision_ops\n")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, Finder())
