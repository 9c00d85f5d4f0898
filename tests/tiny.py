"""Tiny real models of every family, and real inputs for them: saved tokenizers and processors, drawn images.

A batch is written as rows of items: an int is that many words of text; ``"image"`` an image of the family's usual size;
``(height, width)`` an image of that many *patches* (packed towers; even numbers, four patches make a token); ``(frames,
height, width)`` a video (packed towers; from Qwen3-VL on, and in GLM, a timestamp and a run of placeholders for every
frame). Families with tiles have their own file, `tiny_tiles`. What a row contains depends on the seed and its place in the
batch, not on the other rows, so ``inputs(family, rows, only=i)`` is row ``i`` of ``inputs(family, rows)`` alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiny_cpm as cpm
import tiny_gemma as gemma
import tiny_gemma4 as padded
import tiny_rows as rows_of
import tiny_tiles as tiles
import torch
from PIL import Image
from tiny_parts import BLOCKS, base, blocks, end, entries, flop_counter, lm, positions, projector, text_logits, tower  # noqa: F401 - for tests
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

CLASSES: dict[str, Any] = {
    "llava": LlavaForConditionalGeneration,
    "llava_siglip": LlavaForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen2_5_omni_thinker": Qwen2_5OmniThinkerForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "qwen3_vl_moe": Qwen3VLMoeForConditionalGeneration,
    "qwen3_omni_moe_thinker": Qwen3OmniMoeThinkerForConditionalGeneration,
    "qwen3_5": Qwen3_5ForConditionalGeneration,
    "qwen3_5_moe": Qwen3_5MoeForConditionalGeneration,
    "glm4v": Glm4vForConditionalGeneration,
    "glm4v_moe": Glm4vMoeForConditionalGeneration,
    "glm46v": Glm46VForConditionalGeneration,
    **tiles.CLASSES,
    **gemma.CLASSES,
    **rows_of.CLASSES,
    **padded.CLASSES,
    **cpm.CLASSES,
}
FAMILIES = tuple(CLASSES)
#: a padded tower, a packed one with windows, tiles put side by side, features added between decoder layers, pixel shuffle,
#: patches pooled in the projector and decoder layers of two kinds, all images in a single row, decoder layers without
#: attention, a merger in the middle of the tower
WHOLE = (
    *("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl", "gemma3", "mistral3", "qwen3_5"),
    *cpm.FAMILIES,
)
#: another family but for the experts in its decoder, the text between frames, or the processor
SIBLINGS = (
    *("qwen2_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker", "qwen3_5_moe", "glm4v_moe", "glm46v"),
    *("llava_siglip", "llava_next_video", "smolvlm", "llava_pixtral"),
)
PLAIN = ("llava", "llava_siglip")
LLAVA = ("llava", "llava_next", "llava_next_video")  # with CLIP, whose last block is not used
CLS = (*LLAVA, "internvl")
GLM = ("glm4v", "glm4v_moe", "glm46v")  # images and videos look alike in the prompt, and there is only one of the two
SEVERAL = (*tiles.FAMILIES, "gemma3", *cpm.FAMILIES)  # an image may be several of the tower's
OMNI = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")  # with sound
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")
DEEPSTACK = (*QWEN3, "qwen3_omni_moe_thinker")
HYBRID = ("qwen3_5", "qwen3_5_moe")
RECURRENT = (*HYBRID, *cpm.FAMILIES)  # some decoder layers carry a state in place of attention
STAMPED = (*QWEN3, *HYBRID, *GLM)  # a timestamp before every frame of a video
WINDOWS = ("qwen2_5_vl", "qwen2_5_omni_thinker")  # in the tower
PACKED = ("qwen2_vl", *WINDOWS, "qwen3_omni_moe_thinker", *STAMPED)  # grids of any size
VIDEO = (*PACKED, *tiles.VIDEO, *padded.FAMILIES, *cpm.FAMILIES)
PIXTRAL = rows_of.FAMILIES  # all images of a call in a single row of the tower
#: older generate() repeats pixels for beams one by one (tiles, patches, images), and not those of a row as a group
GROUPED = (*SEVERAL, *PIXTRAL, *OMNI, *padded.FAMILIES)
LAYERS = 6
LINEAR = (0, 4)  # layers without attention, where there are some; what tests read attention of are others
PATCH = 4  # pixels
LLAVA_SIDE = 6  # patches: a LLaVA image has 36 tokens
QWEN_GRID = (6, 8)  # patches: 12 tokens
ONE_SIZE = {
    **dict.fromkeys(PLAIN, (LLAVA_SIDE, LLAVA_SIDE)),
    **gemma.TOKENS,
}  # tokens down and across, where all images have the same

SPECIAL = (
    *("<pad>", "<unk>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|video_here|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
)
WORDS = tuple(f"word{i}" for i in range(111))
TOKEN_ID = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
MORE = dict.fromkeys(tiles.IDEFICS, ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"))
MORE |= dict.fromkeys(tiles.OVIS, ("<IMG_ATOM>", *tiles.INDICATORS))
IMAGE_TEXT = {
    **dict.fromkeys(PACKED, "<|vision_start|> <|image_pad|> <|vision_end|>"),
    **dict.fromkeys((*PLAIN, *tiles.ANYRES, *tiles.IDEFICS, *tiles.OVIS, *PIXTRAL, *cpm.FAMILIES), "<image>"),
    "internvl": "<IMG_CONTEXT>",
    **gemma.IMAGE_TEXT,
    **dict.fromkeys(padded.FAMILIES, "<img>"),
}
PLACEHOLDER = {**IMAGE_TEXT, **dict.fromkeys(PACKED, "<|image_pad|>"), **gemma.IMAGE_TOKEN}
PLACEHOLDER |= dict.fromkeys(padded.FAMILIES, "<image>")
IMAGE_TOKEN = {family: TOKEN_ID[text] for family, text in PLACEHOLDER.items()}
IMAGE_TOKEN |= dict.fromkeys(tiles.OVIS, len(TOKEN_ID))  # the first of its own
VIDEO_TOKEN = TOKEN_ID["<|video_pad|>"]
AUDIO_TOKEN, AUDIO_START = TOKEN_ID["<image>"], TOKEN_ID["<|im_end|>"]  # Omni has no other use for these
MELS = 8  # and its sounds so many channels
SOUND: dict[str, Any] = dict(
    num_mel_bins=MELS, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24
)
SOUND |= dict(max_source_positions=16)

Item = int | str | tuple[int, ...]


# -- models -------------------------------------------------------------------------------------------------------------


def config(family: str, **text: Any) -> Any:
    """The config of a tiny model; ``text`` overrides fields of its language model."""
    usual: dict[str, Any] = dict(
        vocab_size=len(TOKEN_ID) + len(MORE.get(family, ())),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=TOKEN_ID["<pad>"],
    )
    text = usual | text
    if family in tiles.FAMILIES:
        return tiles.config(family, text, BLOCKS, IMAGE_TOKEN[family], VIDEO_TOKEN)
    if family in gemma.FAMILIES:
        return gemma.config(family, text, BLOCKS, IMAGE_TOKEN[family])
    if family in PIXTRAL:
        return rows_of.config(family, text, BLOCKS, IMAGE_TOKEN[family])
    if family in padded.FAMILIES:
        return padded.config(family, text, BLOCKS, IMAGE_TOKEN[family], VIDEO_TOKEN)
    if family in PLAIN:
        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4)
        vision |= dict(image_size=LLAVA_SIDE * PATCH, patch_size=PATCH)
        around: dict[str, Any] = dict(text_config=text | {"model_type": "llama"}, image_token_id=IMAGE_TOKEN[family])
        if family == "llava":  # the last block's output is not used
            vision |= dict(model_type="clip_vision_model", num_hidden_layers=BLOCKS + 1)
            return LlavaConfig(vision_config=vision, **around)
        vision |= dict(model_type="siglip_vision_model", num_hidden_layers=BLOCKS, vision_use_head=False)
        around |= dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
        return LlavaConfig(vision_config=vision, **around)
    sixteenth = text["hidden_size"] // text["num_attention_heads"] // 16
    section = [2 * sixteenth, 3 * sixteenth, 3 * sixteenth]
    text["rope_parameters"] = dict(rope_type="default", rope_theta=10_000.0, mrope_section=section)
    vision = dict(depth=BLOCKS, num_heads=2, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2)
    ids = dict(
        image_token_id=IMAGE_TOKEN[family],
        video_token_id=VIDEO_TOKEN,
    )
    kind = "image" if family in GLM else "vision"
    ids |= {f"{kind}_start_token_id": TOKEN_ID["<|vision_start|>"], f"{kind}_end_token_id": TOKEN_ID["<|vision_end|>"]}
    if family in GLM:
        section = [sixteenth, sixteenth, 2 * sixteenth]
        text["rope_parameters"] |= dict(mrope_section=section, partial_rotary_factor=0.5)
        vision |= dict(hidden_size=32, out_hidden_size=text["hidden_size"], intermediate_size=48, image_size=5 * PATCH)
        if family == "glm4v":
            return Glm4vConfig(text_config=text, vision_config=vision, **ids)
        if family == "glm46v":
            text, vision = text | {"model_type": "glm4v_text"}, vision | {"model_type": "glm4v_vision"}
            return Glm46VConfig(text_config=text, vision_config=vision, **ids)
        text |= dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, first_k_dense_replace=1)
        return Glm4vMoeConfig(text_config=text, vision_config=vision, **ids)
    if family in RECURRENT:
        text["rope_parameters"] |= dict(
            mrope_interleaved=True,
            mrope_section=[2 * sixteenth, sixteenth, sixteenth],
            partial_rotary_factor=0.5,
        )
        text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
        kinds = ["linear_attention" if i in LINEAR else "full_attention" for i in range(text["num_hidden_layers"])]
        heads = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12)
        text = dict(layer_types=kinds) | heads | text
        if family in cpm.FAMILIES:
            return cpm.config(text, BLOCKS, IMAGE_TOKEN[family], VIDEO_TOKEN)
        vision |= dict(hidden_size=32, intermediate_size=64, out_hidden_size=text["hidden_size"])
        vision |= dict(num_position_embeddings=25)
        if family == "qwen3_5":
            return Qwen3_5Config(text_config=text, vision_config=vision, **ids)
        text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=40)
        return Qwen3_5MoeConfig(text_config=text, vision_config=vision, **ids)
    if family in DEEPSTACK:
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= dict(hidden_size=32, intermediate_size=64, out_hidden_size=text["hidden_size"])
        vision |= dict(num_position_embeddings=25, deepstack_visual_indexes=[0, 2, 3])
        text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
        if family == "qwen3_vl":
            return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[1])
        if family in OMNI:
            audio = SOUND | dict(
                output_dim=text["hidden_size"], n_window=50, n_window_infer=100, downsample_hidden_size=8
            )
            ids |= dict(audio_token_id=AUDIO_TOKEN, audio_start_token_id=AUDIO_START)
            return Qwen3OmniMoeThinkerConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)
        return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids)
    if family == "qwen2_vl":
        vision |= dict(embed_dim=32, hidden_size=text["hidden_size"], mlp_ratio=2)
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    vision |= dict(hidden_size=32, intermediate_size=64, out_hidden_size=text["hidden_size"])
    vision |= dict(window_size=16, fullatt_block_indexes=[1, 3])  # windows of 2x2 tokens
    if family == "qwen2_5_omni_thinker":
        audio = SOUND | dict(output_dim=text["hidden_size"], n_window=4)
        ids |= dict(audio_token_id=AUDIO_TOKEN, audio_start_token_id=AUDIO_START)
        return Qwen2_5OmniThinkerConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def build(config: Any, impl: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A model with random weights, large enough that every token and position matters to the logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = CLASSES[config.model_type](config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += 0.08 * torch.randn_like(parameter)
                if name.endswith("A_log"):
                    parameter -= 4.0  # a state that lasts: 64 tokens ago is not yet forgotten
            if config.model_type in padded.FAMILIES:
                model.get_input_embeddings().weight[config.text_config.pad_token_id] = (
                    0.0  # as stock code takes for granted
                )
    model.set_attn_implementation(impl)
    return model


def _warm(family: str, impl: str) -> PreTrainedModel:
    warm = build(config(family), impl)
    with torch.no_grad():
        warm(**inputs(family, [[1, "image"]]))  # stock code hooks modules of its own at their first forward
    return warm


_shared = cache(_warm)


def model(family: str, impl: str = "sdpa", *, fresh: bool = False) -> PreTrainedModel:
    """The tiny model of a family: one for the whole session, or a new one for tests that change it."""
    return _warm(family, impl) if fresh else _shared(family, impl)


# -- processors ---------------------------------------------------------------------------------------------------------


FOLDERS = tempfile.TemporaryDirectory(prefix="foveate-")  # goes with the process


def _special(family: str) -> dict[str, Any]:
    """The special tokens, with the names by which some processors ask their tokenizer for them."""
    glm = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    internvl = {"start_image_token": "<img>", "end_image_token": "</img>"}
    internvl |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    omni = glm | {"audio_token": "<image>", "audio_bos_token": "<|im_end|>", "audio_eos_token": "<unk>"}
    omni |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    own = {"internvl": internvl, **dict.fromkeys(OMNI, omni), **gemma.SPECIAL}
    names = {**dict.fromkeys(GLM, glm), **own}.get(family)
    if names is None:
        return {"additional_special_tokens": [*SPECIAL[2:], *MORE.get(family, ())]}
    rest = {f"special_{i}_token": word for i, word in enumerate(SPECIAL[2:]) if word not in names.values()}
    return {"extra_special_tokens": names | rest}


@cache
def processor(family: str) -> Any:
    """The family's processor with a word-level tokenizer, after a round trip through a folder."""
    more = {word: i for i, word in enumerate(MORE.get(family, ()), start=len(TOKEN_ID))}
    words = Tokenizer(models.WordLevel(TOKEN_ID | more, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        **_special(family),
    )
    folder = Path(FOLDERS.name, family)
    if family in PIXTRAL:
        tokenizer.save_pretrained(folder)
        return rows_of.Processor(family, PreTrainedTokenizerFast.from_pretrained(folder))
    if family in padded.FAMILIES:
        tokenizer.save_pretrained(folder)
        return padded.Processor(PreTrainedTokenizerFast.from_pretrained(folder), PLACEHOLDER[family])
    if family in cpm.FAMILIES:
        tokenizer.save_pretrained(folder)
        return cpm.Processor(PreTrainedTokenizerFast.from_pretrained(folder))
    if family in PLAIN:
        side = {"height": LLAVA_SIDE * PATCH, "width": LLAVA_SIDE * PATCH}
        images: Any = SiglipImageProcessorPil(size=side)
        options = dict(patch_size=PATCH, vision_feature_select_strategy="full", num_additional_image_tokens=0)
        if family == "llava":
            images = CLIPImageProcessorPil(size={"shortest_edge": side["height"]}, crop_size=side)
            options |= dict(vision_feature_select_strategy="default", num_additional_image_tokens=1)
        LlavaProcessor(images, tokenizer, **options).save_pretrained(folder)
        return AutoProcessor.from_pretrained(folder, backend="pil")
    if family in tiles.FAMILIES:
        images, kind, options = tiles.parts(family)
        if family == "llava_next":
            kind(images, tokenizer, **options).save_pretrained(folder)
            return AutoProcessor.from_pretrained(folder, backend="pil")
        return _in_parts(folder, kind, images, tokenizer, **options)
    if family in gemma.FAMILIES:
        tokenizer.bos_token = gemma.BOS
        images, kind, options = gemma.parts(family)
        kind(images, tokenizer, **options).save_pretrained(folder)
        return AutoProcessor.from_pretrained(folder, backend="pil")
    kinds: dict[str, tuple[Any, str]] = {
        "qwen2_vl": (Qwen2VLProcessor, "Qwen2VL"),
        "qwen2_5_vl": (Qwen2_5_VLProcessor, "Qwen2VL"),
        "qwen2_5_omni_thinker": (Qwen2_5OmniProcessor, "Qwen2VL"),
        "qwen3_omni_moe_thinker": (Qwen3OmniMoeProcessor, "Qwen2VL"),
        **dict.fromkeys((*QWEN3, *RECURRENT), (Qwen3VLProcessor, "Qwen3VL")),
        **dict.fromkeys(GLM, (Glm4vProcessor, "Glm4v")),
        "glm46v": (Glm46VProcessor, "Glm46V"),
    }
    kind, of_videos = kinds[family]
    size = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (64 * PATCH) ** 2}
    of_images: Any = Glm4vImageProcessorPil if family in GLM else Qwen2VLImageProcessorPil
    images = of_images(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    if is_torchvision_available():
        import transformers

        videos = getattr(transformers, f"{of_videos}VideoProcessor")(patch_size=PATCH)
        hears = {"feature_extractor": WhisperFeatureExtractor(MELS)} if family in OMNI else {}
        kind(image_processor=images, tokenizer=tokenizer, video_processor=videos, **hears).save_pretrained(folder)
        return AutoProcessor.from_pretrained(folder)
    made = _in_parts(folder, kind, images, tokenizer)
    if family in OMNI:
        made.video_processor = images  # older versions ask it for its merge size, whether there is a video or not
    return made


def _in_parts(folder: Path, kind: Any, images: Any, tokenizer: Any, **options: Any) -> Any:
    """Without torchvision there is no video processor, so a processor cannot be loaded whole, but its parts can."""
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = type(images).from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)

    def start(self: Any, image_processor: Any = None, tokenizer: Any = None) -> None:
        kind.__init__(self, image_processor=image_processor, tokenizer=tokenizer, **options)

    return type(kind.__name__, (kind, _NoVideo), {"__init__": start})(*loaded)


