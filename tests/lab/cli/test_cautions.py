"""What a person should know before an answer is believed."""

from __future__ import annotations

import pytest
import tiny
from command import needs_weights

import foveate_reference as reference
from foveate import DMLLM, DyCoke, FastV, SparseVLM, Stride
from foveate.handle import host_of
from foveate.lab import cautions, terminal


@needs_weights
def test_methods_that_rank_before_text_looks() -> None:
    """What is said to do about it helps, and a schedule takes no layer beside it; many are one line."""
    host = host_of(reference.load()[0])

    def said(*methods: object) -> str:
        (line,) = cautions.about_methods("reference", methods, host)  # type: ignore[arg-type]
        return line

    assert "fastv ranks by the attention of text before layer 2 (the first is 0)" in said(FastV())
    assert "fourth layer: say --option layer=4, or ask" in said(FastV())
    assert "say --option fastv.layer=4" in said(FastV(), Stride())
    scheduled = FastV(schedule=((1, 0.5), (5, 0.2)))
    assert "before layer 1" in said(scheduled)
    assert "give a schedule that begins at layer 4 or later, or ask" in said(scheduled)
    assert "fastv and sparsevlm rank by" in said(FastV(), SparseVLM())
    assert not cautions.about_methods("reference", [FastV(layer=4), Stride()], host)
    assert not cautions.about_methods("another", [FastV()], host)


def test_methods_for_something_else() -> None:
    """For models that write in denoising steps, and for videos."""
    host = host_of(tiny.model("qwen2_5_vl"))
    (line,) = cautions.about_methods("mine", [DMLLM()], host)
    assert "dmllm is for models that write in denoising steps, and this one writes word by word" in line
    assert line.endswith("with no visual token after it")
    assert not cautions.about_methods("mine", [DyCoke()], host)
    (line,) = cautions.about_methods("mine", [DyCoke()], host, videos=False)
    assert "dycoke compares the frames of a video, and none is asked about" in line


def test_each_is_said_once_in_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    host = host_of(tiny.model("qwen2_5_vl"))
    for _ in range(2):
        with terminal.warnings_of_ours():
            cautions.say("mine", [DMLLM()], host)
            cautions.say("mine", [DMLLM()], host)
    assert capsys.readouterr().err.count("denoising") == 2
