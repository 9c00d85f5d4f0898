"""``lmms-eval --model foveate`` as a user runs it: the installed command, which finds foveate by its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")

import tasks

from foveate import ADSC, IPCV, Stride
from foveate.errors import FoveateError
from foveate.lab.evaluation.questions import of_benchmark
from foveate.lab.evaluation.reference import Batch, answer, batches, load_subject
from foveate.method import Method

if not entry_points(group="lmms_eval.models"):
    pytest.skip("foveate is not installed here, so lmms-eval cannot find it", allow_module_level=True)

BIN = Path(sys.executable).parent


def ours(reference: str, method: Method | None) -> dict[str, str]:
    """What the reference benchmark's own path answers to the same questions, by their id."""
    subject, found = load_subject(f"reference-{reference}"), {}
    for group in batches(of_benchmark(tasks.samples(), subject.side)):
        said = answer(subject, Batch.of(subject, group), method)
        found |= {prompt.id: one.text for prompt, one in zip(group, said)}
    return found


def run(local: Path, out: Path, arguments: str, *words: str, several: bool = False) -> dict[str, tuple[Any, Any]]:
    """Results and answers by document, for each task."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    start = [str(BIN / "lmms-eval")]
    if several:
        start = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", "-m", "lmms_eval"]
    asked = ("--model", "foveate", "--model_args", arguments, "--include_path", str(local), "--limit", "-1")
    kept = ("--log_samples", "--output_path", str(out))
    done = subprocess.run(
        [*start, *asked, *kept, *words], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    results = next(iter(out.rglob("*_results.json")), None)
    assert results is not None, done.stderr[-3000:]
    names, found = [sample.id for sample in tasks.samples()], {}
    for task, numbers in json.loads(results.read_text())["results"].items():
        samples = next(iter(out.rglob(f"*_samples_{task}.jsonl"))).read_text().splitlines()
        said = {names[sample["doc_id"]]: sample["filtered_resps"] for sample in map(json.loads, samples)}
        found[task] = numbers, said
    return found


def right(answers: dict[str, str]) -> float:
    truth = {sample.id: sample.answer for sample in tasks.samples()}
    return sum(answers[name] == truth[name] for name in truth) / len(truth)


def test_the_stock_model_answers_what_it_answers_elsewhere(local: Path, tmp_path: Path) -> None:
    """And it takes the choice that it would generate: the answer is one word, the likeliest of all where it is a choice."""
    words = ("--tasks", "scenes,choices", "--force_simple", "--batch_size", "5")
    found = run(local, tmp_path, "pretrained=reference-llava", *words)
    results, answers = found["scenes"]
    expected = ours("llava", None)
    assert answers == expected
    assert results["accuracy,none"] == pytest.approx(right(expected))
    assert results["accuracy,none"] > 0.8
    assert found["choices"][0]["acc,none"] >= right(expected)


def test_a_method_answers_what_it_answers_elsewhere(local: Path, tmp_path: Path) -> None:
    """In two processes, which have half of the questions each."""
    arguments = "pretrained=reference,method=stride,keep=0.3"
    results, answers = run(local, tmp_path, arguments, "--tasks", "scenes", "--batch_size", "5", several=True)["scenes"]
    expected = ours("qwen2_5_vl", Stride(keep=0.3))
    assert answers == expected
    assert results["accuracy,none"] == pytest.approx(right(expected))
    assert answers != ours("qwen2_5_vl", None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("method=fastvv", "there is no method 'fastvv'"),
        ("pretrained=reference,method=fastv,layr=3", "FastV has no option 'layr'"),
        ("pretrained=reference,keep=0.3", "keep: no such argument; an option of a method needs method=NAME, too"),
        ("pretrained=reference,method=fastv,method_json=x.json", "--method and --method-json both say"),
        ("pretrained=reference,method=./nowhere,keep=0.3", "keep: the method in './nowhere' has its options already"),
        ("pretrained=./nowhere", "there is no model folder './nowhere'"),
        ("pretrained=reference,batch_size=auto", "batch_size='auto': give a whole number, at least 1"),
    ],
)
def test_mistakes(arguments: str, sentence: str) -> None:
    from lmms_eval.models import get_model

    kind = get_model("foveate")
    assert not kind.is_simple
    assert get_model("foveate", force_simple=True).is_simple
    with pytest.raises(FoveateError, match=sentence.replace("(", r"\(")):
        kind.create_from_arg_string(arguments)


def test_a_method_in_a_file(tmp_path: Path) -> None:
    from lmms_eval.models import get_model

    described = tmp_path / "stride.json"
    described.write_text(json.dumps(Stride(keep=0.3).to_dict()))
    lm = get_model("foveate").create_from_arg_string(f"pretrained=reference,method_json={described}")
    assert lm.asker.handle.method == Stride(keep=0.3)


def test_sums_and_lists_of_options() -> None:
    from lmms_eval.models import get_model

    words = "pretrained=reference,method=ipcv+adsc,adsc.keep=0.4,device=cpu,max_num_frames=4"
    lm = get_model("foveate").create_from_arg_string(words, {"batch_size": "3"})
    assert lm.asker.handle.method == IPCV() + ADSC(keep=0.4)
    assert (lm.batch_size, lm.frames.most) == (3, 4)
    lm.clean()
    with pytest.raises(FoveateError, match="has been cleaned away"):
        _ = lm.asker
