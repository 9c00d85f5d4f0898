"""Caches other than the default one: sliding and full layers in turn, quantised, offloaded, made by the user."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import tiny
import torch
import transformers
from calls import ROWS, close, generate
from compared import depends_on_text
from packaging.version import Version
from plans import PLANS
from stand_ins import lossless
from transformers import DynamicCache, LlavaConfig
from transformers.cache_utils import Cache, DynamicLayer

import foveate
from foveate.errors import UnsupportedCacheError
from foveate.runtime.cache import CompactMixin

WINDOW = 20  # shorter than every prompt with an image
TYPES = ["sliding_attention", "full_attention"] * (tiny.LAYERS // 2)
FEW = ["stride", "cascade", "fastv", "tome", "visionzip", "vtw", "renumber", "luvc", "ipcv", "adsc"]
LOGITS: dict[str, Any] = dict(output_logits=True, return_dict_in_generate=True)


@cache
def hybrid(family: str, impl: str = "sdpa") -> Any:
    """A tiny model every second layer of whose language model slides."""
    slides = dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0, layer_types=TYPES)
    if family != "llava":
        return tiny.build(tiny.config(family, **slides), impl)
    config = tiny.config(family)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {name: getattr(config.text_config, name) for name in (*names, "num_key_value_heads", "pad_token_id")}
    text |= dict(model_type="qwen2", bos_token_id=None, eos_token_id=None) | slides
    whole = LlavaConfig(
        vision_config=config.vision_config, text_config=text, image_token_index=config.image_token_index
    )
    return tiny.build(whole, impl)


def text(family: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """``(B, L)``: what is neither an image nor padding."""
    return ~tiny.visual_mask(family, batch) & batch["attention_mask"].bool()


# -- sliding and full layers in turn ------------------------------------------------------------------------------------


hybrids = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])


@hybrids
@pytest.mark.parametrize("method", [foveate.FastV(ratio=1.0), foveate.LUVC(keep=1.0)], ids=repr)
def test_a_hybrid_with_nothing_removed_is_stock(family: str, impl: str, method: foveate.Method) -> None:
    model, batch = hybrid(family, impl), tiny.inputs(family, ROWS[family])
    with torch.no_grad():
        logits, stock = model(**batch).logits, generate(model, batch, **LOGITS)
        with foveate.compress(model, method):
            assert torch.equal(model(**batch).logits, logits)
            ours: Any = generate(model, batch, **LOGITS)
    assert torch.equal(ours.sequences, stock.sequences)
    assert all(map(torch.equal, ours.logits, stock.logits))


@hybrids
@pytest.mark.parametrize("plan", FEW)
def test_a_hybrid_batch_is_its_rows(family: str, impl: str, plan: str) -> None:
    model, rows = hybrid(family, impl), ROWS[family]
    batch = tiny.inputs(family, rows)
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        together = model(**batch).logits
        said: Any = generate(model, batch, **LOGITS)
        for i in range(len(rows)):
            alone = tiny.inputs(family, rows, only=i)
            here = text(family, alone)[0]
            close(together[i][batch["attention_mask"][i].bool()][here], model(**alone).logits[0][here])
            once: Any = generate(model, alone, **LOGITS)
            for a, b in zip(once.logits, said.logits, strict=True):
                close(a[0], b[i])


@hybrids
@pytest.mark.parametrize("plan", [plan for plan in FEW if not depends_on_text(PLANS[plan])])
def test_a_cached_step_of_a_hybrid_is_a_full_forward(family: str, plan: str) -> None:
    model, batch = hybrid(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        steps: Any = generate(model, batch, **LOGITS)
        longer = dict(batch, input_ids=steps.sequences)
        for name in ("attention_mask", "mm_token_type_ids"):
            if name in batch:
                longer[name] = torch.nn.functional.pad(batch[name], (0, 4), value=int(name == "attention_mask"))
        full = model(**longer).logits[:, -5:-1]
        beams = generate(model, batch, num_beams=3)
        looked_up = generate(model, tiny.inputs(family, ROWS[family][:1]), prompt_lookup_num_tokens=3)
    for step in range(4):
        close(full[:, step], steps.logits[step])
    lengths = [entry.keys.shape[-2] for entry in steps.past_key_values.layers]
    assert max(lengths[::2]) < WINDOW
    assert beams.shape == steps.sequences.shape
    assert torch.equal(looked_up[0, -4:], steps.sequences[0, -4:])


# -- caches that hold something else than tensors ----------------------------------------------------------------------


@pytest.fixture
def full_attention(family: str) -> None:
    if tiny.slides(family) or family in tiny.RECURRENT:
        pytest.skip("stock code makes such a cache for full attention only")


@pytest.mark.usefixtures("full_attention")
@pytest.mark.parametrize("plan", ["stride", "cascade", "fastv", "tome", "visionzip", "vtw", "adsc", "renumber"])
def test_a_quantised_cache_that_loses_nothing_is_the_usual_one(family: str, plan: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
        usual: Any = generate(model, batch, **LOGITS)
        lengths = handle.report().kv_lengths
        ours: Any = generate(model, batch, past_key_values=lossless(), **LOGITS)
        for a, b in zip(ours.logits, usual.logits, strict=True):
            close(a, b)
        held = [e._quantized_keys[0].shape[-2] + (e.keys.shape[-2] if e.keys.dim() == 4 else 0) for e in entries(ours)]
        assert tuple(held) == lengths


def entries(output: Any) -> list[Any]:
    return list(output.past_key_values.layers)


@pytest.mark.skipif(not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"), reason="5.16 has no backend of its own")
@pytest.mark.usefixtures("full_attention")
@pytest.mark.parametrize("method", [foveate.Stride(keep=1.0), foveate.Stride(layers=(0, 2)), foveate.LUVC()], ids=repr)
def test_a_quantised_cache_of_transformers(family: str, method: foveate.Method) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:2])
    quantised: Any = dict(cache_implementation="quantized", cache_config={"backend": "fp8"})
    with torch.no_grad():
        stock: Any = generate(model, batch, **quantised, **LOGITS)
        with foveate.compress(model, method):
            exact: Any = generate(model, batch, **LOGITS)
            ours: Any = generate(model, batch, **quantised, **LOGITS)
    close(ours.logits[0], exact.logits[0])  # the prefill sees what it has not quantised yet
    assert all(logits.isfinite().all() for logits in ours.logits)
    if method == foveate.Stride(keep=1.0):
        assert torch.equal(ours.sequences, stock.sequences)
        assert all(map(torch.equal, ours.logits, stock.logits))


class Stream:
    """A stream where there is none."""

    def wait_stream(self, other: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


@pytest.mark.parametrize("plan", ["stride", "cascade", "fastv", "tome", "adsc", "renumber"])
@pytest.mark.parametrize("mixed", [False, True])
def test_offloaded_entries_come_and_go(plan: str, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache moves its entries away after each update and back before the next; here to where they are, and counts."""
    model, batch = hybrid("llava") if mixed else tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    moved: list[int] = []

    def offloaded() -> Cache:
        cache: Any = DynamicCache(config=model.config)
        cache.offloading, cache.only_non_sliding, cache.prefetch_stream = True, True, Stream()
        offload = cache.offload

        def counted(i: int, *rest: Any) -> None:
            moved.append(i)
            offload(i, *rest)

        monkeypatch.setattr(cache, "offload", counted)
        kept: Cache = cache
        return kept

    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    with torch.no_grad(), foveate.compress(model, PLANS[plan]) as handle:
        usual: Any = generate(model, batch, **LOGITS)
        lengths = handle.report().kv_lengths
        ours: Any = generate(model, batch, past_key_values=offloaded(), **LOGITS)
        assert handle.report().kv_lengths == lengths
    assert torch.equal(ours.sequences, usual.sequences)
    assert all(map(torch.equal, ours.logits, usual.logits))
    assert moved == list(range(tiny.LAYERS)) * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading moves entries from a GPU")
