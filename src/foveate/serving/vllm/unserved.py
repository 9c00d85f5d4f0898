"""Architectures that vLLM serves and foveate does not, and why; docs/serving.md lists them."""

from __future__ import annotations

from collections.abc import Iterable

_BOTH_WAYS = (
    "an image sees all of itself there, in ranges that this engine reads off the prompt before any token has left"
)
_STATES = "most of its decoder layers carry a state from token to token, of which this engine has pages of another kind"
_LATENT = "its decoder layers keep one latent row for all heads, and a layer with fewer tokens is read as keys and values here"
_TOWER = "its vision tower is built in another way in vLLM than in transformers, and none of its parts is described yet"
_CHUNKS = "some of its decoder layers see a chunk of the prompt alone, counted in tokens that are left"
_QUERIES = (
    "learned queries look at the image by cross-attention, so the language model's tokens stand for no place of it"
)

UNSERVED = {
    "Gemma3ForConditionalGeneration": _BOTH_WAYS,
    "Gemma4ForConditionalGeneration": _BOTH_WAYS,
    "Gemma4UnifiedForConditionalGeneration": _BOTH_WAYS,
    "Glm4vForConditionalGeneration": _TOWER,
    "Glm4vMoeForConditionalGeneration": _TOWER,
    "GlmOcrForConditionalGeneration": _TOWER,
    "Idefics3ForConditionalGeneration": _TOWER,
    "KimiK25ForConditionalGeneration": _LATENT,
    "KimiVLForConditionalGeneration": _LATENT,
    "Llama4ForConditionalGeneration": _CHUNKS,
    "MiniCPMV": _QUERIES,
    "MiniCPMV4_6ForConditionalGeneration": _STATES,
    "MiniCPMV4_7ForConditionalGeneration": _STATES,
    "Mistral3ForConditionalGeneration": _TOWER,
    "PaliGemmaForConditionalGeneration": "a prompt sees all of itself in transformers, with which answers are compared",
    "Phi4MMForCausalLM": "its adapters for images and for sound are switched on with them, and foveate does not know "
    "it in transformers, either",
    "PixtralForConditionalGeneration": _TOWER,
    "Qwen3_5ForConditionalGeneration": _STATES,
    "Qwen3_5MoeForConditionalGeneration": _STATES,
    "SmolVLMForConditionalGeneration": _TOWER,
}


def sentence(architecture: str, served: Iterable[str]) -> str:
    """What is said of an architecture that is not served."""
    why = f", because {UNSERVED[architecture]}" if architecture in UNSERVED else ""
    return f"foveate does not serve {architecture or 'this model'} in vLLM{why}; it serves {', '.join(sorted(served))}"
