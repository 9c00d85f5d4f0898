"""`foveate run --data --engine vllm`: a file of questions, answered by vLLM's offline engine as by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import saved
from served import folder

from foveate import LUVC, FastV
from foveate.lab import batch
from foveate.lab.terminal import CommandError

WORDS = "--enforce-eager --max-model-len 1024 --max-num-seqs 4 --seed 0 --limit-mm-per-prompt '{\"image\": 4}'"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four questions, and two that cannot be asked."""
    for i, size in enumerate(((24, 32), (48, 48), (40, 24))):
        saved.picture(*size, i).save(tmp_path / f"{i}.png")
    rows = [
        {"image": "0.png", "prompt": "the cat"},
        {"prompt": "the dog"},
        {"id": "gone", "image": "none.png", "prompt": "the cat"},
        {"images": ["1.png", "2.png"], "prompt": "the bird and the cat"},
        {"id": "too many", "images": ["0.png"] * 5, "prompt": "the cat"},
        {"id": "last", "image": "1.png", "prompt": "the bird"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def asked(data: Path, out: str, **options: Any) -> tuple[batch.Result, list[dict[str, Any]]]:
    usual = dict(model=str(folder("qwen2_5_vl")), method=LUVC(keep=0.5), dtype="float32", max_new_tokens=4)
    done = batch.run(batch.Request(data, data.with_name(out), **(usual | options)), lambda *_: None, lambda _: None)
    return done, [json.loads(line) for line in data.with_name(out).read_text().splitlines()]


def test_answers_are_those_of_transformers_in_the_order_of_the_records(data: Path) -> None:
    """What cannot be asked has a sentence, and a run that was stopped goes on with what is missing."""
    done, found = asked(data, "vllm.jsonl", engine="vllm", engine_args=WORDS)
    assert (done.answered, done.failed, done.tokens) == (4, 2, 16)
    assert batch.to_dict(done)["rows_per_second"] > 0
    assert [row["id"] for row in found] == ["1", "2", "gone", "4", "too many", "last"]
    assert "there is no such file" in found[2]["error"]
    assert "At most 4 image" in found[4]["error"]
    _, expected = asked(data, "stock.jsonl")
    good = [i for i, row in enumerate(found) if "answer" in row]
    assert [found[i] for i in good] == [expected[i] for i in good]

    path = data.with_name("vllm.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    saved.picture(24, 24, 5).save(data.with_name("none.png"))
    done, after = asked(data, "vllm.jsonl", engine="vllm", engine_args=WORDS)
    assert (done.before, done.answered, done.failed) == (3, 2, 1)
    assert [row["id"] for row in after] == [row["id"] for row in found]
    assert after[0] == found[0]
    with pytest.raises(CommandError, match="whose engine was"):
        asked(data, "vllm.jsonl")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(engine="transformers"), "--engine-args are options of vLLM: add --engine vllm"),
        (dict(device="cuda"), "--device is of transformers: with --engine vllm, --engine-args says"),
        (dict(method="somebody/trained"), "learned parts, which --engine vllm does not load"),
        (dict(engine_args="--max-modl-len 12"), "--engine-args '--max-modl-len 12': unrecognized arguments"),
        (dict(engine_args="--max-model-len many"), "--engine-args '--max-model-len many': argument --max-model-len"),
        (dict(engine_args="--dtype half"), "--dtype of this command says that"),
        (dict(method=FastV()), "vLLM does not start: fastv wants last_row.*--no-enable-chunked-prefill"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence(data: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        asked(data, "none.jsonl", **({"engine": "vllm", "engine_args": WORDS} | options))
