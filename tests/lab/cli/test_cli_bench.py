"""``foveate bench``: a run, the same result shown again, and what a person may get wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from command import Here, as_json, needs_weights

from foveate.lab.bench import shapes

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")
SHORT = ("--method", "stride", "--tokens", "4", "--tokens", "9", "--repeats", "2", "--new-tokens", "2", "--steps", "2")
QUICK = ("--repeats", "1", "--new-tokens", "2", "--steps", "2")


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch, what_is_there_stays: None) -> Iterator[None]:
    """The default shape is smaller than it is; `tests/lab/bench` measures it as it is."""
    tiny = shapes.Shape(lambda: shapes.qwen2_5_small(64, 3, tower=64, blocks=4), "tests")
    monkeypatch.setitem(shapes.SHAPES, "small-qwen2.5-vl", tiny)
    shapes.skeleton.cache_clear()
    yield
    shapes.skeleton.cache_clear()


@needs_matplotlib
@pytest.mark.usefixtures("smaller")
def test_measure_and_show_again(here: Here, tmp_path: Path) -> None:
    done = here("bench", *SHORT, "--json", "--plot", "a.png", "--table", "a.md")
    found = as_json(done)
    assert found == json.loads((tmp_path / "bench.json").read_text())
    assert [(case["tokens"], len(case["lines"]["dense"]["repeats"])) for case in found["cases"]] == [(4, 2), (9, 2)]
    assert found["schema"] == 1
    assert found["command"].startswith("foveate bench --tokens 4 --tokens 9 ")
    assert "| stride |" in (tmp_path / "a.md").read_text()
    again = here("bench", *SHORT, "--plot", "a.png", "--table", "a.md")
    assert again.returncode == 0, "they are its own"
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    done = here("bench", "--from", "bench.json", "--plot", "b.png", "--table", "b.md")
    assert done.returncode == 0, done.stderr
    for part in (
        "small-qwen2.5-vl: 4 visual tokens",
        "stride",
        "faster to the first token",
        "written: b.md, b.png",
    ):
        assert part in done.stdout
    assert (tmp_path / "b.md").read_bytes() == (tmp_path / "a.md").read_bytes()
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert as_json(here("bench", "--from", "bench.json", "--json")) == found


@needs_weights
@pytest.mark.usefixtures("what_is_there_stays")
def test_a_real_model(here: Here) -> None:
    done = here("bench", "--model", "reference-llava", "--method", "vtw", "--tokens", "100", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "reference-llava: 100 visual tokens in 1 image" in done.stdout
    assert "vtw" in done.stdout


@pytest.mark.usefixtures("what_is_there_stays")
def test_a_folder_with_a_model(here: Here, tmp_path: Path) -> None:
    processor = tiny.processor("qwen2_5_vl")
    processor.chat_template = processor.tokenizer.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> "
        "{% else %}what is it ?{% endif %}{% endfor %}"
    )
    processor.save_pretrained(tmp_path / "tiny")
    tiny.model("qwen2_5_vl").save_pretrained(tmp_path / "tiny")
    words = ("--tokens", "16", *QUICK, "--batch-size", "2", "--dtype", "bfloat16", "--attn", "eager")
    done = here("bench", "--model", "tiny", "--method", "stride", *words)
    assert done.returncode == 0, done.stderr
    assert "tiny: 16 visual tokens in 1 image" in done.stdout
    assert "batch 2, bfloat16, eager" in done.stdout


@needs_weights
def test_more_images_than_there_is_memory_for(here: Here) -> None:
    done = here("bench", "--model", "reference", "--method", "stride", "--tokens", "999999999")
    assert done.returncode == 2
    assert "--tokens 999999999: the pixels of" in done.stderr


MISTAKES = {
    "unknown shape": (("--shape", "qwen9"), "--shape 'qwen9': choose one of qwen2.5-vl-7b"),
    "a shape as model": (("--model", "small-llava"), "so say --shape small-llava"),
    "unknown model": (("--model", "./nowhere"), "there is no model folder './nowhere'"),
    "unknown method": (("--method", "fastvv"), "there is no method 'fastvv'"),
    "unknown option": (("--method", "fastv", "--option", "layr=3"), "FastV has no option 'layr'"),
    "option of nobody": (("--method", "fastv", "--method", "tome", "--option", "layer=3"), "belongs to no method"),
    "option without a method": (("--option", "layer=3"), "belongs to a method: say --method, too"),
    "keep over one": (("--keep", "2"), "keep=2.0 is not a ratio"),
    "keep of JSON": (("--method-json", '{"method": "vtw"}', "--keep", "0.5"), "--keep belongs to --method"),
    "bad JSON": (("--method-json", "{fastv}"), "not JSON"),
    "dense alone": (("--method", "dense"), "nothing to compare the stock model with"),
    "method twice": (("--method", "tome", "--method", "tome"), "--method tome is given twice"),
    "layer out of range": (("--method", "fastv", "--option", "layer=40"), "there is no decoder layer 40"),
    "no tokens": (("--tokens", "0"), "--tokens 0: give a number above 0"),
    "tokens twice": (("--tokens", "64", "--tokens", "64"), "--tokens 64 is given twice"),
    "no rows": (("--batch-size", "0"), "--batch-size 0: give a number above 0"),
    "no rounds": (("--repeats", "0"), "--repeats 0: give a number above 0"),
    "no answer": (("--new-tokens", "0"), "--new-tokens 0: give a number above 0"),
    "negative seed": (("--seed", "-1"), "--seed -1: give a number from 0"),
    "unknown dtype": (("--dtype", "int8"), "choose auto, float32"),
    "unknown device": (("--device", "abacus"), "--device 'abacus': say cuda"),
    "a device without clocks": (("--device", "meta"), "measured on cpu and cuda only"),
    "unknown attention": (("--attn", "flashy", "--tokens", "4"), "--attn 'flashy': choose eager, "),
    "more than there is": (("--shape", "small-llava", "--tokens", "999999999"), "B free: choose a smaller --shape"),
    "out is a folder": (("--out", "empty"), "--out 'empty' cannot be written"),
    "out in no folder": (("--out", "none/x.json"), "there is no folder 'none' for --out 'x.json'"),
    "out is an image": (
        ("--out", "image.jpg"),
        "'image.jpg' is not a result of `foveate bench`: it is not text in UTF-8",
    ),
    "out is another file": (("--out", "file"), "'file' is not a result of `foveate bench`"),
    "plot of no kind": (("--plot", "x.gif"), "give a name that ends in .png, .pdf, .svg"),
    "plot in no folder": (("--plot", "none/x.png"), "there is no folder 'none' for --plot 'x.png'"),
    "table is a folder": (("--table", "empty"), "--table 'empty' cannot be written"),
    "nothing to show": (("--from", "none.json"), "there is no result 'none.json'"),
    "something else to show": (("--from", "file"), "'file' is not a result"),
    "a run to show": (("--from", "file", "--tokens", "3"), "--overwrite and --json, and not --tokens"),
    "methods to show": (("--from", "file", "--method-json", "{}"), "and not --method-json"),
    "table over out": (("--table", "bench.json"), "--table 'bench.json' is the file of --out: give another name"),
    "plot over out": (("--out", "./x.png", "--plot", "x.png"), "--plot 'x.png' is the file of --out"),
    "table over plot": (("--plot", "x.png", "--table", "x.png"), "--table 'x.png' is the file of --plot"),
    "table over what is shown": (("--from", "file", "--table", "empty/../file"), "is the file of --from"),
    "long name": (("--out", 300 * "x"), "cannot be written"),
    "long name of a table": (("--table", 300 * "x"), "cannot be written"),
    "long name to show": (("--from", 300 * "x"), "there is no result"),
    "long name of a method": (("--method-json", 300 * "x"), "cannot read"),
    "a number of nothing": (("--tokens", 400 * "9"), "give a number up to 1000000000"),
    "an answer without end": (("--new-tokens", "999999999"), "B free: choose a smaller --shape"),
    "FlashAttention in float32": (
        ("--attn", "flash_attention_2", "--dtype", "float32"),
        "--attn 'flash_attention_2' needs --dtype bfloat16 or float16",
    ),
}


@needs_matplotlib
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(here: Here, tmp_path: Path, mistake: str) -> None:
    (tmp_path / "file").write_text("here first")
    (tmp_path / "image.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "empty").mkdir()
    words, sentence = MISTAKES[mistake]
    done = here("bench", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bench.json").exists(), "nothing has begun"
    assert (tmp_path / "file").read_text() == "here first"


def test_matplotlib_is_missing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    done = here("bench", "--plot", "x.png")
    assert done.returncode == 2
    assert "pip install 'matplotlib" in done.stderr
