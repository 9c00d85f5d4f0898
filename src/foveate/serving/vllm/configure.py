"""``--additional-config '{"foveate": {"method": "luvc", "keep": 0.3, "limit": 0.5, "profiles": {"exact": "none"}}}'``: read
and checked.

All that can be wrong is said when the engine is configured, before any weight is loaded.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from foveate.errors import ConfigError, UnsupportedModelError
from foveate.method import Method
from foveate.methods import method_from_dict
from foveate.runtime.engines import host_with
from foveate.serving.budgets import KEY, Budgets, check_limit, with_adaptive
from foveate.serving.plan import Plan, make_plan
from foveate.serving.profiles import with_profiles
from foveate.serving.vllm.engine import PREFIX
from foveate.serving.vllm.families import engines
from foveate.serving.vllm.rope import FACTOR
from foveate.serving.vllm.scheduler import watch_schedulers
from foveate.serving.vllm.settings import Settings, keep
from foveate.serving.vllm.unserved import sentence

LIMIT = "limit"  # beside the method's options: up to which budget a prompt may ask for its own
ADAPTIVE = "adaptive"  # beside that: images whose prompts do not ask get budgets by their pixels
PROFILES = "profiles"  # beside them, too: other methods that it may ask for, by name


class Sent(Settings):
    """Settings that make ready the process they arrive in: its vLLM must know the model classes and the seam, too."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        make_ready()


def make_ready() -> None:
    """Tell vLLM of the model classes, by name, and watch its schedulers."""
    from vllm import ModelRegistry

    for name in set(engines()) - {known.removeprefix(PREFIX) for known in ModelRegistry.models if PREFIX in known}:
        ModelRegistry.register_model(f"{PREFIX}{name}", f"foveate.serving.vllm.model:{PREFIX}{name}")
    watch_schedulers()


def configure(vllm_config: Any) -> None:
    """Check what was asked for against the model and the engine, and change the config accordingly.

    Raises:
        FoveateError: something does not fit.
    """
    model_config = vllm_config.model_config
    asked = vllm_config.additional_config.get(KEY)
    if not isinstance(asked, dict):
        raise ConfigError(f'--additional-config: "{KEY}" is {asked!r}, expected an object such as {{"method": "luvc"}}')
    (architecture, *_), config = model_config.hf_config.architectures or [""], model_config.hf_config
    if architecture.removeprefix(PREFIX) not in engines():
        raise UnsupportedModelError(sentence(architecture, engines()))
    architecture = architecture.removeprefix(PREFIX)
    engine, method = engines()[architecture], _method(asked)
    known = engine.config(config)
    family = engine.family_of(known)
    host = host_with(family, known, known.get_text_config().num_hidden_layers)
    plan = make_plan(method, host, family, known)
    if LIMIT in asked:
        plan = replace(plan, budgets=Budgets(method, host, known, asked[LIMIT]))
        check_limit(plan)
    if ADAPTIVE in asked:
        plan = with_adaptive(plan, asked[ADAPTIVE])
    if PROFILES in asked:
        plan = with_profiles(plan, asked[PROFILES], lambda method: make_plan(method, host, family, known))
    for each in plan.plans:
        _check(vllm_config, each)
    keep(model_config, Sent(method, architecture, plan))
    config.architectures = [f"{PREFIX}{architecture}"]
    make_ready()
    if plan.layers:
        _for_inner(vllm_config, plan)


def _method(asked: dict[str, Any]) -> Method:
    return method_from_dict({name: value for name, value in asked.items() if name not in (LIMIT, ADAPTIVE, PROFILES)})


