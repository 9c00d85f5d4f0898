"""A method and its adapter by path: on, exact, and off again, for every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from snapshot import state_of
from torch.nn.attention import SDPBackend, sdpa_kernel

import foveate
from foveate import ADSC, IPCV, FastV, Method, VisionZip, adapter, trained
from foveate.errors import AdapterError, ConfigError, FoveateError, UnknownNameError, UnsupportedModelError
from foveate.handle import host_of

peft = pytest.importorskip("peft")
ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
TARGETS = r"(.*(?:language|text)_model|model)\.layers\.\d+\.\w+\.(q_proj|down_proj)"


def adapted(family: str) -> Any:
    """A tiny model with random LoRA matrices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
        return peft.get_peft_model(tiny.model(family, fresh=True), config).eval()


def folder_of(family: str, folder: Path, method: foveate.Method | None = None) -> str:
    model = adapted(family)
    trained.save(folder, method or ADSC(keep=0.4), host_of(model), torch.nn.ModuleDict(), model)
    return str(folder)


def test_on_and_off(family: str, tmp_path: Path) -> None:
    source, batch = folder_of(family, tmp_path / "run"), tiny.inputs(family, ROWS)
    model, other = tiny.model(family, fresh=True), adapted(family)
    stock, before = tiny.text_logits(model, batch), state_of(model)
    parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    with foveate.compress(other, ADSC(keep=0.4)):
        expected = tiny.text_logits(other, batch)
    with foveate.compress(model, source) as handle:
        assert handle.method == ADSC(keep=0.4)
        assert handle.model is model
        assert torch.equal(tiny.text_logits(model, batch), expected)
        assert not model.training
    handle.remove()
    assert torch.equal(tiny.text_logits(model, batch), stock)
    assert state_of(model) == before
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == parameters


def test_flops_count_the_adapter(family: str, tmp_path: Path) -> None:
    """By formula and on the run alike, as its matrices stay beside the model's own."""
    source, batch = folder_of(family, tmp_path / "run"), tiny.inputs(family, ROWS)
    model = tiny.model(family, fresh=True)
    with foveate.compress(model, source) as handle:
        with torch.no_grad(), tiny.flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):
            model(**batch)
        adapted = sum(handle.report().flops.values())
        assert counter.get_total_flops() == pytest.approx(adapted, rel=0.01)
    with foveate.compress(model, ADSC(keep=0.4)) as handle:
        tiny.text_logits(model, batch)
        assert sum(handle.report().flops.values()) < adapted


def test_sums_of_methods_have_adapters_too(tmp_path: Path) -> None:
    source = folder_of("llava", tmp_path / "run", foveate.ToMe() + ADSC())
    with foveate.compress(tiny.model("llava", fresh=True), source) as handle:
        assert handle.method == foveate.ToMe() + ADSC()


@pytest.mark.families(*tiny.WHOLE, *tiny.cpm.FAMILIES)
def test_an_adapter_in_a_sum(family: str, tmp_path: Path) -> None:
    """What was trained for the language model, behind something in the tower."""
    source, batch = folder_of(family, tmp_path / "run"), tiny.inputs(family, ROWS)
    other, model = adapted(family), tiny.model(family, fresh=True)
    beside: Method = VisionZip() if family in tiny.cpm.FAMILIES else IPCV()  # which parks where that tower merges
    with foveate.compress(other, beside + ADSC(keep=0.4)):
        expected = tiny.text_logits(other, batch)
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, f"{beside.name()} + {source}") as handle:
        assert handle.method == beside + ADSC(keep=0.4)
        assert torch.equal(tiny.text_logits(model, batch), expected)
    assert torch.equal(tiny.text_logits(model, batch), stock)


def test_sums_that_cannot_be(tmp_path: Path) -> None:
    source, model = folder_of("llava", tmp_path / "c++"), tiny.model("llava", fresh=True)
    before = state_of(model)
    with pytest.raises(ConfigError, match="one adapter at a time"):
        foveate.compress(model, f"{folder_of('llava', tmp_path / 'a')} + {folder_of('llava', tmp_path / 'b')}")
    with pytest.raises(UnknownNameError, match="'nothing'"):
        foveate.compress(model, f"nothing + {tmp_path}/c")
    with pytest.raises(UnknownNameError, match="neither a method, nor a folder"):
        foveate.compress(model, f"ipcv + {tmp_path}/c")
    assert state_of(model) == before
    foveate.compress(model, source).remove()  # a plus sign in a path is no sum


def test_the_name_of_a_method_is_not_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of("llava", tmp_path / "adsc")
    with foveate.compress(tiny.model("llava", fresh=True), "adsc") as handle:
        assert handle.method == ADSC()
    with foveate.compress(tiny.model("llava", fresh=True), "./adsc") as handle:
        assert handle.method == ADSC(keep=0.4)


def test_a_hub_id_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of("llava", tmp_path / "run")
    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return source

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with foveate.compress(tiny.model("llava", fresh=True), "somebody/adsc-llava") as handle:
        assert handle.method == ADSC(keep=0.4)
    files = [trained.METHOD, trained.MODULES, "adapter_model.safetensors", "adapter_config.json", trained.CONFIG]
    assert asked == [("somebody/adsc-llava", files)]


