"""A run that is interrupted goes on where it stopped, and ends like one that was not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import foveate_reference as reference
from foveate.errors import FoveateError
from foveate.lab.asker import Asker
from foveate.lab.evaluation import costs, report
from foveate.lab.evaluation import reference as protocol
from foveate.lab.evaluation.questions import layouts, of_benchmark
from foveate.lab.evaluation.reference import Batch, answer, batches, evaluate, load_subject
from foveate.lab.evaluation.request import Reference
from foveate.lab.terminal import CommandError
from foveate_reference.data import samples

pytest.importorskip("matplotlib")
METHODS = ("blind", "antioracle", "oracle", "stride", "downsample")


def request(out: Path, **changes: object) -> Reference:
    usual: dict[str, object] = {"methods": METHODS, "budgets": (0.3,), "tasks": ("color", "texture"), "per_task": 3}
    return Reference(out, **{**usual, **changes})  # type: ignore[arg-type]


def small(patch: pytest.MonkeyPatch, qwen: Asker) -> None:
    """One model for all tests, as loading takes a second; and batches of 4 questions, so that a run has several."""
    patch.setattr(protocol, "load_subject", lambda name, adapter: qwen)
    patch.setattr(protocol, "batches", lambda prompts: batches(prompts, tokens=400))


@pytest.fixture(autouse=True)
def small_runs(qwen: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, qwen)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, qwen: Asker) -> Path:
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        small(patch, qwen)
        report.write(evaluate(request(out, seeds=(0, 3)), lambda what, done: None))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize("moment", [0.05, 0.7])
def test_an_interrupted_run_ends_like_any_other(whole: Path, tmp_path: Path, moment: float) -> None:
    def stop(what: str, done: float) -> None:
        if " at 0.3" in what and done > moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(request(tmp_path, seeds=(0, 3)), stop)
    # The last line of one file was cut in the middle, of another the second half of a batch was never written.
    files = sorted((tmp_path / "answers").glob("*-seed0.jsonl"))
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_text("".join(files[1].read_text().splitlines(keepends=True)[:3]))
    done: list[float] = []
    found = evaluate(request(tmp_path, seeds=(0, 3)), lambda what, share: done.append(share))
    assert done[-1] == 1.0
    report.write(found)
    again, first = contents(tmp_path), contents(whole)
    assert again.keys() == first.keys()
    for name in first:
        assert again[name] == first[name], name


def test_a_finished_run_asks_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    for module, name in ((protocol, "answer"), (costs, "hear")):
        monkeypatch.setattr(module, name, lambda *args: pytest.fail("everything has been answered"))
    report.write(evaluate(request(whole, seeds=(0, 3)), lambda what, done: None))
    assert contents(whole) == before


def test_what_is_on_file(whole: Path) -> None:
    names = {path.name for path in (whole / "answers").iterdir()}
    entries = (
        "dense",
        "blind",
        "antioracle",
        "oracle-at-0.3-tokens",
        "stride-at-0.3-tokens",
        "downsample-at-0.3-tokens",
    )
    assert names == {f"{entry}-seed{seed}.jsonl" for entry in entries for seed in (0, 3)}
    header, *lines = map(json.loads, (whole / "answers" / "stride-at-0.3-tokens-seed3.jsonl").read_text().splitlines())
    assert header["method"]["method"] == "stride"
    assert header["seed"] == 3
    asked = {sample.id: sample for sample in samples(tasks=("color", "texture"), per_task=3, seed=3)}
    assert [line["id"] for line in lines] == list(asked)
    for line in lines:
        assert line["right"] == (line["answer"] == asked[line["id"]].answer)
        assert line["cost"]["tokens"] == pytest.approx(0.3 * line["cost"]["full_tokens"])


def test_the_reference_model_sees(qwen: Asker) -> None:
    """Loosely, as another machine rounds differently; the benchmark's own tests are strict."""
    asked = samples(tasks=("color",), per_task=16)
    right = {}
    for blind in (False, True):
        said = answer(qwen, Batch.of(qwen, of_benchmark(asked, qwen.side), blind), None)
        right[blind] = sum(one.text == sample.answer for one, sample in zip(said, asked))
    assert right[False] > 11
    assert right[True] < 7


