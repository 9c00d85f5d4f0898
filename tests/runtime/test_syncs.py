"""Nothing that a layer adds asks the device for a value: the questions of a prefill do not grow with the sites."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS
from torch.utils._python_dispatch import TorchDispatchMode

import foveate
import foveate.methods
import foveate.ops
from foveate import (
    ADSC,
    IPCV,
    OIM,
    SPU,
    DyMU,
    EvoPrune,
    FastV,
    GSearch,
    IVCPrune,
    Method,
    Random,
    RedundancyLens,
    Stride,
    V2Drop,
)

WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "is_nonzero")


@contextmanager
def lists() -> Iterator[list[str]]:
    """What is asked in a way that a CPU, where all is at hand, does not dispatch: values as a list, or on the host."""
    asked: list[str] = []

    def watched(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, *args, **kwargs: asked.append(name) or plain(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
        yield asked


class Questions(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name.startswith(WAITS):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def questions(model: Any, batch: Any, method: Method) -> list[str]:
    with torch.no_grad(), foveate.compress(model, method):
        model(**batch)
        with Questions() as mode:
            cache = model(**batch).past_key_values
            prefill = list(mode.asked)
            mode.asked.clear()
            step = dict(batch, input_ids=batch["input_ids"][:, -1:])
            step = {k: v for k, v in step.items() if k == "input_ids"}
            step["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
            if "image_grid_thw" in batch:
                step["position_ids"] = torch.full((3, len(batch["input_ids"]), 1), 50)
            model(**step, past_key_values=cache)
            return [*prefill, "decode", *mode.asked]


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (Stride(layers=(0,)), Stride(layers=(0, 1, 2, 3, 4, 5))),
        (Random(layer=1), Random(layer=1) + Random(layer=2) + Random(layer=4)),
        (FastV(layer=2), FastV(layer=2) + FastV(layer=3) + FastV(layer=4)),
        (V2Drop(layers=(1,), ratios=(0.5,)), V2Drop(layers=(1, 2, 3, 4), ratios=(0.5, 0.5, 0.5, 0.5))),
        (SPU(schedule=((1, 0.5),)), SPU(schedule=((1, 0.7), (2, 0.5), (4, 0.2)))),
        (
            OIM(passes=((1, "width", 0.6),)),
            OIM(passes=((1, "width", 0.6), (1, "height", 0.7), (1, "width", 0.8), (1, "height", 0.6))),
        ),
        (ADSC(layers=(1,)), ADSC(layers=(1, 2, 4))),
        (ADSC(layers=(1,), pattern="2d"), ADSC(layers=(1, 2, 4), pattern="2d")),
        (Stride(layers=(0,), positions="renumber"), Stride(layers=(0, 2, 4), positions="renumber")),
        (GSearch(schedule=((4, 0.5),)), GSearch(schedule=((4, 0.7), (5, 0.5)))),
        # (Who sees whom is a small table on the host, which is looked at there.)
        (RedundancyLens(layers=(2,), hollow_layers=()), RedundancyLens(layers=(2, 4), hollow_layers=())),
    ],
    ids=lambda method: type(method.parts()[0]).__name__,
)
def test_sites_ask_nothing(family: str, few: Method, many: Method) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with lists() as values:
        asked, listed = questions(model, batch, few), list(values)
        values.clear()
        assert questions(model, batch, many) == asked
        assert isinstance(few, OIM) or values == listed, "OIM lists the sizes of grids, on the host"
    assert "_local_scalar_dense" in asked  # the mode sees what it looks for: entry asks, once per prefill


@pytest.mark.families(*tiny.WHOLE)
@pytest.mark.parametrize("method", [EvoPrune(keep=0.5, schedule="mean"), DyMU(keep=0.5, positions="keep")], ids=repr)
def test_merging_in_all_blocks_asks_what_every_second_asks(family: str, method: Method) -> None:
    """But for where windows or frames begin, once for each way to segment."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with lists() as values:
        few, listed = questions(model, batch, EvoPrune(keep=0.5)), list(values)
        values.clear()
        many = questions(model, batch, method)
    assert len(many) <= len(few) + dict.fromkeys(tiny.packed.WINDOWS, 2).get(family, 0)
    assert len(values) <= len(listed)


