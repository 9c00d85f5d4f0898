"""Tiny models in a real vLLM, and the same models in transformers: what each says to the same requests."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import chat
import numpy as np
import pytest
import saved
import tiny
import tiny_alike
import tiny_shared
import tiny_tiles
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

import foveate
from foveate import Method

saved.PLACES["qwen2_vl"] = saved.PLACES["qwen2_5_vl"]
saved.KIND["qwen2_vl"] = saved.VIDEO["qwen2_vl"] = "Qwen2VL"
saved.PLACES["qwen3_vl_moe"] = saved.PLACES["qwen3_vl"]
saved.KIND["qwen3_vl_moe"] = saved.VIDEO["qwen3_vl_moe"] = "Qwen3VL"
saved.PLACES["internvl_chat"] = ("<image>\n", "<video>\n")
saved.PLACES["llava_onevision"] = ("<image>\n", "<|video_pad|>\n")

for name in ("qwen3_5", "qwen3_5_moe"):
    saved.PLACES[name], saved.KIND[name], saved.VIDEO[name] = saved.PLACES["qwen3_vl"], "Qwen3VL", "Qwen3VL"
IDEFICS = ("idefics3", "smolvlm")
PIXTRAL = {"mistral3": 2, "llava_pixtral": 1}  # patches along a token
for name in (*IDEFICS, *PIXTRAL):
    saved.PLACES[name] = ("<image>", "")
GLM = ("glm4v", "glm4v_moe", "glm_ocr")
for name in GLM:
    saved.PLACES[name] = ("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")
    saved.KIND[name] = saved.VIDEO[name] = "Glm4v"
#: GLM's own names of special tokens, by which vLLM asks for them
NAMES = {
    "<|vision_start|>": "<|begin_of_image|>",
    "<|image_pad|>": "<|image|>",
    "<|vision_end|>": "<|end_of_image|>",
    "<img>": "<|begin_of_video|>",
    "<|video_pad|>": "<|video|>",
    "</img>": "<|end_of_video|>",
}

HIDDEN = 128  # so that a head has 32 channels, the fewest that vLLM's attention on a CPU takes
NEW = 8


@cache
def folder(family: str) -> Path:
    """Where a model is saved."""
    if family == "internvl_chat":
        return chat.folders()[0]
    path = Path(tiny_shared.FOLDERS.name, f"{family}-served")
    config = _config(family)
    if family == "llava_onevision":
        config.vision_aspect_ratio = "anyres_max_9"
    if family == "qwen3_vl_moe":
        config.text_config.norm_topk_prob = True  # as checkpoints say; vLLM asks, transformers always does
    model = tiny.build(config, cls=getattr(transformers, tiny_alike.CLASSES[config.model_type]))
    model.generation_config.update(pad_token_id=0, eos_token_id=None)
    model.save_pretrained(path)
    _processor(family).save_pretrained(path)
    for file in path.glob("*.json") if family in GLM else ():
        text = file.read_text()
        for old, new in NAMES.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        file.write_text(text)
    described = json.loads((path / "processor_config.json").read_text())
    for name in ("image_mean", "image_std"):  # vLLM normalises videos as images
        if family.startswith(("qwen", "glm")):
            described["video_processor"][name] = described["image_processor"][name]
    (path / "processor_config.json").write_text(json.dumps(described))
    # vLLM knows the names, and the order of dimensions, of checkpoints on the hub, which are older; transformers knows both.
    weights = load_file(path / "model.safetensors")
    if family.startswith("llava") and family not in PIXTRAL:
        weights = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in weights.items()}
    if family == "qwen3_vl_moe":
        weights = {name: x.mT.contiguous() if ".experts." in name else x for name, x in weights.items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _config(family: str) -> Any:
    text: dict[str, Any] = dict(vocab_size=saved.VOCABULARY, hidden_size=HIDDEN)
    if family == "glm_ocr":  # vLLM takes the width of its merger from the language model
        text["intermediate_size"] = 3 * HIDDEN
    if family.startswith("qwen3_5"):  # vLLM's states of layers without attention are of bfloat16 on a CPU
        text["layer_types"] = ["full_attention"] * tiny.LAYERS
    if family == "glm4v_moe":  # as checkpoints say
        text |= dict(head_dim=HIDDEN // 4, use_qk_norm=False)
    if family == "mistral3":  # and its norm in the projector is not told
        text["rms_norm_eps"] = 1e-5
    config = (tiny_alike if family in tiny_alike.ALIKE else tiny).config(family, **text)
    if family == "glm4v":  # as checkpoints say; vLLM asks, transformers always has one
        config.text_config.attention_bias = True
    if family == "glm_ocr":  # which vLLM takes for granted
        config.vision_config.attention_bias = True
    if family in GLM:
        config.video_start_token_id, config.video_end_token_id = tiny.TOKEN_ID["<img>"], tiny.TOKEN_ID["</img>"]
    return config


def _processor(family: str) -> Any:
    family = tiny_alike.ALIKE[family].like if family in tiny_alike.ALIKE else family
    if family in IDEFICS:
        side, kind = tiny_tiles.SIDE[family] * tiny.PATCH, {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
        images = getattr(transformers, f"{kind}ImageProcessor")(
            size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side}
        )
        made: dict[str, Any] = dict(image_processor=images, tokenizer=saved._tokenizer(family), image_seq_len=16)
        if family == "smolvlm":
            pytest.importorskip("num2words")
            made["video_processor"] = transformers.SmolVLMVideoProcessor()
        return getattr(transformers, f"{kind}Processor")(**made)
    if family in PIXTRAL:
        pixtral = transformers.PixtralImageProcessor(patch_size=tiny.PATCH, size={"longest_edge": 16 * tiny.PATCH})
        made = dict(image_processor=pixtral, tokenizer=saved._tokenizer(family), patch_size=tiny.PATCH)
        made |= dict(
            spatial_merge_size=PIXTRAL[family],
            image_token="<image>",
            image_break_token="<img>",
            image_end_token="</img>",
        )
        return transformers.PixtralProcessor(**made)
    if family not in ("llava_siglip", "llava_onevision"):
        return saved._processor(family)
    parts: dict[str, Any] = dict(
        image_processor=tiny.processor(family).image_processor,
        tokenizer=saved._tokenizer(family),
        chat_template=saved.TEMPLATE.replace("IMAGE", "<image>\n"),
        vision_feature_select_strategy="full",
    )
    if family == "llava_siglip":
        return transformers.LlavaProcessor(patch_size=tiny.PATCH, num_additional_image_tokens=0, **parts)
    parts["video_processor"] = transformers.LlavaOnevisionVideoProcessor(size=parts["image_processor"].size)
    tokens: dict[str, Any] = dict(num_image_tokens=16, vision_aspect_ratio="anyres_max_9", video_token="<|video_pad|>")
    return transformers.LlavaOnevisionProcessor(**parts, **tokens)


def place(family: str) -> str:
    """What stands for an image in a prompt."""
    return saved.PLACES.get(family, ("<image>\n", ""))[0]


@dataclass(frozen=True)
class Answer:
    """Tokens, their log-probabilities, and how long the prompt was."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt: int

    def agrees(self, other: Answer) -> bool:
        """Whether both say the same, and as surely."""
        near = all(abs(a - b) < 1e-3 for a, b in zip(self.logprobs, other.logprobs))
        return self.tokens == other.tokens and near


