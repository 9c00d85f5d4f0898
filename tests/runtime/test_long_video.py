"""A long film: what it takes is what is left of it. Counted in elements of the tensors that are alive, not in seconds."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import foveate

FRAMES = 64  # of the language model: twice as many of the film
SIZE = (8, 12)  # patches: 24 tokens each


class Peak(TorchDispatchMode):
    """The most elements that new tensors held at one time, and in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes() // tensor.element_size()
        self.known.add(key)
        self.now += size
        self.most, self.largest = max(self.most, self.now), max(self.largest, size)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak(model: Any, batch: dict[str, torch.Tensor]) -> Peak:
    with torch.no_grad(), Peak() as counted:
        out = model(**batch, logits_to_keep=1)
        del out
    return counted


METHODS = [
    foveate.Stride(keep=1.0),
    foveate.Stride(layers=(0,), ratio=0.25),
    foveate.FastV(),
    foveate.LUVC(),
    foveate.IPCV(),
    foveate.ADSC(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name()}")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_what_a_film_takes_grows_with_its_length(family: str, method: foveate.Method) -> None:
    """Twice the frames take twice the elements: nothing compares all frames with all others."""
    model = tiny.model(family)
    short, long = (tiny.inputs(family, [[3, (frames, *SIZE), 5]]) for frames in (FRAMES // 2, FRAMES))
    stock = peak(model, long)
    with foveate.compress(model, method) as handle:
        half, whole = peak(model, short), peak(model, long)
        report = handle.report()
    assert report.visual_tokens == FRAMES * SIZE[0] * SIZE[1] // 4
    assert whole.most < 2.1 * half.most
    assert whole.largest <= stock.largest
    assert whole.most < (1.05 if method != foveate.IPCV() else 2) * stock.most  # parked tokens are two: then and now
    if method == foveate.Stride(layers=(0,), ratio=0.25):
        assert report.kv_ratio < 0.4
        assert max(report.layer_tokens) < 0.4 * max(report.full_layer_tokens)
