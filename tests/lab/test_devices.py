"""Devices that are not there, and models that do not fit on one: a sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import saved
import torch

import foveate
from foveate.errors import AdapterError
from foveate.lab.devices import device_of, put
from foveate.lab.terminal import CommandError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
@no_cuda
def test_no_cuda(name: str) -> None:
    with pytest.raises(
        CommandError, match=rf"--device '{name}' cannot be used here: of CUDA devices .*give --device cpu"
    ):
        device_of(name)
    assert device_of("auto").type == "cpu"


def test_fewer_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(CommandError, match="'cuda:2' cannot be used here: of CUDA devices there are 2, counted from 0"):
        device_of("cuda:2")


def test_a_model_that_does_not_fit() -> None:
    model = torch.nn.Linear(1024, 1024).to(torch.bfloat16)

    def move(device: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    model.to, model.dtype = move, torch.bfloat16  # type: ignore[method-assign,assignment]
    with pytest.raises(
        CommandError, match=r"'mine' does not fit: its weights in bfloat16 need 2\.1 MB, and.*smaller model"
    ):
        put(model, torch.device("cpu"), "mine")


@no_cuda
def test_a_saved_model_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    model, _ = saved.load("llava")
    model.save_pretrained(tmp_path)
    with foveate.compress(model, "stride") as handle:
        handle.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="cannot load"):
        foveate.from_pretrained(tmp_path, device_map="cuda")