BROKEN = {
    "no method": (lambda f: (f / trained.METHOD).unlink(), "has no foveate_method.json"),
    "no weights": (lambda f: (f / adapter.WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "no config": (lambda f: (f / adapter.CONFIG).unlink(), "has no adapter_config.json"),
    "method is no JSON": (lambda f: (f / trained.METHOD).write_text("{"), "cannot read foveate_method.json"),
    "a number that no float holds": (
        lambda f: (f / trained.METHOD).write_text('{"method": {}, "model": {"family": "llava", "layers": 1e999}}'),
        "the number 1e999 is too large",
    ),
    "method is nested deeply": (lambda f: (f / trained.METHOD).write_text("[" * 3000), "nested too deeply"),
    "config is nested deeply": (lambda f: (f / adapter.CONFIG).write_text("[" * 3000), "cannot read the adapter"),
    "method is another thing": (lambda f: (f / trained.METHOD).write_text("[1]"), "cannot read foveate_method.json"),
    "unknown option": (
        lambda f: (f / trained.METHOD).write_text(
            json.dumps({"method": {"method": "adsc", "stride": 1}, "model": {"family": "llava", "layers": 6}})
        ),
        "ADSC has no option 'stride'",
    ),
    "weights are none": (lambda f: (f / adapter.WEIGHTS).write_bytes(b"junk"), "cannot read the adapter"),
    "config is none": (lambda f: (f / adapter.CONFIG).write_text("{"), "cannot read the adapter"),
    "not LoRA": (lambda f: edit(f / adapter.CONFIG, peft_type="IA3", feedforward_modules=[]), "only LoRA"),
    "other layers": (lambda f: edit(f / adapter.CONFIG, target_modules="nothing"), "does not fit the model"),
    "other rank": (lambda f: edit(f / adapter.CONFIG, r=8), "does not fit the model"),
    "more layers": (
        lambda f: edit(f / adapter.CONFIG, target_modules=TARGETS.replace("(q_proj", "(v_proj|q_proj")),
        "missing",
    ),
    "fewer layers": (
        lambda f: edit(f / adapter.CONFIG, target_modules=TARGETS.replace("q_proj|", "")),
        "have no place",
    ),
}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(folder_of("llava", tmp_path_factory.mktemp("adapter") / "run"))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_leave_the_model_alone(name: str, whole: Path, tmp_path: Path) -> None:
    damage, sentence = BROKEN[name]
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run")
    model = tiny.model("llava", fresh=True)
    before = state_of(model)
    with pytest.raises(AdapterError, match=sentence):
        foveate.compress(model, str(tmp_path / "run"))
    assert state_of(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_other_models(whole: Path) -> None:
    with pytest.raises(AdapterError, match="is for a llava with 6 decoder layers, and this model is a qwen2_vl with 6"):
        foveate.compress(tiny.model("qwen2_vl"), str(whole))
    wider = tiny.build(tiny.config("llava", hidden_size=96))
    with pytest.raises(AdapterError, match="whose tokens have 64 channels, and this one's have 96"):
        foveate.compress(wider, str(whole))
    with pytest.raises(AdapterError, match="has an adapter already"):
        foveate.compress(adapted("llava"), str(whole))


def test_folders_of_before_there_were_learned_parts(whole: Path, tmp_path: Path) -> None:
    """They say neither which files they have nor how wide their model is."""
    shutil.copytree(whole, tmp_path / "run")
    content = json.loads((tmp_path / "run" / trained.METHOD).read_text())
    old = {"method": content["method"], "model": {name: content["model"][name] for name in ("family", "layers")}}
    (tmp_path / "run" / trained.METHOD).write_text(json.dumps(old))
    with foveate.compress(tiny.model("llava", fresh=True), tmp_path / "run") as handle:
        assert handle.method == ADSC(keep=0.4)
    wider = tiny.build(tiny.config("llava", hidden_size=96))
    with pytest.raises(AdapterError, match="does not fit the model"):
        foveate.compress(wider, tmp_path / "run")
    (tmp_path / "run" / adapter.WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model.safetensors"):
        foveate.compress(tiny.model("llava"), tmp_path / "run")


def test_what_is_neither(tmp_path: Path) -> None:
    model = tiny.model("llava")
    for name in ("./nowhere", str(tmp_path / "none"), "a/b/c", "../x"):
        with pytest.raises(UnknownNameError, match="neither a method, nor a folder"):
            foveate.compress(model, name)
    with pytest.raises(UnknownNameError, match="there is no method 'adscc'"):
        foveate.compress(model, "adscc")


def test_a_path_is_a_folder(whole: Path) -> None:
    model = tiny.model("llava", fresh=True)
    with foveate.compress(model, str(whole)) as handle:
        expected = handle.method
    with foveate.compress(model, whole) as handle:
        assert handle.method == expected
    with pytest.raises(UnknownNameError, match="neither a method, nor a folder"):
        foveate.compress(model, whole / "nowhere")


def test_a_training_that_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / "run" / trained.CHECKPOINTS).mkdir(parents=True)
    with pytest.raises(AdapterError, match="has not ended: the same `foveate train` command goes on"):
        foveate.compress(tiny.model("llava"), str(tmp_path / "run"))


def test_one_handle_at_a_time(whole: Path) -> None:
    model = tiny.model("llava", fresh=True)
    with foveate.compress(model, FastV()), pytest.raises(UnsupportedModelError, match="already carries"):
        foveate.compress(model, str(whole))
    with foveate.compress(model, str(whole)), pytest.raises(UnsupportedModelError, match="already carries"):
        foveate.compress(model, FastV())
    with pytest.raises(ConfigError, match="has its options already"):
        foveate.compress(model, str(whole), layer=3)


def test_a_method_that_cannot_be_attached_takes_its_adapter_with_it(tmp_path: Path) -> None:
    source = folder_of("llava", tmp_path / "run", foveate.VTW(layer=99))
    model = tiny.model("llava", fresh=True)
    before = state_of(model)
    with pytest.raises(FoveateError, match="no decoder layer 99"):
        foveate.compress(model, source)
    assert state_of(model) == before


def test_a_missing_extra_is_one_sentence(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(AdapterError, match="pip install 'peft"):
        foveate.compress(tiny.model("llava"), str(whole))