def _check(vllm_config: Any, plan: Plan) -> None:
    multimodal = vllm_config.model_config.multimodal_config
    name = plan.name
    if plan.tower and multimodal.mm_encoder_tp_mode == "data":
        raise ConfigError(
            f"{name} acts in the vision tower, which --mm-encoder-tp-mode data cuts by images: leave that out, or use a method "
            "that acts after the tower"
        )
    layers = getattr(vllm_config.model_config.hf_config, "vision_feature_layer", None)
    if plan.tower and isinstance(layers, (list, tuple)) and len(layers) > 1:
        raise ConfigError(
            f"{name} acts in the vision tower, and this model puts features of several of its layers side by side, "
            f"{list(layers)}: use a method that acts after the tower"
        )
    if vllm_config.compilation_config.cudagraph_mm_encoder:
        raise ConfigError(f"{name} cannot act on features that come from a CUDA graph: leave cudagraph_mm_encoder out")
    if multimodal.is_multimodal_pruning_enabled():
        raise ConfigError(f"--video-pruning-rate drops tokens of videos that {name} must count: leave it out")
    if vllm_config.compilation_config.compile_mm_encoder and plan.tower:
        raise ConfigError(
            f"{name} acts in the vision tower, which cannot be compiled then: leave compile_mm_encoder out"
        )
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ConfigError(
            f"{name} leaves features of which each says where it was, and of several processes one after another only the "
            "first meets them: no pipeline parallelism"
        )
    window, longest = _window(vllm_config.model_config), FACTOR * vllm_config.model_config.max_model_len
    if window is not None and window < longest and (plan.entry or plan.inner or plan.leaves_holes):
        raise UnsupportedModelError(
            f"{name} leaves fewer tokens to a language model with sliding windows of {window}: in vLLM these are of tokens "
            "that are left, in transformers of the whole prompt; use a method that restores all of them, as ipcv, or give "
            f"--max-model-len {window // FACTOR}, with which every window has all"
        )
    drafts = vllm_config.speculative_config
    if drafts is not None and drafts.method not in ("ngram", "suffix"):
        raise ConfigError(
            f"{name} leaves features that a draft model does not know: no speculative decoding, but that of "
            '{"method": "ngram"}'
        )


def _window(model_config: Any) -> int | None:
    """Return how many tokens the layers see that do not see all; None: there are none."""
    kinds = getattr(model_config.hf_text_config, "layer_types", None)
    some = kinds is None or any("sliding" in kind for kind in kinds)
    window: int | None = model_config.get_sliding_window() if some else None
    return window


def _for_inner(vllm_config: Any, plan: Plan) -> None:
    """Return what tokens that leave inside the language model ask of the engine."""
    name = " and ".join(dict.fromkeys(each.name for each in plan.plans if each.inner))
    if vllm_config.parallel_config.decode_context_parallel_size > 1:
        raise ConfigError(
            f"{name} acts inside the language model, whose cache one process must have whole: no context parallelism"
        )
    if vllm_config.speculative_config is not None:
        raise ConfigError(
            f"{name} acts inside the language model, where drafts are not supported: no speculative decoding"
        )
    if vllm_config.kv_transfer_config is not None:
        raise ConfigError(f"{name} acts inside the language model, whose cache others cannot read: no KV transfer")
    if vllm_config.parallel_config.use_ubatching:
        raise ConfigError(f"{name} acts inside the language model, which must have a step whole: no micro-batches")
    scheduler = vllm_config.scheduler_config
    if plan.whole and scheduler.enable_chunked_prefill:
        raise ConfigError(
            f"{name} wants {', '.join(plan.whole)}, so a prompt must come in one piece, whatever else is being served: add "
            "--no-enable-chunked-prefill"
        )
    if scheduler.long_prefill_token_threshold > 0:
        raise ConfigError(
            f"{name} acts inside the language model, so an image must come whole: leave "
            "--long-prefill-token-threshold out"
        )
    # A whole step as one graph would go on with the lengths that it was captured with.
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode is not None and compilation.cudagraph_mode.has_full_cudagraphs():
        none, pieces = type(compilation.cudagraph_mode).NONE, type(compilation.cudagraph_mode).PIECEWISE
        compilation.cudagraph_mode = pieces if compilation.cudagraph_mode.has_piecewise_cudagraphs() else none
    if plan.whole:  # of a prompt whose beginning was cached, a step has the rest alone
        vllm_config.cache_config.enable_prefix_caching = False
    scheduler.disable_chunked_mm_input = True


def v1_runner() -> None:
    """The seam is in vLLM's first model runner."""
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        raise ConfigError("foveate needs vLLM's first model runner: leave VLLM_USE_V2_MODEL_RUNNER=1 out")
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
