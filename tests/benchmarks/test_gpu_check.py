"""The check of a GPU, on a CPU and small models: that it finds what differs, goes on after what fails, and can be kept."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.errors import ConfigError
from foveate.lab.bench.measure import timed as timed_call
from foveate.lab.bench.result import machine

import gpu_check
from gpu import agree, answers, kernels, limits, speed
from gpu.limits import Limit, tried
from stored import result, running
from stored.experiment import Experiment
from tables import gpu as tables

CPU = torch.device("cpu")
KINDS = ["merge, then keep", "sight", "append", "decode"]


def agreement(kinds: list[str], shape: str = "qwen2.5-vl-7b", limit: float = 60.0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    subject = agree.Agreement(shape, CPU, True, agree.kinds_for(kinds), found.append)
    subject.run((kernels.KERNELS[1], kernels.KERNELS[2]), Limit(limit))
    return found


def test_kernels_agree_and_others_say_why_they_were_not_run() -> None:
    found = agreement(KINDS)
    lines = [line for line in found if line["kernel"] == "sdpa"]
    assert [line["status"] for line in lines] == ["measured", *["agrees"] * len(KINDS)] * 2
    assert all(line["changes"] > 100 * line["apart"] for line in lines[1:] if "changes" in line), "it could be seen"
    assert all(line["asked"] >= line["alike"] > 0 for line in lines if "asked" in line)
    assert found[-1]["status"] == "not run: it needs a GPU"
    assert "agrees" in tables.agreement({"agreement": found})


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lets text see a token more or less: here, it forgets what hides tokens."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def wrong(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> Any:
        if attn_mask is not None and query.shape[2] > 1:
            causal = torch.ones_like(attn_mask, dtype=torch.bool)
            attn_mask = causal.tril(attn_mask.shape[-1] - attn_mask.shape[-2])
        return plain(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    (line,) = [each for each in agreement(["sight"]) if each["answer"] == "sight" and each["batch"] == "one row"]
    assert line["status"] == "differs"


def test_there_is_a_method_for_every_kind_of_answer() -> None:
    """Every verb of a site, and every place but pixels, whose images are resized before there is attention."""
    host = foveate.Host("qwen2_5_vl", agree.BLOCKS, agree.LAYERS, has_cls=False)
    sites = [site for method in answers.answers().values() for site in method.sites(host)]
    verbs = [
        "reduce",
        "park",
        "attend",
        "restore",
        "skip",
        "channels",
        "sight",
        "append",
        "reuse",
        "remember",
        "inject",
    ]
    assert {site.action for site in sites} == set(verbs)
    assert {site.at for site in sites} >= {"tower", "tower_output", "lm_entry", "decoder", "decode", "cache"}
    assert any(method.positions == "virtual" for method in answers.answers().values())


def test_when_the_time_is_up_the_rest_says_so() -> None:
    found = agreement(KINDS, limit=-1)
    assert {line["status"] for line in found} == {limits.TIME_IS_UP, "not run: it needs a GPU"}


def test_what_fails_does_not_end_the_run() -> None:
    def fails(error: Exception) -> Any:
        raise error

    told = {
        "out of memory": torch.OutOfMemoryError("CUDA out of memory"),
        "not possible: this kernel takes no mask": RuntimeError("No available kernel. Aborting execution."),
        "refused: give another": ConfigError("give another"),
        "failed: KeyError: 'x'": KeyError("x"),
    }
    assert [tried(partial(fails, error), CPU)["status"] for error in told.values()] == list(told)


@contextmanager
def no_memory_for(name: str) -> Iterator[None]:
    """A block in which calls with one method have too little memory."""
    plain = timed_call

    def timed(model: Any, inputs: Any, method: Any, new_tokens: int) -> Any:
        if method is speed.METHODS[name]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, inputs, method, new_tokens)

    setattr(speed, "timed", timed)  # noqa: B010 (it is imported there)
    try:
        yield
    finally:
        setattr(speed, "timed", plain)  # noqa: B010


def test_speed_and_a_result_that_can_be_kept(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    found = gpu_check.Found(out, {"machine": machine(CPU), "rehearsal": True})
    plan = speed.Plan((36,), rounds=1, new_tokens=2, small=True)
    with no_memory_for("FastV"):
        speed.measure("llava-1.5-7b", plan, CPU, Limit(60), lambda what: found.add("speed", what))
    (case,) = found.speed
    assert case["lines"]["FastV"]["status"] == "out of memory"
    for name in ("LUVC", "ADSC", "IPCV", "VisionZip", "Stride"):
        line = case["lines"][name]
        assert len(line["rounds"]) == 1
        assert line["faster"]["first"] > 0
        assert 0 < line["flops"] < 1
    assert found.bad == 0
    assert "out of memory" in tables.speed(json.loads(out.read_text()))
    experiment = Experiment("gpu", "", "run", 0, {}, None, None, ())
    kept = running.adopt(experiment, tmp_path, tmp_path, out)
    assert kept.machine["device"] == "cpu"
    assert {"method": "stride", "keep": 0.5}.items() <= kept.methods[-1].items()
    assert result.read(tmp_path / "gpu.json").found["speed"][0]["visual"] == 36


def test_a_part_that_cannot_begin_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*words: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_check, "Agreement", no_memory)
    monkeypatch.setattr(speed, "measure", no_memory)
    found = gpu_check.Found(None, {})
    gpu_check.Check(found, CPU, Limit(60), True, []).run([])
    assert [line["status"] for line in found.agreement] == ["out of memory"] * 4
    assert [case["status"] for case in found.speed] == ["out of memory"] * 2
    assert "out of memory" in tables.speed({"speed": found.speed})


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    subprocess.run(["bash", "-n", str(Path(gpu_check.__file__).with_suffix(".sh"))], check=True)
    monkeypatch.setattr("sys.argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    assert "--device 'cuda' cannot be used here" in capsys.readouterr().err