@pytest.mark.parametrize("plan", ["stride", "cascade", "fastv", "tome", "adsc", "renumber"])
def test_an_offloaded_cache(family: str, plan: str) -> None:
    model = tiny.model(family, fresh=True).cuda()
    batch = {name: value.cuda() for name, value in tiny.inputs(family, ROWS[family]).items()}
    with torch.no_grad(), foveate.compress(model, PLANS[plan]):
        usual = generate(model, batch)
        assert torch.equal(generate(model, batch, cache_implementation="offloaded"), usual)


@pytest.mark.usefixtures("full_attention")
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_that_makes_its_entries_when_asked(family: str, name: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    if name == "cache" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("a name since transformers 5.24")
    with torch.no_grad(), foveate.compress(model, foveate.Stride(ratio=0.5, layers=(0, 3))) as handle:
        expected = model(**batch).logits
        lengths = handle.report().kv_lengths
        cache = DynamicCache()
        assert torch.equal(model(**batch, **{name: cache}).logits, expected)
        assert handle.report().kv_lengths == lengths
        assert sum(isinstance(entry, CompactMixin) for entry in cache.layers) == tiny.LAYERS


# -- saved, and made of tensors ------------------------------------------------------------------------------------------


def saved(cache: Any) -> Any:
    """The same, after a round trip through a file."""
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"torch.save": saved, "pickle": lambda cache: pickle.loads(pickle.dumps(cache)), "deepcopy": deepcopy}
SOME = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5"])