CHANGES: dict[str, dict[str, object]] = {
    "per_task": {"per_task": 6},
    "tasks": {"tasks": ("color",)},
    "split": {"split": "validation"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_folder_of_another_run(whole: Path, what: str) -> None:
    before = contents(whole)
    with pytest.raises(CommandError, match=f"is of another run, whose {what} was .* give --out another name"):
        evaluate(request(whole, **CHANGES[what]), lambda what, done: None)
    assert contents(whole) == before


def test_other_versions_weights_methods_or_pixels(whole: Path, tmp_path: Path) -> None:
    for what, changed in {
        "weights": "other",
        "versions": {"torch": "1.0"},
        "questions": "other",
        "method": {"method": "vtw"},
    }.items():
        folder = tmp_path / what / "answers"
        folder.mkdir(parents=True)
        for path in (whole / "answers").glob("stride-*-seed0.jsonl"):
            header, rest = path.read_text().split("\n", 1)
            (folder / path.name).write_text(json.dumps({**json.loads(header), what: changed}) + "\n" + rest)
        with pytest.raises(CommandError, match=f"is of another run, whose {what} was"):
            evaluate(request(folder.parent, methods=("stride",)), lambda what, done: None)


@pytest.mark.parametrize("line", ["not JSON", "[]", '{"id": "color/test/0-0"}', '{"id": 1, "cost": 3}'])
def test_a_line_that_is_no_answer(whole: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "answers").mkdir()
    header = (whole / "answers" / "dense-seed0.jsonl").read_text().splitlines()[0]
    (tmp_path / "answers" / "dense-seed0.jsonl").write_text(f"{header}\n{line}\n")
    with pytest.raises(CommandError, match=r"line 2 of .* is not a"):
        evaluate(request(tmp_path, methods=("dense",)), lambda what, done: None)


def test_batches_have_one_layout() -> None:
    asked = of_benchmark(samples(tasks=("color", "document", "pair"), per_task=9), 0)
    groups = batches(asked, tokens=800)
    assert sorted(prompt.id for group in groups for prompt in group) == sorted(prompt.id for prompt in asked)
    for group in groups:
        assert len({prompt.sizes for prompt in group}) == 1
        assert sum(cells.size for prompt in group for cells in prompt.evidence) <= 800
    assert [len(layout) for layout in layouts(asked)] == [9] * 3


def test_blind_is_shown_grey_and_answers_the_same_questions(qwen: Asker) -> None:
    asked = of_benchmark(samples(tasks=("color",), per_task=3), qwen.side)
    seen, blind = (Batch.of(qwen, asked, blind).inputs for blind in (False, True))
    assert (seen["input_ids"] == blind["input_ids"]).all()
    assert len(np.unique(blind["pixel_values"].round(decimals=4))) == 1
    assert len(np.unique(seen["pixel_values"].round(decimals=4))) > 50


def test_llava_sees_large_images_in_tiles() -> None:
    if not (reference.PATHS["llava"] / "model.safetensors").is_file():
        pytest.skip("the weights are missing")
    subject = load_subject("reference-llava")
    (document,) = samples(tasks=("document",), per_task=1)
    (prompt,) = of_benchmark([document], subject.side)
    batch = Batch.of(subject, [prompt])
    assert batch.inputs["pixel_values"].shape == (4, 3, 160, 160)
    (whole,) = document.evidence
    assert [cells.shape for cells in prompt.evidence] == [(10, 10)] * 4
    corners = (whole[:10, :10], whole[:10, 10:], whole[10:, :10], whole[10:, 10:])
    assert all((cells == corner).all() for cells, corner in zip(prompt.evidence, corners))


def test_an_error_in_the_middle_leaves_the_threads_alone(tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    with pytest.raises(FoveateError):
        evaluate(request(tmp_path, methods=("nobody",)), lambda what, done: None)
    assert torch.get_num_threads() == before
