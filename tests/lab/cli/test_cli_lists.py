"""Help, version, ``foveate methods`` and ``foveate families``; training a few steps."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from command import Here, as_json, foveate

import foveate as package
from foveate.lab import catalog, sheet, terminal


def test_help_is_fast() -> None:
    """It must not import torch. Processor time, as other processes may be busy."""

    def used() -> float:
        times = os.times()
        return times.children_user + times.children_system

    before = used()
    done = foveate("--help")
    assert done.returncode == 0
    assert used() - before < 1.0
    for command in ("demo", "run", "methods", "families", "train"):
        assert command in done.stdout


def test_version() -> None:
    assert foveate("--version").stdout.strip() == package.__version__


def test_methods(here: Here) -> None:
    found = {method["name"]: method for method in as_json(foveate("methods", "--json"))}
    assert set(found) == set(package.list_methods())
    assert found["fastv"]["sites"] == ["decoder 2"]
    assert found["fastv"]["options"]["keep"] == {"type": "float | None", "default": None}
    assert (found["fastv"]["unit"], found["fastv"]["mean"]) == ("tokens", 0.53125)
    assert (found["ipcv"]["unit"], found["dycoke"]["unit"]) == ("tower", "tokens")
    assert len(found["tome"]["sites"]) == 23
    assert found["fastv"]["paper"]["title"].startswith("An Image is Worth 1/2 Tokens After Layer 2")
    assert {name for name, method in found.items() if method["control"]} == {"random", "stride", "downsample"}
    assert all((method["paper"] is None) == method["control"] for method in found.values())
    assert "tower 0-22 (mid)" in here("methods", "tome").stdout
    fastv = " ".join(here("methods", "fastv").stdout.split())
    assert "ECCV 2024, 2403.06764" in fastv
    assert "counted from 0 (-1 is the last one)" in fastv
    assert "Takes keep, renumber or virtual" in fastv, "it acts where positions exist already"
    assert "Takes keep, renumber, native or virtual" in " ".join(here("methods", "divprune").stdout.split())


def test_the_list_of_methods_fits_a_narrow_screen(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is said to its end, under the part of a model where it acts."""
    monkeypatch.setattr(terminal.out, "width", 80)
    lines = here("methods").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if re.match(r"  \S", line)]
    assert sorted(names) == sorted(package.list_methods())
    place = lines.index("in the vision tower")
    said = lines[place + 1 : lines.index("at the end of the vision tower")]
    inside = [line.split()[0] for line in said if re.match(r"  \S", line)]
    assert inside == sorted(inside)
    assert {"ipcv", "oim", "tome"} <= set(inside)
    assert "in the vision tower and in the language model" in lines
    text = " ".join(" ".join(lines).split())
    for name, cls in package.list_methods().items():
        assert f" {name} {(cls.__doc__ or '').partition(chr(10))[0].replace('``', '`')} (" in text
    assert "before each of a few decoder layers. (needs training, IEEE BigData 2025)" in text


def test_methods_that_fit(here: Here) -> None:
    def names(*words: str) -> list[str]:
        return [method["name"] for method in as_json(here("methods", *words, "--json"))]

    assert {"ipcv", "luvc", "oim", "tome"} <= set(names("--site", "tower"))
    assert not {"fastv", "visionzip"} & set(names("--site", "tower"))
    assert names("--site", "decoder", "--search", "PASS low lossless") == ["spu"]  # in any order and case
    assert names("--search", "dynamic compression of tokens fast") == ["dycoke"], "the title is looked at"
    assert "\n  vtw" in here("methods", "--search", "withdraw").stdout


def test_one_method(here: Here) -> None:
    text = " ".join(here("methods", "visionzip").stdout.split())
    assert "54 dominant + 10 contextual" in text
    assert "contextual" in text
    assert "0.53 of the visual tokens per layer (32 layers)" in here("methods", "fastv").stdout
    assert "of the patches per vision block (23 blocks)" in here("methods", "ipcv").stdout


@pytest.mark.parametrize("name", package.list_methods())
def test_one_method_fits_a_narrow_screen(name: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option on lines of its own, with what it takes in words."""
    monkeypatch.setattr(terminal.out, "width", 80)
    text = here("methods", name).stdout
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    head, options = text.split("\noptions\n")
    assert "Attributes:" not in head
    named = re.findall(r"^  (\w+) ", options, re.M)
    assert set(named) == {field.name for field in dataclasses.fields(package.list_methods()[name])}
    assert " ".join(options.split()).count("Takes ") == len(named)
    assert not re.search(r"Literal\[|Union\[|Optional\[|\| None|tuple\[", options)


def test_what_an_option_takes() -> None:
    assert sheet.takes("int | None") == "a whole number"
    assert sheet.takes("Literal['keep', 'renumber', 'native']") == "keep, renumber or native"
    assert sheet.takes("tuple[int, ...] | None") == "whole numbers"
    assert sheet.takes("Union[Literal['early'], tuple[tuple[int, float], ...], NoneType]") == (
        "early or a list of [a whole number, a number]"
    )
    assert sheet.takes("Optional[Literal['llava', 'qwen']]") == "llava or qwen"
    assert sheet.takes("mine.Type") == "mine.Type"


def test_a_budget_that_a_threshold_may_decide() -> None:
    facts = {"fixed_budget": True, "options": {"threshold": {"type": "float | None", "default": None}}}
    assert sheet.budget(facts).endswith("the size of the image alone; with a threshold, on what is in it")
    assert sheet.budget({**facts, "fixed_budget": False}).startswith("by content")
    alone = "fixed: how many tokens stay follows from the size of the image alone"
    assert sheet.budget(catalog.describe_method("dycoke")) == alone, "its threshold says when to choose anew"


def test_families(here: Here) -> None:
    found = as_json(here("families", "--json"))
    assert {family["family"] for family in found} == set(package.list_families())
    llava = {"model_type": "llava", "types": ["llava"], "tower": "padded", "inputs": ["image"]}
    assert {"family": "llava", "model": "LLaVA-1.5", **llava, "has_cls": True} in found
    assert {"family": "llava_pixtral", "model": "Pixtral", **llava, "has_cls": False} in found
    assert {"family": "llava_siglip", "model": "LLaVA with SigLIP", **llava, "has_cls": False} in found
    said = here("families").stdout
    assert re.search(r"^GLM-4.1V, and GLM-OCR +glm4v, glm_ocr +image, video *$", said, re.M), "a name for each type"
    assert re.search(r"^Pixtral +llava \(here llava_pixtral\) +image *$", said, re.M)


def test_train_reference(here: Here, tmp_path: Path) -> None:
    sizes = {"tower_steps": 1, "scenes_steps": 1, "pointer_steps": 1, "joint_steps": 1, "batch_size": 2}
    sizes |= {"layers": 2, "hidden": 64, "tower_depth": 2, "tower_hidden": 24, "validation_images": 2, "warmup": 1}
    words = ["train", "reference", "--out", "run", "--json"]
    for name, value in sizes.items():
        words += ["--set", f"{name}={value}"]
    found = as_json(here(*words))
    assert (tmp_path / found["model"] / "model.safetensors").is_file()
    written = (tmp_path / "run" / "checkpoint.safetensors").stat().st_mtime_ns
    assert as_json(here(*words)) == found, "it goes on, and has nothing to do"
    other = here(*words, "--seed", "1")
    assert other.returncode == 2
    assert "is of another run" in other.stderr
    assert (tmp_path / "run" / "checkpoint.safetensors").stat().st_mtime_ns == written
