"""Architectures that vLLM serves and foveate does not, and why; docs/serving.md lists them."""

from __future__ import annotations

from collections.abc import Iterable

_NOR_THERE = "and foveate does not know it in transformers, either"
_PIECES = (
    "its `get_vision_hidden_states` runs the blocks of the tower one by one, and foveate takes the place of a tower that is "
    "called as a whole"
)


def _windows(decoder: str) -> str:
    return (
        f"most layers of its `{decoder}` have a sliding window, of few times as many tokens as an image, which vLLM counts in "
        "the tokens that are left, and foveate, in transformers, in those of the whole prompt"
    )


#: Each sentence names, in backticks, what to look for in vLLM's code.
UNSERVED = {
    "Gemma3ForConditionalGeneration": _windows("Gemma3ForCausalLM")
    + "; and that an image sees all of itself (`is_mm_prefix_lm`) is in none of vLLM's kernels for a CPU, where answers are "
    "compared",
    "Gemma4ForConditionalGeneration": _windows("Gemma4ForCausalLM"),
    "Gemma4UnifiedForConditionalGeneration": "it has no vision tower: patches go through its `vision_embedder` straight to the "
    f"language model, and {_windows('Gemma4ForCausalLM')}",
    "KimiK25ForConditionalGeneration": "its `tpool_patch_merger` takes the mean of a video's frames and joins patches that "
    "stand in raster order, so foveate knows the language model alone, and has no file for that here",
    "KimiVLForConditionalGeneration": "transformers, from which foveate takes vision towers, has no such model: `KimiVLConfig` "
    "is vLLM's own",
    "Llama4ForConditionalGeneration": "the class token of its vision tower (`class_embedding`) stands behind the patches, "
    f"{_NOR_THERE}",
    "MiniCPMV": "the learned queries of its `resampler` look at the image by cross-attention, so the language model's tokens "
    "stand for no place of it",
    "MiniCPMV4_6ForConditionalGeneration": _PIECES,
    "MiniCPMV4_7ForConditionalGeneration": _PIECES,
    "PaliGemmaForConditionalGeneration": "at most the image of a prompt sees all of itself in vLLM (`is_mm_prefix_lm`), and in "
    "transformers, with which answers are compared, the whole prompt does",
    "Phi4MMForCausalLM": "vLLM leaves its adapters for images and for sound out of the model (`hf_to_vllm_mapper`), "
    f"{_NOR_THERE}",
    "PixtralForConditionalGeneration": "its vision tower rotates pairs of neighbouring channels (`apply_rotary_emb_vit`), and "
    "that of transformers pairs that are half a head apart",
}


def sentence(architecture: str, served: Iterable[str]) -> str:
    """What is said of an architecture that is not served."""
    why = f", because {UNSERVED[architecture]}" if architecture in UNSERVED else ""
    return f"foveate does not serve {architecture or 'this model'} in vLLM{why}; it serves {', '.join(sorted(served))}"
