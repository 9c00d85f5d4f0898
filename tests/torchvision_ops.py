"""torchvision where its compiled part does not fit torch, as PyPI's does not fit a CPU build of torch.

Its Python part is all that video processors use, but asks for two operators of the compiled one when it is imported. Here
they get a schema, if they have none; nothing calls them. Import this before transformers.
"""

from __future__ import annotations

import importlib.util

import torch

if importlib.util.find_spec("torchvision") is not None:
    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        _library = torch.library.Library("torchvision", "DEF")  # lives as long as this module
        for _name in ("nms", "qnms"):
            _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
