"""What is written to a folder or the hub with a method attached, and what comes back."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from snapshot import state_of

import foveate
import foveate.trained
from foveate.errors import AdapterError, UnsupportedModelError


def test_saving_the_model_says_that_the_method_is_left_out(tmp_path: Path) -> None:
    """The handle puts back what there was."""
    model = tiny.model("llava", fresh=True)
    tiny.text_logits(model, tiny.inputs("llava", [["image", 3]]))
    model.save_pretrained(tmp_path / "b")  # writes the class into the config
    before = state_of(model)
    with (
        foveate.compress(model, "stride"),
        pytest.warns(UserWarning, match=r"foveate.attached\(model\).save_pretrained"),
    ):
        model.save_pretrained(tmp_path / "a")
    assert state_of(model) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "b")
    written = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "ab"]
    assert written[0] == written[1]


#: family -> beginnings of names of weights, and what they were when most checkpoints were written
OLD = {
    "llava": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    },
    "qwen2_5_vl": {"model.language_model.": "model.", "model.visual.": "visual."},
}
OLD["mistral3"] = OLD["llava"] | {"model.vision_tower.": "vision_tower."}
OLD["internvl"] = OLD["mistral3"]


@pytest.mark.parametrize("family", OLD)
def test_weights_under_old_names_load(family: str, tmp_path: Path) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, [["image", 3]])
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for new, old in OLD[family].items():
        weights = {(old + name[len(new) :] if name.startswith(new) else name): x for name, x in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    with foveate.compress(model, "stride"):
        want = tiny.text_logits(model, batch)
    with foveate.compress(loaded, "stride"):
        assert torch.equal(tiny.text_logits(loaded, batch), want)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_say_what_to_do(copied: Any) -> None:
    model = tiny.model("llava", fresh=True)
    with (
        foveate.compress(model, "stride") as handle,
        pytest.raises(UnsupportedModelError, match=r"foveate.attached\(model\).remove\(\)"),
    ):
        copied(handle)


def answer(model: Any) -> torch.Tensor:
    processor = saved.load("llava")[1]
    inputs = processor(text=["<image> the cat"], images=[saved.picture(24, 32)], return_tensors="pt")
    found: torch.Tensor = model.generate(**inputs, do_sample=False)
    return found


def test_a_folder_gives_back_model_and_method(tmp_path: Path) -> None:
    """By the name of the model that was loaded, or beside it; a sum, too."""
    model, _ = saved.load("llava")
    method = foveate.FastV(keep=0.5) + foveate.ToMe(keep=0.5)
    with foveate.compress(model, method) as handle:
        handle.save_pretrained(tmp_path / "method")
        wanted = answer(model)
        tokens = handle.report().layer_tokens
    assert json.loads((tmp_path / "method" / "foveate_method.json").read_text())["model"]["name"] == model.name_or_path
    both = tmp_path / "both"
    shutil.copytree(saved.folder("llava"), both)
    shutil.copy(tmp_path / "method" / "foveate_method.json", both)
    for source in (tmp_path / "method", str(both)):
        with foveate.from_pretrained(source, dtype=torch.float32) as handle:
            assert handle.method == method
            assert torch.equal(answer(handle.model), wanted)
            assert handle.report().layer_tokens == tokens
    assert handle.model.name_or_path == str(both)


def test_the_model_comes_back_in_the_dtype_that_it_had(tmp_path: Path) -> None:
    """Whatever its own folder says; an option says otherwise."""
    model, _ = saved.load("llava")
    other = (
        torch.bfloat16
        if transformers.AutoConfig.from_pretrained(saved.folder("llava")).dtype != torch.bfloat16
        else torch.float16
    )
    with foveate.compress(model.to(other), "stride") as handle:
        handle.save_pretrained(tmp_path / "method")
    for options, dtype in (({}, other), ({"dtype": torch.float32}, torch.float32)):
        with foveate.from_pretrained(tmp_path / "method", **options) as handle:
            assert handle.model.dtype == dtype


def test_folders_that_give_no_model(tmp_path: Path) -> None:
    with foveate.compress(tiny.model("llava", fresh=True), "stride") as handle:
        handle.save_pretrained(tmp_path / "unnamed")
    with pytest.raises(AdapterError, match="does not say which model it belongs on"):
        foveate.from_pretrained(tmp_path / "unnamed")
    shutil.copytree(saved.folder("llava"), tmp_path / "broken")
    (tmp_path / "broken" / "foveate_method.json").write_text('{"method":')
    with pytest.raises(AdapterError, match=r"cannot read foveate_method.json in '.*broken': not JSON"):
        foveate.from_pretrained(tmp_path / "broken")
    said = json.loads((tmp_path / "unnamed" / "foveate_method.json").read_text())
    said["model"]["name"] = str(tmp_path / "gone")
    (tmp_path / "unnamed" / "foveate_method.json").write_text(json.dumps(said))
    with pytest.raises(AdapterError, match=r"cannot load '.*gone', the model of"):
        foveate.from_pretrained(tmp_path / "unnamed")


def test_the_hub_gets_what_a_folder_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    class Commit:
        commit_url = "https://hub/commit"

    def upload(self: Any, *, repo_id: str, folder_path: str, **_: Any) -> Commit:
        asked.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return Commit()

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **kwargs: asked.append((name, kwargs)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    with foveate.compress(tiny.model("llava", fresh=True), "stride") as handle:
        assert handle.push_to_hub("me/mine", private=True) == "https://hub/commit"
    assert asked == [("me/mine", {"private": True, "exist_ok": True}), ("me/mine", ["foveate_method.json"])]


def test_the_nearest_name_is_said() -> None:
    with pytest.raises(foveate.FoveateError, match=r"no method 'fstv' \(the nearest is 'fastv'\)"):
        foveate.compress(tiny.model("llava", fresh=True), "fstv")

    class Config:
        model_type = "qwen2_5vl"

    from foveate.models import family_of

    with pytest.raises(UnsupportedModelError, match=r"'qwen2_5vl' \(the nearest is 'qwen2_5_vl'\)"):
        family_of(Config())


def test_attaching_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Under the name of the package, for who asks; there is a handler that keeps it quiet else."""
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("foveate").handlers)
    with caplog.at_level("INFO", logger="foveate"), foveate.compress(tiny.model("llava", fresh=True), "stride"):
        pass
    assert [message.split()[0] for message in caplog.messages] == ["attached", "removed"]
    assert "Stride() to LlavaForConditionalGeneration" in caplog.messages[0]


def test_a_pipeline_says_where_its_model_is() -> None:
    pipe = transformers.pipeline("image-text-to-text", model=str(saved.folder("llava")))
    with pytest.raises(UnsupportedModelError, match=r"foveate.compress\(pipe.model, ...\)"):
        foveate.compress(pipe, "stride")  # type: ignore[arg-type]


def test_a_repository_with_its_model_is_loaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, as what was fetched of it to see this is not the whole model."""
    import huggingface_hub

    for name in ("foveate_method.json", "config.json"):
        (tmp_path / name).write_text('{"model": {}}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert foveate.trained.base_of("me/mine") == ("me/mine", {})
