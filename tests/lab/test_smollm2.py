"""The reference model with a pretrained language model, in the commands: English questions, answers of several tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

import foveate
import foveate_reference as reference
from foveate.lab import batch, cautions, checks, demo, loading, serve
from foveate.lab.evaluation.fidelity import measuring
from foveate.lab.evaluation.reference import evaluate
from foveate.lab.evaluation.request import Fidelity, Reference
from foveate.lab.report import collect
from foveate.lab.speech import Speech, speech_of
from foveate.lab.terminal import CommandError
from foveate.lab.train import exhibits


def silent(what: str, done: float) -> None:
    pass


def test_in_which_words_a_model_is_asked(smollm2: str) -> None:
    _, processor = loading.load(smollm2)
    speech = speech_of(processor)
    assert speech.english
    longest = max(len(processor.tokenizer(speech.answer(word)).input_ids) for word in reference.ANSWERS)
    assert speech.longest == longest + 1
    assert speech.question("color", "color of star ?") == "What color is the star?"
    assert speech_of(reference.load("llava")[1]) == Speech(False, 1)
    assert speech_of(tiny.processor("llava")) == Speech(False, 1), "it knows no English word"


def test_which_model_answers(smollm2: str) -> None:
    model, processor = loading.load(smollm2)
    (line,) = cautions.about_model(smollm2, model, processor, ["Is there a giraffe?"])
    assert "reads English and has seen drawn scenes alone. For photographs" in line
    assert not cautions.about_methods(smollm2, [foveate.FastV(layer=2)], foveate.handle.host_of(model))
    (line,) = cautions.about_model("reference", *reference.load(), ["giraffe ?"])
    assert "knows drawn scenes and 139 words; of what is asked it does not know 'giraffe'" in line


def test_an_evaluation(smollm2: str, tmp_path: Path) -> None:
    request = Reference(
        tmp_path, smollm2, methods=("stride", "fastv"), budgets=(0.5,), tasks=("where", "pair"), per_task=2
    )
    found = evaluate(request, silent)
    assert found.model == "smollm2"
    assert [row.label for row in found.rows] == ["dense", "stride", "fastv"]
    for row in found.rows[1:]:
        assert row.spent.tokens == pytest.approx(0.5, abs=0.02)
        assert row.spent.flops < 0.97, "most of it is the tower's"
    lines = (tmp_path / "answers" / "dense-seed0.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["id"] for line in lines] == [
        f"{task}/test/0-{i}" for task in ("where", "pair") for i in (0, 1)
    ]


def test_what_else_asks_it(smollm2: str, tmp_path: Path) -> None:
    words = Fidelity(tmp_path / "f", smollm2, methods=("stride",), tasks=("color",), per_task=1)
    _, (prompt,) = measuring.prepare(words, silent)
    assert prompt.text.startswith("What color is the ")
    content = collect.collect(
        collect.Request(smollm2, (), (), {"stride": foveate.Stride(keep=0.5)}, scenes=1, max_new_tokens=2), silent
    )
    assert all(case.prompt[0].isupper() for case in content.cases)
    seed = reference.split_seed("test", 0)
    rows = demo._ask_about(0, reference.make_scene(seed), seed, Speech(True, 4))
    assert all(row.question.text[0].isupper() for row in rows)
    with pytest.raises(CommandError, match="the demo asks a reference model"):
        demo.play(1, 0, 0.5, tmp_path / "d", silent, "tiny")
    chats = exhibits.load("train", 1, 0, 160, Speech(True, 4))
    assert chats.rows[0]["messages"][0]["content"][-1]["text"].endswith("?")


def test_a_run_is_a_model(smollm2: str, smollm2_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "tower").mkdir(parents=True)
    checks.check_model(str(tmp_path / "run"))
    with pytest.raises(CommandError, match=r"the training of smollm2 in .* has not ended: go on with"):
        loading.load(str(tmp_path / "run"))
    shutil.copy(smollm2_cache / "smollm2" / checks.ADAPTER, tmp_path / "run")
    assert loading.load(str(tmp_path / "run"))[0].config.model_type == "llava"
    assert cautions.is_reference(str(tmp_path / "run"))
    for name in (smollm2, str(tmp_path / "run")):
        with pytest.raises(CommandError, match=r"is put together when it is loaded, .* save_pretrained"):
            serve.words(name, foveate.Stride(keep=0.5), [])
        with pytest.raises(CommandError, match="is put together when it is loaded"):
            batch.Request(tmp_path / "x", tmp_path / "y", name, foveate.Stride(keep=0.5), engine="vllm").check()


def test_what_is_missing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    monkeypatch.setattr("foveate_reference.language.model.FOLDER", tmp_path)
    with pytest.raises(CommandError, match=r"cannot load the model 'reference-smollm2': .*foveate train reference"):
        loading.load("reference-smollm2")
