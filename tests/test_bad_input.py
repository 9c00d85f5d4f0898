"""Bad input: each is one clear sentence, and the model is left as it was."""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from contextlib import suppress
from copy import deepcopy
from importlib.metadata import requires
from typing import Any

import pytest
import tiny
import torch
from refusals import ERRORS, ROWS, At, left_as_it_was, refused
from snapshot import state_of
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM

import foveate
from foveate import (
    ADSC,
    IPCV,
    DivPrune,
    Downsample,
    DyCoke,
    FastV,
    FoveateError,
    Method,
    Random,
    Site,
    Stride,
    ToMe,
    V2Drop,
    VisionZip,
    models,
)
from foveate.errors import (
    ConfigError,
    UnknownNameError,
    UnsupportedCacheError,
    UnsupportedModelError,
    UnsupportedSiteError,
)

METHODS = [
    *(Stride(), FastV(), V2Drop(), DivPrune(), ToMe(), VisionZip(keep=0.5), Downsample(), DyCoke(), ADSC(), IPCV()),
    foveate.LUVC(),
]
#: whether stock Idefics3 counts placeholders
COUNTS = hasattr(GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation")
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name())


# -- models -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("installed", ["5.15.1", "6.0.0.dev0"])
def test_a_transformers_that_is_not_known(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "version", lambda name: installed)
    refused(
        tiny.model("llava"),
        Stride(),
        UnsupportedModelError,
        f"this is {installed}: pip install 'transformers>=5.16,<6'",
    )


def test_the_requirement_names_the_same_versions() -> None:
    (required,) = [line for line in requires("foveate") or [] if line.startswith("transformers")]
    first, end = models.TRANSFORMERS
    assert set(required.removeprefix("transformers").split(",")) == {f">={first}", f"<{end}"}
    for known in (first, f"{first}.0", "5.20.2", "5.24.0.dev0", "5.99.9"):
        models.check_version(known)


def test_unknown_family() -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    batch = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8)}
    model = LlamaForCausalLM(config).eval()
    with left_as_it_was(model, batch):
        refused(model, Stride(), UnsupportedModelError, "'llama'.*llava, .*qwen2_5_vl, qwen2_vl")


@pytest.mark.parametrize(
    "thing", [None, 3, object(), nn.Linear(2, 2), tiny.FAMILIES], ids=lambda thing: type(thing).__name__
)
def test_no_model_at_all(thing: Any) -> None:
    refused(thing, Stride(), UnsupportedModelError, "not a Hugging Face model")


def test_the_name_of_a_model() -> None:
    refused("model", Stride(), UnsupportedModelError, "'model' is a name, not a model: load it first")


