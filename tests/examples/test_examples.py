"""The programs in examples/ run as a user starts them, on a tiny model on disk; those that need vLLM are in tests/serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import saved
from program import EXAMPLES, run


def draw(folder: Path, count: int) -> None:
    """So many images of different sizes."""
    for number in range(count):
        saved.picture(32 + 8 * number, 48, number).save(folder / f"{number}.png")


def test_compress(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    folder = saved.folder("qwen2_5_vl")
    words = ("--image", "0.png", "--prompt", "the cat", "--method", "divprune", "--keep", 0.25, "--max-new-tokens", 3)
    printed = run(EXAMPLES / "compress_qwen.py", "--model", folder, *words, cwd=tmp_path)
    assert printed.startswith("stock model: ")
    assert "\ndivprune, keep=0.25: " in printed
    assert "\nFLOPs " in printed


def test_captions_are_those_of_each_image_alone(tmp_path: Path) -> None:
    draw(tmp_path, 3)
    words = (tmp_path, "--model", saved.folder("qwen2_5_vl"), "--max-new-tokens", 4, "--batch-size")
    together, alone = (
        [json.loads(line) for line in run(EXAMPLES / "batch_caption.py", *words, size, cwd=tmp_path).splitlines()]
        for size in (2, 1)
    )
    assert [row["image"] for row in together] == ["0.png", "1.png", "2.png"]
    assert together == alone
    assert all(row["caption"] for row in together)


def test_train(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    draw(tmp_path, 4)
    chat = [{"role": "user", "content": "<image>the cat"}, {"role": "assistant", "content": "the dog"}]
    rows = [{"messages": chat, "images": [f"{number}.png"]} for number in range(4)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = (
        "--model",
        saved.folder("qwen2_5_vl"),
        "--data",
        "chats.jsonl",
        "--out",
        "adapter",
        "--steps",
        3,
        "--batch",
        2,
    )
    printed = run(EXAMPLES / "train_adsc.py", *words, cwd=tmp_path)
    assert "3 steps, the loss went from " in printed
    assert "ADSC(" in printed.splitlines()[-1]
    assert (tmp_path / "adapter" / "foveate_method.json").is_file()


#: Lines of the programs that put another tool beside the library.
LONGER = {"ray_data": 80, "vlmevalkit": 90}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGER.get(path.stem, 40)
