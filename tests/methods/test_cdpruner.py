"""CDPruner: relevance and the greedy determinant by plain loops, no question, more picks than directions; serving."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from calls import close
from contract import a_batch_is_its_rows, the_report_counts_what_ran
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import foveate
from foveate import CDPruner, Host, Signal, Site, Tokens
from foveate.errors import ConfigError, FoveateError
from foveate.serving.plan import make_plan


def asked(tokens: Tokens, seed: int, words: int) -> Tokens:
    """The same tokens, with some words behind each image and one before it."""
    n = 1 + max(tokens.spans.sample)
    text = torch.randn(n * (words + 1), 9, generator=torch.Generator().manual_seed(seed))
    place = torch.arange(n)[:, None] * (words + 1) + 1 + torch.arange(words)
    return replace(tokens, signals={Signal("text"): text, "text_place": place})


@settings(max_examples=12, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.01, 0.3), st.integers(0, 4))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, words: int) -> None:
    """The determinants are computed anew for each pick."""
    grid = [(t, min(h, 3), min(w, 4)) for t, h, w in grid]
    tokens = asked(tokens_at(grid, seed, channels=9), seed, words)
    text, start, expected = tokens.text, 0, []
    for n, kept, sample in zip(tokens.counts, tokens.budget(keep), tokens.spans.sample):
        own = text[sample * (words + 1) + 1 :][:words]
        x = torch.nn.functional.normalize(tokens.hidden[start : start + n].double(), dim=-1)
        alike = (
            torch.tensor([[float(torch.cosine_similarity(a.float(), b, dim=0)) for b in own] for a in x])
            .mean(-1)
            .double()
        )
        size = float(alike.max() - alike.min()) if words else 0.0
        relevant = (alike - alike.min()) / size + 1e-6 if size > 1e-6 else torch.ones(n).double()
        kernel = relevant[:, None] * (x @ x.T) * relevant
        chosen: list[int] = []
        for _ in range(kept):
            sets = {i: [*chosen, i] for i in range(n) if i not in chosen}
            chosen.append(max(sets, key=lambda i: float(f"{float(torch.linalg.det(kernel[sets[i]][:, sets[i]])):.6e}")))
        expected += sorted(start + i for i in chosen)
        start += n
    assert CDPruner().reduce(tokens, Site.entry(keep)).keep.tolist() == expected


def test_golden_values() -> None:
    """Of two twins the question wants one, then what is unlike it, though that is not what was asked for."""
    tokens = tokens_at([(1, 1, 3)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    hidden = torch.tensor([[1.0, 0, 0.2], [1.0, 0, 0.1], [0, 1.0, 0]])
    signals = {Signal("text"): torch.tensor([[1.0, 0, 0]]), "text_place": torch.tensor([[0]])}
    seen = replace(tokens, hidden=hidden, signals=signals)
    assert CDPruner().reduce(seen, Site.entry(1 / 3)).keep.tolist() == [1]
    assert CDPruner().relevance(seen)[[1, 2]].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_it_is_not_served() -> None:
    family: Any = foveate.list_families()["llava"]
    with pytest.raises(FoveateError, match="cdpruner wants the text at lm_entry"):
        make_plan(CDPruner(), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))


# -- with CLIP, or SigLIP -----------------------------------------------------------------------------------------------

PAIRS: dict[str, Any] = {"llava": (CLIPConfig, CLIPModel), "llava_siglip": (SiglipConfig, SiglipModel)}
LENGTH = 4  # of what the tiny encoders read at once


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text encoder for the tower of each of two families, and one for a narrower tower."""
    made = {}
    for name, (config, kind) in {**PAIRS, "narrow": PAIRS["llava"]}.items():
        family = name if name in PAIRS else "llava"
        tower = tiny.config(family).vision_config.to_dict() | {"vision_use_head": True}
        tower |= {} if name in PAIRS else {"hidden_size": 16}
        text = dict(vocab_size=tiny.config(family).text_config.vocab_size, hidden_size=16, intermediate_size=24)
        text |= dict(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH)
        text |= dict(projection_size=tower["hidden_size"], eos_token_id=2)  # CLIP's: the largest id ends a text
        more = {"projection_dim": 20} if config is CLIPConfig else {}
        made[name] = tmp_path_factory.mktemp(name)
        tiny.build(config(text_config=text, vision_config=tower, **more), cls=kind).save_pretrained(made[name])
        tiny.processor(family).tokenizer.save_pretrained(made[name])
    return made


@dataclass(frozen=True)
class Noting(CDPruner):
    """The method, and what it finds relevant."""

    heard: ClassVar[list[Tensor]] = []

    def relevance(self, tokens: Tokens) -> Tensor:
        self.heard.append(super().relevance(tokens))
        return self.heard[-1]


def by_the_pair(model: Any, family: str, kind: Any, folder: Path, batch: dict[str, Tensor]) -> Tensor:
    """Relevance of the patches of one image to the words behind it, a part and a patch at a time."""
    pair: Any = kind.from_pretrained(folder).eval()
    image = int(tiny.visual_mask(family, batch)[0].nonzero().max())
    ids, pad = batch["input_ids"][0, image + 1 :].tolist(), tiny.processor(family).tokenizer.pad_token_id
    with torch.no_grad():
        states = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states
        x = states[model.config.vision_feature_layer][0]
        x = pair.vision_model.post_layernorm(x[1:] if family in tiny.CLS else x)
        seen = [
            pair.visual_projection(p) if family in tiny.CLS else pair.vision_model.head(p[None, None])[0] for p in x
        ]
        total = torch.zeros(len(x))
        parts = [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]
        for part in parts:
            short = LENGTH - len(part)
            given = {"input_ids": torch.tensor([part + short * [pad]])}
            if "attention_mask" in tiny.processor(family).tokenizer("a"):
                given["attention_mask"] = torch.tensor([[1] * len(part) + [0] * short])
            said = pair.get_text_features(**given)
            said = said if isinstance(said, Tensor) else said.pooler_output
            total -= torch.stack([torch.cosine_similarity(p, said[0], dim=0) for p in seen]) / len(parts)
    return (total - total.min() + 1e-6) / (total.max() - total.min())


@pytest.mark.parametrize("family", PAIRS)
def test_relevance_by_a_text_model(family: str, folders: dict[str, Path]) -> None:
    model, folder = tiny.model(family), str(folders[family])
    with torch.no_grad(), foveate.compress(model, Noting(text_model=folder, tokenizer=folder)):
        for words in (6, 3):
            batch = tiny.inputs(family, [[2, "image", words]])
            model(**batch)
            close(Noting.heard[-1], by_the_pair(model, family, PAIRS[family][1], folders[family], batch))
    for check in (a_batch_is_its_rows, the_report_counts_what_ran):
        check(family, CDPruner(keep=0.4, text_model=folder, tokenizer=folder))


def test_text_models_that_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    model, folder = tiny.model("llava"), str(folders["llava"])
    model.config.save_pretrained(tmp_path)
    for options, sentence in (
        (dict(text_model="nowhere/at-all"), "text_model='nowhere/at-all' is no folder of a model"),
        (dict(text_model=str(tmp_path)), "is a 'llava', which has no text tower beside a vision tower"),
        (dict(text_model=str(folders["narrow"])), "reads patches of 16 channels, and the tower of this model makes 32"),
        (dict(text_model=folder), "this model was loaded from nowhere: give tokenizer"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            foveate.compress(model, CDPruner(**options))
    with pytest.raises(ConfigError, match="give both or none"):
        CDPruner(tokenizer=folder)
