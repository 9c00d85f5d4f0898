"""What cannot be served is refused when the engine is configured, before any weight is loaded, with a sentence."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("vllm")

import tiny
import vllm
from served import folder
from transformers import AutoConfig, LlamaConfig, MistralConfig
from vllm.engine.arg_utils import EngineArgs

from foveate import ADSC, IPCV, OIM, FastV, Random
from foveate.serving.vllm import register

LUVC = {"method": "luvc"}
DRAFTS = {"model": str(folder("qwen2_5_vl")), "num_speculative_tokens": 1}
WORDS = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no object": ("luvc", {}, "expected an object such as"),
    "no method": ({"keep": 0.5}, {}, 'a method is an object with a "method" name'),
    "unknown method": ({"method": "luvcc"}, {}, "there is no method 'luvcc' (the nearest is 'luvc'); there are"),
    "unknown option": ({**LUVC, "share": 0.5}, {}, "LUVC has no option 'share'; it has"),
    "keep above one": ({**LUVC, "keep": 1.5}, {}, "keep=1.5 is not a ratio"),
    "keep of the wrong type": ({**LUVC, "keep": "half"}, {}, "LUVC.keep='half': give a number"),
    "no such layer": ({"method": "random", "layer": 9}, {}, "there is no decoder layer 9: the model has 6"),
    "decoding": ({"method": "dycoke"}, {}, "acts on the KV cache while decoding"),
    "positions": (Random(positions="renumber").to_dict(), {}, 'positions="renumber" is not served'),
    "encoders side by side": (OIM().to_dict(), {"mm_encoder_tp_mode": "data"}, "leave that out, or use a method"),
    "a piece of a question": (FastV().to_dict(), {}, "add --no-enable-chunked-prefill"),
    "images in pieces": (
        ADSC().to_dict(),
        {"enable_chunked_prefill": True, "long_prefill_token_threshold": 64},
        "leave --long-prefill-token-threshold out",
    ),
    "contexts side by side": (
        ADSC().to_dict(),
        {"tensor_parallel_size": 4, "decode_context_parallel_size": 2},
        "no context parallelism",
    ),
    "a draft model": (Random().to_dict(), {"speculative_config": DRAFTS}, "features that a draft model does not know"),
    "drafts of words": (ADSC().to_dict(), {"speculative_config": WORDS}, "where drafts are not supported"),
    "pipelines": (Random().to_dict(), {"pipeline_parallel_size": 2}, "no pipeline parallelism"),
}


def configure(asked: Any, path: Any = None, **options: Any) -> Any:
    """The engine's config, without an engine."""
    register()
    args = EngineArgs(str(path or folder("qwen2_5_vl")), additional_config={"foveate": asked}, **options)
    return args.create_engine_config()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    asked, options, sentence = REFUSED[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011  (some reach us inside a report of pydantic)
        configure(asked, **options)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("layers", [[-3, -2], [-2]])
def test_features_of_several_layers(layers: list[int], tmp_path: Any) -> None:
    """There is no one place where tokens that were parked could come back; after the tower any method may act."""
    config = AutoConfig.from_pretrained(folder("llava_next"))
    config.vision_feature_layer = layers
    config.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(folder("llava_next") / name, tmp_path)
    configure(Random().to_dict(), tmp_path)
    with nullcontext() if len(layers) == 1 else pytest.raises(Exception, match=r"several of its layers .*\[-3, -2\]"):
        configure(IPCV().to_dict(), tmp_path)


@pytest.mark.parametrize("kinds", [None, ["sliding_attention", "full_attention"] * 3, ["full_attention"] * 6])
def test_sliding_windows(kinds: Any, tmp_path: Any) -> None:
    """They are of tokens that are left here, and of the whole prompt in transformers; where they have all, both agree."""
    config = AutoConfig.from_pretrained(folder("llava"))
    text = {name: value for name, value in config.text_config.to_dict().items() if name != "model_type"}
    made: Any = MistralConfig(**text | {"sliding_window": 256})
    if kinds:
        made.layer_types = kinds
    config.text_config = made
    config.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(folder("llava") / name, tmp_path)
    full = kinds is not None and "sliding_attention" not in kinds
    for method in (Random(), OIM(), ADSC(layers=(1, 3))):
        with nullcontext() if full else pytest.raises(Exception, match=r"windows of 256.* give --max-model-len 64,"):
            configure(method.to_dict(), tmp_path, max_model_len=128)
        configure(method.to_dict(), tmp_path, max_model_len=64)
    configure(IPCV().to_dict(), tmp_path, max_model_len=128)


def test_a_model_that_is_not_served(tmp_path: Any) -> None:
    text: dict[str, Any] = dict(
        hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    LlamaConfig(architectures=["LlamaForCausalLM"], **text).save_pretrained(tmp_path)
    with pytest.raises(Exception, match=r"does not serve LlamaForCausalLM in vLLM; it serves .*Qwen2_5_VL"):
        configure(LUVC, tmp_path, skip_tokenizer_init=True)


def test_another_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    with pytest.raises(Exception, match=r"serves in vLLM 0\.32\.x, and this is 0\.33\.1"):
        configure(LUVC)


def test_another_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(Exception, match="leave VLLM_USE_V2_MODEL_RUNNER=1 out"):
        configure(LUVC)


def test_silent_unless_asked() -> None:
    """Without the key nothing is changed, whatever else is in the config."""
    register()
    register()
    config = EngineArgs(str(folder("qwen2_5_vl")), additional_config={"other": 1}).create_engine_config()
    assert config.model_config.hf_config.architectures == ["Qwen2_5_VLForConditionalGeneration"]
    assert config.cache_config.enable_prefix_caching


def test_the_method_is_part_of_the_hash() -> None:
    """Compiled graphs and cached prefixes of one method are not another one's."""
    hashes = {configure({**LUVC, "keep": keep}).compute_hash() for keep in (0.5, 0.6)}
    assert len(hashes) == 2


def test_the_config_travels(tmp_path: Any) -> None:
    """To other processes, by pickle, with what was checked."""
    import copy

    config = copy.deepcopy(configure(LUVC)).model_config
    assert config._foveate_settings.method.name() == "luvc"
    assert tiny.LAYERS - 1 in config._foveate_settings.plan.layers
