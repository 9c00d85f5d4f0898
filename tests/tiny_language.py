"""A tiny SmolLM2, and a reference model on it that nobody has trained."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foveate_reference import samples
from foveate_reference.language import ADAPTER, NAME, in_english
from foveate_reference.language.base import LANGUAGE_MODEL
from foveate_reference.language.model import make_smollm2, save_adapter

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<other_{i}>" for i in range(13)), "<empty_output>"]


def make_base(folder: Path, layers: int = 2) -> Path:
    """Write a folder as SmolLM2's, of few layers and a vocabulary of 400."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [in_english(sample).question for sample in samples("train", per_task=1)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=None,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)  # as the real one is
    return folder


def fill_cache(cache: Path, layers: int = 6) -> Path:
    """Write all of a reference model into a cache folder (``FOVEATE_CACHE``): the language model, and a random adapter."""
    base = make_base(cache / f"{LANGUAGE_MODEL}-tiny", layers)
    (cache / NAME).mkdir()
    torch.manual_seed(1)
    save_adapter(cache / NAME / ADAPTER, make_smollm2(base), {}, 1.0)
    return cache