def request(family: str, text: str, *sizes: tuple[int, int], seed: int = 1) -> dict[str, Any]:
    """``text`` with an ``@`` for every image, whose heights and widths are ``sizes`` in pixels."""
    prompt = f"user: {text.replace('@', place(family))}<|im_end|>\nassistant: "
    images = [saved.picture(*size, seed + i) for i, size in enumerate(sizes)]
    return {"prompt": prompt, "multi_modal_data": {"image": images}} if images else {"prompt": prompt}


def requests(family: str) -> list[dict[str, Any]]:
    """Two images of different shapes, none, and one."""
    return [
        request(family, "@the dog and@the cat", (24, 32), (40, 24)),
        request(family, "the cat"),
        request(family, "the bird@", (48, 48), seed=3),
    ]


@contextmanager
def engine(
    family: str,
    method: Method | None,
    limit: float | None = None,
    profiles: Any = None,
    adaptive: Any = None,
    **options: Any,
) -> Iterator[Any]:
    """A vLLM in this process, with the method if there is one, and up to which budget a prompt may ask for its own, which
    profiles, or budgets by the detail of images."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    usual: dict[str, Any] = dict(dtype="float32", enforce_eager=True, max_model_len=1024, max_num_batched_tokens=1024)
    usual |= dict(max_num_seqs=8, limit_mm_per_prompt={"image": 4}, seed=0, disable_log_stats=True)
    if family.startswith(
        ("qwen3", "glm")
    ):  # whose largest video comes whole where tokens leave inside the language model
        usual["max_num_batched_tokens"] = 8192
    if family.startswith("qwen3_5"):  # it copies states, and this tiny one has none
        usual["enable_prefix_caching"] = False
    usual["trust_remote_code"] = family == "internvl_chat"
    more = {"limit": limit, "profiles": profiles, "adaptive": adaptive}
    asked = {name: value for name, value in more.items() if value is not None}
    config = {} if method is None else {"foveate": method.to_dict() | asked}
    llm: Any = LLM(str(folder(family)), additional_config=config, **(usual | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def ask(llm: Any, wanted: Sequence[dict[str, Any]], **options: Any) -> list[Answer]:
    """What vLLM answers, all of the requests at once."""
    from vllm import SamplingParams

    sampling = SamplingParams(**(dict(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=1) | options))
    found = []
    for output in llm.generate(list(wanted), sampling, use_tqdm=False):
        for said in output.outputs:
            tokens = tuple(said.token_ids)
            logprobs = tuple(step[token].logprob for token, step in zip(tokens, said.logprobs, strict=True))
            found.append(Answer(tokens, logprobs, len(output.prompt_token_ids)))
    return found


@cache
def _loaded(family: str) -> tuple[Any, Any]:
    path = chat.folders()[1] if family == "internvl_chat" else folder(family)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(path)


def film(frames: int, height: int, width: int, seed: int, fps: float) -> Any:
    """A light square that walks over a picture, and what vLLM wants to know of it."""
    ground = np.asarray(saved.picture(height, width, seed))
    found = np.stack([ground] * frames)
    for i in range(frames):
        found[i, 4:12, 4 * i % width : 4 * i % width + 8] = 255
    about = dict(fps=fps, duration=frames / fps, total_num_frames=frames, frames_indices=list(range(frames)))
    return found, {**about, "video_backend": "none", "do_sample_frames": False}


def _inputs(family: str, processor: Any, wanted: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What transformers' model is given for a request of vLLM."""
    if family == "internvl_chat":
        return chat.inputs(processor.tokenizer, wanted)
    data = wanted.get("multi_modal_data", {})
    given: dict[str, Any] = {"images": data["image"]} if "image" in data else {}
    if "video" in data:
        frames, facts = zip(*data["video"])
        metadata = [VideoMetadata(**{k: v for k, v in each.items() if k != "do_sample_frames"}) for each in facts]
        given |= dict(videos=list(frames), video_metadata=metadata, do_sample_frames=False)
        if family.startswith("qwen2"):
            given["fps"] = facts[0]["fps"]
    made: dict[str, torch.Tensor] = processor(text=[wanted["prompt"]], return_tensors="pt", **given)
    return made


def expected(family: str, method: Method | None, wanted: Sequence[dict[str, Any]], new: int = NEW) -> list[Answer]:
    """What transformers answers, one request after another, in so many tokens."""
    model, processor = _loaded(family)
    found = []
    with nullcontext() if method is None else foveate.compress(model, method):
        for each in wanted:
            inputs = _inputs(family, processor, each)
            with torch.no_grad():
                out = model.generate(
                    **inputs, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
                )
            length = inputs["input_ids"].shape[1]
            tokens = tuple(out.sequences[0, length:].tolist())
            logprobs = tuple(float(x.log_softmax(-1)[0, token]) for x, token in zip(out.logits, tokens, strict=True))
            found.append(Answer(tokens, logprobs, length))
    return found