def one_more(family: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The input of a step after ``batch``."""
    rows = len(batch["input_ids"])
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    step = {"input_ids": torch.full((rows, 1), 20), "attention_mask": mask}
    return step | ({"position_ids": torch.full((3, rows, 1), 40)} if family in tiny.PACKED else {})


@SOME
@pytest.mark.parametrize("plan", ["cascade", "tome", "renumber", "decode"])
@pytest.mark.parametrize("how", COPIES)
def test_a_saved_cache_goes_on(family: str, plan: str, how: str) -> None:
    """Under the same handle, as if it had not been saved; without one it says its sentence."""
    if plan == "decode" and family == "gemma3":
        pytest.skip("sliding layers have no decode sites")
    method = foveate.DyCoke(ratio=1.0, decode_ratio=0.5, layer=4) if plan == "decode" else PLANS[plan]
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    step = one_more(family, batch)
    with torch.no_grad():
        with foveate.compress(model, method):
            cache = model(**batch).past_key_values
            copy = COPIES[how](cache)
            assert torch.equal(model(**step, past_key_values=copy).logits, model(**step, past_key_values=cache).logits)
            copy = COPIES[how](copy)
        with pytest.raises(UnsupportedCacheError, match="filled under a foveate handle"):
            model(**one_more(family, step), past_key_values=copy)


@SOME
@pytest.mark.parametrize("plan", ["stride", "cascade", "fastv"])
def test_a_cache_made_of_the_tensors_of_a_reduced_one(family: str, plan: str) -> None:
    """Which tokens they are is lost: refused, whether all layers have lost the same or not. A whole one goes on."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    step = one_more(family, batch)

    def rebuilt(full: Any) -> Any:
        new = deepcopy(full)
        for i, entry in enumerate(full.layers):
            if isinstance(entry, DynamicLayer):
                new.layers[i] = DynamicLayer()
                new.layers[i].update(entry.keys, entry.values)
        return new

    with torch.no_grad():
        whole = model(**batch).past_key_values
        with foveate.compress(model, PLANS[plan]):
            cache = model(**batch).past_key_values
            with pytest.raises(UnsupportedCacheError, match=r"says that it holds .* not which tokens they are"):
                model(**step, past_key_values=rebuilt(cache))
            after = model(**step, past_key_values=deepcopy(whole)).logits
            if family != "gemma3":  # whose entries slide
                assert torch.equal(model(**step, past_key_values=rebuilt(whole)).logits, after)