class _NoVideo(ProcessorMixin):
    def __init__(self, *parts: Any, **rest: Any) -> None:
        super().__init__(*(part for part in parts if part is not None), **rest)


# -- inputs -------------------------------------------------------------------------------------------------------------


def inputs(
    family: str,
    rows: list[list[Item]],
    seed: int = 0,
    padding_side: str = "left",
    *,
    only: int | None = None,
) -> dict[str, Tensor]:
    """Inputs of a padded batch of ``rows``, or of one of them; see the top of this file."""
    texts: list[str] = []
    images: list[list[Image.Image]] = []
    videos: list[Tensor] = []
    grids: list[tuple[int, ...]] = []
    for number, row in enumerate(rows):
        if only is not None and number != only:
            continue
        generator = torch.Generator().manual_seed(1_000 * seed + number)
        text: list[str] = []
        images.append([])
        for item in row:
            if isinstance(item, int):
                text += [WORDS[i] for i in torch.randint(len(WORDS), (item,), generator=generator).tolist()]
            elif isinstance(item, tuple) and len(item) == 1:
                of = cpm if family in cpm.FAMILIES else tiles
                own = () if of is cpm else (family,)
                text += [of.video_text(*own, *item)]
                videos.append(of.video_pixels(*own, *item, generator))
            elif isinstance(item, tuple) and len(item) == 3:
                frames, height, width = item
                stamped = family in (*STAMPED, *padded.FAMILIES)
                run = "<|video_here|>" * (height * width // 4 * (1 if stamped else frames))
                for frame in range(frames if stamped else 1):
                    text += [*([WORDS[frame]] if stamped else []), "<|vision_start|>", run, "<|vision_end|>"]
                shape = (frames * height * width, 3 * 2 * PATCH**2)
                if family in padded.FAMILIES:
                    shape = (frames, 3, height * PATCH, width * PATCH)
                videos.append(torch.randn(shape, generator=generator))
                grids.append(item)
            else:
                text += [IMAGE_TEXT[family]]
                images[-1].append(_draw(family, item, generator))
        texts.append(" ".join(text))
    if family in gemma.FAMILIES:
        return dict(gemma.process(family, processor(family), images, texts, padding_side))
    images = [row for row in images if row]
    flat: Any = images if family == "llava_onevision" else [image for row in images for image in row]
    processed = processor(family)(
        images=flat or None, text=texts, padding=True, padding_side=padding_side, return_tensors="pt"
    )
    if videos:  # processors want torchvision for videos: these are made by hand, and their placeholders filled in here
        here = processed["input_ids"] == TOKEN_ID["<|video_here|>"]
        processed["input_ids"][here] = IMAGE_TOKEN[family] if family in GLM else VIDEO_TOKEN
        if "mm_token_type_ids" in processed:
            processed["mm_token_type_ids"][here] = 2
        if family in PACKED:
            processed |= {"pixel_values_videos": torch.cat(videos), "video_grid_thw": torch.tensor(grids)}
            if family in OMNI:
                processed |= {"video_second_per_grid": torch.ones(len(grids))}
        elif family in padded.FAMILIES:
            processed |= padded.frames(videos)
        else:
            processed |= cpm.videos(videos) if family in cpm.FAMILIES else {"pixel_values_videos": torch.stack(videos)}
    if family in OMNI:
        processed.pop("mm_token_type_ids", None)  # the model does not take them
    elif family in (*PACKED, *padded.FAMILIES) and "mm_token_type_ids" not in processed:
        ids = processed["input_ids"]
        processed["mm_token_type_ids"] = (ids == IMAGE_TOKEN[family]).int() + 2 * (ids == VIDEO_TOKEN).int()
    return dict(processed)


def _draw(family: str, item: Item, generator: torch.Generator) -> Image.Image:
    """Noise over a gradient, in the size that the processor leaves alone."""
    usual = (
        (LLAVA_SIDE, LLAVA_SIDE) if family in PLAIN else (tiles.USUAL | gemma.USUAL | cpm.USUAL).get(family, QWEN_GRID)
    )
    height, width = (PATCH * side for side in (usual if item == "image" else item))  # type: ignore[misc]
    ramp = torch.linspace(0, 128, height)[:, None, None] + torch.linspace(0, 64, width)[None, :, None]
    noise = torch.randint(64, (height, width, 3), generator=generator)
    return Image.fromarray((ramp + noise).to(torch.uint8).numpy())


def longer(family: str, batch: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """The batch with ``ids (B, L + n)``, its own and ``n`` generated ones."""
    n = ids.shape[1] - batch["input_ids"].shape[1]
    of_text = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": gemma.types_of_generated(family)}
    return {
        **batch,
        **{name: nn.functional.pad(batch[name], (0, n), value=of_text[name]) for name in of_text if name in batch},
        "input_ids": ids,
    }


def of_images(family: str, batch: dict[str, Tensor], which: slice) -> dict[str, Tensor]:
    """What a batch of one row with two equal images says of some of them."""
    made: dict[str, Tensor] = {}
    of_one = (
        "pixel_values",
        "pixel_attention_mask",
        "image_grid_thw",
        "image_sizes",
        "image_position_ids",
        "target_sizes",
    )
    for name in (*of_one, "batch_num_images"):
        if name not in batch:
            continue
        given, axis = batch[name], int(family in tiles.IDEFICS)
        if family in cpm.FAMILIES and name == "pixel_values":
            axis = -1
        half = given.shape[axis] // 2 if name != "batch_num_images" else 0  # (they were cut for one prompt)
        made[name] = given.narrow(axis, which.start * half, (which.stop - which.start) * half) if half else given
    return made


def visual_mask(family: str, batch: dict[str, Tensor]) -> Tensor:
    """``(B, L)`` bool: the placeholders of visual tokens (newlines are none)."""
    ids = batch["input_ids"]
    image, video = ids == IMAGE_TOKEN[family], ids == VIDEO_TOKEN
    if family in tiles.FAMILIES:
        unpadded = getattr(processor(family), "_get_unpadded_features", None)
        if bool(image.any()):
            image[image.clone()] = torch.tensor(tiles.is_patch(family, batch, unpadded))
    if family == "llava_onevision":
        video = video & torch.nn.functional.pad(video[:, 1:], (0, 1))  # the last one of a video is a newline
    return image | video


def of_attention(family: str, per_layer: Sequence[Any]) -> list[Any]:
    """Those of one thing a layer that are of layers with attention."""
    return [each for i, each in enumerate(per_layer) if family not in RECURRENT or i not in LINEAR]