def test_attending_asks_once_for_each_way_to_segment(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames, windows: where the kept patches of each begin is asked once a forward, however many blocks need it. (Stock
    code asks for the segments' lengths in every block.)"""
    if family in tiny.cpm.FAMILIES:
        pytest.skip("parked where the tower merges: see test_merger.py")
    lists: list[int] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(1) or tolist(x))  # type: ignore[func-returns-value]
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])

    def asked(method: Method) -> tuple[int, int]:
        lists.clear()
        return len(questions(model, batch, method)), len(lists) // 2  # of two forwards

    ways = dict.fromkeys(tiny.packed.WINDOWS, 2).get(family, int(family in tiny.PACKED))
    stock = asked(IPCV(ratio=1.0))
    for blocks in range(tiny.BLOCKS):
        values, lengths = asked(IPCV(stabilise=blocks))
        assert values <= stock[0] + ways
        assert lengths == stock[1] + min(blocks, ways)


#: methods that ask more often than `Stride` at the entry and the few questions that any other way to answer has, and why
MORE = {
    "mustdrop": "a threshold decides at each of its layers and merges windows; its caches ask once for each set of tokens",
    "ottvid": "costs of transport between frames say how many tokens each frame loses",
    "eadp": "on a CPU alone, where it keeps nobody waiting, each pick looks for the rows that it covers better",
    "prunesid": "groups are as large as components say",
    "air": "which windows are near an outlier is the image's own count",
    "vistog": "tokens are appended, and who sees whom is a small table on the host",
    "vocollama": "the same",
    "adaptivevoco": "the same, and how many are appended depends on the image",
}
ALLOWED = 4


@pytest.mark.parametrize("name", foveate.list_methods())
def test_every_method_asks_a_few_times(name: str) -> None:
    """Whatever its layers are: with defaults, in a model of six. The exceptions are few and have a reason."""
    cls = foveate.list_methods()[name]
    family = "qwen2_5_vl" if cls().temporal or name in ("evs", "framefusion", "rlt") else "llava"
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])

    def asked(method: Method) -> int:
        with torch.no_grad(), foveate.compress(model, method):
            model(**batch)
            with Questions() as mode:
                model(**batch)
        return len(mode.asked)

    extra = asked(cls()) - asked(Stride(layers=(0,)))
    assert (extra > ALLOWED) == (name in MORE), f"{extra} more than Stride: {MORE.get(name, 'there is no reason')}"


def test_caches_ask_once_for_what_was_chosen() -> None:
    """IVC-Prune drops the same tokens from every cache before its layer: more of them do not ask more."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    few, many = questions(model, batch, IVCPrune(layer=2)), questions(model, batch, IVCPrune(layer=5))
    assert len(few) == len(many)


PATHS = [path for at in (foveate.ops, foveate.methods) for path in sorted(Path(str(at.__file__)).parent.glob("*.py"))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_what_the_host_knows_is_sent_without_waiting(path: Path) -> None:
    """``torch.tensor(counts, device=x.device)`` and ``.to(x.device)`` wait until the device has done all before. On a CPU
    nobody sees it, so it is looked for in the text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call, named = ast.unparse(node), {keyword.arg for keyword in node.keywords}
        if node.func.attr == "tensor" and "device" in named:
            pytest.fail(f"{call}: write torch.tensor(...).to(device, non_blocking=True)")
        to_device = node.func.attr == "to" and any("device" in ast.unparse(word) for word in node.args)
        from_host = ast.unparse(node.func.value).startswith("torch.tensor(")
        to_device |= node.func.attr == "to" and from_host and not any("dtype" in ast.unparse(w) for w in node.args)
        assert not to_device or "non_blocking" in named, f"{call}: add non_blocking=True"