def test_a_part_of_a_model(family: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        for part in {tiny.base(model), tiny.lm(model)} - {model}:
            refused(part, Stride(), UnsupportedModelError)


@pytest.mark.parametrize("part", ["", "model", "model.language_model", "model.language_model.layers.1"])
def test_compiled(part: str) -> None:
    model = tiny.model("qwen2_5_vl", fresh=True)
    model.get_submodule(part).compile(backend="eager")
    state = state_of(model)
    refused(model, Stride(), UnsupportedModelError, "compiled")
    assert state_of(model) == state


def test_compiled_wrapper(family: str) -> None:
    model = tiny.model(family, fresh=True)
    compiled = torch.compile(model, backend="eager")  # compiles nothing before its first call
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        refused(compiled, Stride(), UnsupportedModelError, "compiled")


@pytest.mark.filterwarnings("ignore")
def test_compiled_after_attaching() -> None:
    """Compressed or refused: never compressed before and silently stock afterwards. And stock once it is removed."""
    model = tiny.build(tiny.config("llava", num_hidden_layers=2))
    batch = tiny.inputs("llava", ROWS[:1])
    stock = tiny.text_logits(model, batch)
    try:
        with foveate.compress(model, Stride()):
            reduced = tiny.text_logits(model, batch)
            model.model.language_model.compile(backend="eager")
            with suppress(UnsupportedModelError):  # a sentence is fine, too
                torch.testing.assert_close(tiny.text_logits(model, batch), reduced)
        torch.testing.assert_close(tiny.text_logits(model, batch), stock)
    finally:
        torch._dynamo.reset()


def test_weights_that_are_on_no_device() -> None:
    """Stock code computes shapes there; a method needs to know how many tokens there are, which are numbers."""
    with torch.device("meta"):
        model = tiny.CLASSES["llava"](tiny.config("llava")).eval()
    batch = tiny.inputs("llava", ROWS)
    with (
        foveate.compress(model, FastV()),
        pytest.raises(UnsupportedModelError, match=r"on the device 'meta'.*that is there"),
    ):
        model(**{name: value.to("meta") for name, value in batch.items()})


# -- methods ------------------------------------------------------------------------------------------------------------


def test_unknown_method(family: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        for name in ("fastw", "", "FastV2", "fastv+", "stride, vtw"):
            refused(model, name, UnknownNameError, "there are adaptivevoco, adsc, .*dycoke, .*fastv, .*ipcv")


@pytest.mark.parametrize(
    "name", ["fastv", "stride", "random", "divprune", "visionzip", "tome", "downsample", "dycoke", "ipcv"]
)
def test_ratio_out_of_range(name: str) -> None:
    model = tiny.model("llava")
    with left_as_it_was(model, tiny.inputs("llava", ROWS)):
        for keep in (-0.5, -1e-9, 1.0001, 50, float("nan"), float("inf"), "0.5"):
            refused(model, name, ConfigError, "keep", keep=keep)


@pytest.mark.parametrize("keeps", [(0.5, 0.5, 1.5), (-1.0, 0.5, 0.5)])
def test_one_of_several_ratios_out_of_range(keeps: tuple[float, ...]) -> None:
    model = tiny.model("llava")
    with left_as_it_was(model, tiny.inputs("llava", ROWS)):
        refused(model, "v2drop", ConfigError, "keep", keeps=keeps)


def test_layer_out_of_range(family: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        for layer in (tiny.LAYERS, 99, -tiny.LAYERS - 1, -99):
            sentence = f"no .* layer {layer}: .* {tiny.LAYERS} .* 0 to {tiny.LAYERS - 1}"
            single = [
                FastV(layer=layer),
                foveate.VTW(layer=layer),
                DyCoke(ratio=1.0, layer=layer),
                Stride(layers=(0, layer)),
            ]
            for method in (*single, Stride() + FastV(layer=layer)):
                refused(model, method, UnsupportedSiteError, sentence)


WRONG_FOR_IPCV: list[tuple[dict[str, Any], str]] = [
    ({"block": 0}, "block=0 is too small: give at least 1"),
    ({"block": -1}, "at least 1"),
    ({"stabilise": -1}, "stabilise=-1 is too small: give at least 0"),
    ({"neighbours": 0}, "neighbours=0 is too small: give at least 1"),
    ({"min_tokens": -1}, "min_tokens=-1 is too small: give at least 0"),
    ({"across": "batch"}, "across"),
    ({"block": tiny.BLOCKS}, f"block=4 leaves none to save work in.*give 1 to {tiny.BLOCKS - 1}"),
    ({"block": 2, "stabilise": 3}, "stabilise=3 is too many.*from block 2 on 2"),
]


def test_ipcv_that_does_not_fit(family: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        for options, sentence in WRONG_FOR_IPCV:
            refused(model, "ipcv", ConfigError, sentence, **options)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (IPCV() + ToMe(), "tome acts at tower 1 .mid. on what ipcv has left.*parked since tower 1: use one of the two"),
        (ToMe() + IPCV(), "tome acts at"),
        (IPCV() + IPCV(block=2), "ipcv acts at tower 2 on what ipcv has left"),
        (VisionZip() + IPCV(), "visionzip acts at tower_output.*later in the sum"),
    ],
    ids=repr,
)
def test_two_methods_cannot_share_what_is_parked(family: str, method: Method, sentence: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        refused(model, method, UnsupportedSiteError, sentence)


def test_negative_layers_count_from_the_end(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    logits = []
    for layer in (-2, tiny.LAYERS - 2):
        with foveate.compress(model, FastV(ratio=0.25, layer=layer)):
            logits.append(tiny.text_logits(model, batch))
    assert torch.equal(*logits)


def test_positions_that_contradict_each_other(family: str) -> None:
    model = tiny.model(family)
    with left_as_it_was(model, tiny.inputs(family, ROWS)):
        refused(model, DivPrune(positions="native") + FastV(), ConfigError, "agree on positions")
        refused(model, FastV(positions="native"), ConfigError, "renumber")


# -- handles ------------------------------------------------------------------------------------------------------------


def test_attaching_twice(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with left_as_it_was(model, batch):
        with foveate.compress(model, FastV()):
            state, logits = state_of(model), tiny.text_logits(model, batch)
            for second in (FastV(), Stride(), "tome"):
                refused(model, second, UnsupportedModelError, r"already carries FastV.*compress\(model, a \+ b\)")
            assert state_of(model) == state
            assert torch.equal(tiny.text_logits(model, batch), logits)
        with foveate.compress(model, Stride()):  # free again
            pass


@pytest.mark.parametrize("end", ["removed", "kept", "lost", "error"])
def test_a_model_is_freed_with_its_method(end: str) -> None:
    """Nothing else holds an attached model, nor its weights: not the library, nor what a broken call left."""
    model, batch = tiny.build(tiny.config("qwen2_5_vl")), tiny.inputs("qwen2_5_vl", ROWS[:1])
    known = [weakref.ref(each) for each in (model, *model.parameters(), *model.modules())]
    handle: Any = foveate.compress(model, IPCV() + FastV(layer=1) + DyCoke(ratio=1.0, layer=2))
    model.generate(**batch, max_new_tokens=3)
    assert foveate.attached(model) is handle
    if end == "removed":
        handle.remove()
        assert foveate.attached(model) is None
    if end == "error":
        broken = model.get_submodule("lm_head").register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**batch)
        broken.remove()
    if end == "lost":
        del handle
        gc.collect()
        refused(model, Stride(), UnsupportedModelError, r"already carries .*foveate.attached\(model\)` gives it")
        found = foveate.attached(model)
        assert found is not None
        assert found.report().decode_steps == 2
        del found
    handle = None
    del model
    gc.collect()
    assert not any(each() is not None for each in known)


def test_an_attached_model_is_not_copied_or_pickled() -> None:
    model = tiny.build(tiny.config("llava"))
    with foveate.compress(model, FastV()) as handle:
        for copy in (deepcopy, pickle.dumps, lambda each: torch.save(each, io.BytesIO())):
            for thing in (model, handle, tiny.tower(model)):
                with pytest.raises(
                    UnsupportedModelError, match=r"remove the handle first \(foveate.attached\(model\).remove\(\)\)"
                ):
                    copy(thing)
        assert set(model.state_dict()) == set(tiny.build(tiny.config("llava")).state_dict())
    pickle.dumps(model)
    deepcopy(model)


def test_outputs_are_pickled_alone() -> None:
    """With what every layer gives, they have nothing of model or handle; the model is then what the same call makes of stock's,
    whose hooks for these states nothing pickles."""
    model, stock = (tiny.build(tiny.config("llava"), "eager") for _ in range(2))
    batch: Any = tiny.inputs("llava", ROWS) | dict(output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        stock(**batch)
        handle = foveate.compress(model, foveate.LUVC())
        out = model(**batch)
        data = pickle.dumps(out)
        assert pickle.dumps(out.hidden_states)
        handle.remove()
    known = weakref.ref(handle)
    del handle
    gc.collect()
    assert known() is None
    assert b"Handle" not in data
    assert b"ForConditionalGeneration" not in data
    again = pickle.loads(data)
    assert all(map(torch.equal, again.hidden_states, out.hidden_states))
    assert why_not_pickled(model) == why_not_pickled(stock)


def why_not_pickled(thing: Any) -> str:
    try:
        pickle.dumps(thing)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        return str(error)
    return ""


PLACES = [
    *(Site("pixels"), Site("tower", 2), Site("tower", 1, where="mid"), Site("tower_output"), Site("lm_entry")),
    *(Site("decoder", 2), Site("decode", 2, signals=("last_row",))),
]


@pytest.mark.parametrize("site", PLACES, ids=str)
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_inside_a_forward(family: str, site: Site, error: str) -> None:
    """The context manager takes everything off, and the error passes unchanged."""
    if site.at == "decode" and tiny.slides(family):
        pytest.skip("sliding layers have no decode sites")
    if site.at == "pixels" and family in tiny.tiles.OVIS:
        pytest.skip("its tower takes images of one size")
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    method = At(places=(site,), error=error)
    with (
        left_as_it_was(model, batch),
        pytest.raises(ERRORS[error], match="the method"),
        foveate.compress(model, method),
    ):
        model.generate(**batch, max_new_tokens=3)


# -- calls --------------------------------------------------------------------------------------------------------------


def stock_with_a_static_cache(model: Any, batch: dict[str, Tensor], **greedy: Any) -> Tensor:
    """The ids; transformers 5.16 cannot make the masks of images where layers slide."""
    try:
        ids: Tensor = model.generate(**batch, **greedy, cache_implementation="static")
    except IndexError:
        pytest.skip("this transformers has no static cache for this family")
    return ids


@pytest.mark.parametrize("method", [Stride(), FastV(), VisionZip(keep=0.5), DyCoke(), ToMe()], ids=lambda m: m.name())
def test_static_cache(family: str, method: Method) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS)
    greedy: dict[str, Any] = dict(max_new_tokens=4, do_sample=False)
    stock_with_a_static_cache(model, batch, **greedy)  # leaves its cache on the model
    with left_as_it_was(model, batch), foveate.compress(model, method):
        ids = model.generate(**batch, **greedy)
        with pytest.raises(UnsupportedCacheError, match=r"Static\w*Layer.*DynamicCache"):
            model.generate(**batch, **greedy, cache_implementation="static")
        assert torch.equal(model.generate(**batch, **greedy), ids)


def test_static_cache_that_nothing_reduces(family: str) -> None:
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS)
    greedy: dict[str, Any] = dict(max_new_tokens=4, do_sample=False)
    ids = stock_with_a_static_cache(model, batch, **greedy)
    with left_as_it_was(model, batch), foveate.compress(model, Random(keep=1.0)):
        assert torch.equal(model.generate(**batch, **greedy, cache_implementation="static"), ids)


def spoiled(family: str, how: str) -> dict[str, Tensor]:
    """A batch whose placeholders and images do not agree."""
    batch = tiny.inputs(family, ROWS)
    where = tiny.visual_mask(family, batch).nonzero()
    if how == "one placeholder less":
        batch["input_ids"][tuple(where[-1])] = tiny.TOKEN_ID["word1"]
    elif how == "one placeholder more":
        batch["input_ids"][-1, -1] = tiny.IMAGE_TOKEN[family]
    elif how == "one image less" and family not in tiny.PACKED:
        batch["pixel_values"] = batch["pixel_values"][:-1]
        for name in ("image_sizes", "image_position_ids"):
            if name in batch:
                batch[name] = batch[name][:-1]
    elif how == "one image less":
        gone = int(batch["image_grid_thw"][-1].prod())
        batch |= {"pixel_values": batch["pixel_values"][:-gone], "image_grid_thw": batch["image_grid_thw"][:-1]}
    return batch


@pytest.mark.parametrize(
    "method", [FastV(), ToMe(), VisionZip(keep=0.5), Downsample(), DyCoke()], ids=lambda m: m.name()
)
@pytest.mark.parametrize("how", ["one placeholder less", "one placeholder more", "one image less"])
def test_placeholders_that_do_not_match(family: str, method: Method, how: str) -> None:
    """Refused in whatever words, and the next call is as the one before."""
    if family == "idefics3" and how == "one placeholder less" and not COUNTS:
        pytest.skip("this transformers does not count them")
    model, batch, bad = tiny.model(family), tiny.inputs(family, ROWS), spoiled(family, how)
    with left_as_it_was(model, batch):
        for call in (tiny.text_logits, lambda model, batch: model.generate(**batch, max_new_tokens=2)):
            with pytest.raises(Exception) as stock:  # noqa: PT011 - whatever stock code raises
                call(model, bad)
            with foveate.compress(model, method):
                logits = tiny.text_logits(model, batch)
                with pytest.raises((type(stock.value), FoveateError)):
                    call(model, bad)
                assert torch.equal(tiny.text_logits(model, batch), logits)
