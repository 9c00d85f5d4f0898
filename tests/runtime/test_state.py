"""`Tokens.state`: one dict for each part of a sum, from the first site that a prompt meets to the end of its cache."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, chunks, generate, modern
from torch import Tensor

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate.errors import UnsupportedSiteError

FAMILIES = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
EVERYWHERE = (
    Site("pixels"),
    Site("tower", 1),
    Site("tower_output"),
    Site("lm_entry"),
    Site("decoder", 2),
    Site("decoder", 4),
    Site("decode", 4, signals=("last_row",)),
)


BOOKS: dict[str, list[tuple[str, int, list[str]]]] = {}


@pytest.fixture(autouse=True)
def empty() -> None:
    BOOKS.clear()


@dataclass(frozen=True)
class Diary(Method):
    """Keeps everything, and writes down where it was."""

    places: tuple[Site, ...] = EVERYWHERE
    book: str = "one"

    @property
    def seen(self) -> list[tuple[str, int, list[str]]]:
        """Of each visit: site, which dict it was, and what it found there. (A model may have a copy of the method.)"""
        return BOOKS.setdefault(self.book, [])

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        been = tokens.state.setdefault("been", [])
        self.seen.append((str(site), id(tokens.state), list(been)))
        been.append(str(site))
        shape = tokens.spans.shape if site.at == "pixels" else None
        return Reduction(torch.arange(len(tokens), device=tokens.index.device), tokens.counts, shape=shape)


@dataclass(frozen=True)
class Following(Diary):
    """The same, and notes what becomes of the cache."""

    def follow(self, state: MutableMapping[str, Any], rows: Tensor | None) -> None:
        state.setdefault("changes", []).append(None if rows is None else rows.tolist())


NAMES = [str(site) for site in EVERYWHERE]


@FAMILIES
def test_all_sites_of_a_part_share_one_dict_as_long_as_the_cache_lives(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family])
    one, other = Diary(), Diary(EVERYWHERE[1:5], "other")
    with torch.no_grad(), foveate.compress(model, one + other):
        generate(model, batch)
        first, found = {where for _, where, _ in one.seen}, {where for _, where, _ in other.seen}
        assert len(first) == len(found) == 1
        assert first != found
        names = [name for name, _, _ in one.seen]
        assert names == NAMES[:6] + NAMES[6:] * 3
        assert [been for _, _, been in one.seen] == [names[:i] for i in range(len(names))]
        one.seen.clear()
        generate(model, batch)
        assert one.seen[0][2] == []


@FAMILIES
def test_without_a_cache_it_ends_with_the_forward(family: str) -> None:
    """Each forward brings the prompt anew, and begins with what the vision tower has left."""
    model, batch, diary = tiny.model(family), tiny.inputs(family, ROWS[family]), Diary(EVERYWHERE[1:6])
    with torch.no_grad(), foveate.compress(model, diary):
        generate(model, batch, use_cache=False)
    again = [been for name, _, been in diary.seen if name == "lm_entry"]
    in_tower = NAMES[1:3]
    assert len(again) == 4
    assert all(been == in_tower or been == [] for been in again)  # (older versions encode the image again, too)
    assert again[0] == in_tower


@FAMILIES
@chunks
def test_chunks_of_a_prompt_share_it(family: str) -> None:
    model, batch, diary = tiny.model(family), tiny.inputs(family, ROWS[family][:1]), Diary(EVERYWHERE[1:])
    with torch.no_grad(), foveate.compress(model, diary):
        generate(model, batch, prefill_chunk_size=5)
    names = [name for name, _, _ in diary.seen]
    assert names.count("lm_entry") > 1
    assert [been for _, _, been in diary.seen] == [names[:i] for i in range(len(names))]


def test_a_later_turn_adds_to_it_and_other_caches_have_their_own() -> None:
    model, batch, diary = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1]), Diary(EVERYWHERE[1:])
    length = batch["input_ids"].shape[1]
    longer = torch.ones(1, 2 * length, dtype=torch.long)
    with torch.no_grad(), foveate.compress(model, diary):
        cache = model(**batch).past_key_values
        other = model(**batch).past_key_values
        assert diary.seen[5][2] == []
        diary.seen.clear()
        model(**{**batch, "attention_mask": longer}, past_key_values=cache)
        assert [been for name, _, been in diary.seen if name == "tower 1"] == [[]]  # its cache is not known yet
        assert diary.seen[2] == ("lm_entry", diary.seen[2][1], NAMES[1:3])  # what the newer turn wrote wins
        diary.seen.clear()
        step = dict(input_ids=torch.tensor([[20]]), attention_mask=longer[:, : length + 1])
        model(**step, past_key_values=other)
        assert [been for _, _, been in diary.seen] == [NAMES[1:6]]


@modern
def test_features_that_were_encoded_beforehand_come_without_it() -> None:
    model, batch, diary = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", ROWS["qwen2_5_vl"]), Diary(EVERYWHERE[1:])
    with torch.no_grad(), foveate.compress(model, diary):
        images = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
        features = model.get_image_features(**images, return_dict=True)
        rest = {name: value for name, value in batch.items() if name != "pixel_values"}
        model(**rest, mm_encoder_outputs={"image": features})
    assert [(name, been) for name, _, been in diary.seen[1:3]] == [("tower_output", ["tower 1"]), ("lm_entry", [])]


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_copy_of_the_cache_has_a_copy(how: str) -> None:
    model, batch, diary = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:1]), Diary(EVERYWHERE[1:])
    step = dict(input_ids=torch.tensor([[20]]))
    with torch.no_grad(), foveate.compress(model, diary):
        cache = model(**batch).past_key_values
        if how == "deepcopy":
            twin = copy.deepcopy(cache)
        else:
            file = io.BytesIO()
            torch.save(cache, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        model(**step, past_key_values=cache)
        model(**step, past_key_values=twin)
    (_, first, found), (_, second, same) = diary.seen[-2:]
    assert first != second
    assert found == same == NAMES[1:6]


def test_rows_and_croppings_are_told_to_the_method() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"][:2])
    length = batch["input_ids"].shape[1]
    step = dict(input_ids=torch.full((3, 1), 20), attention_mask=torch.ones(3, length + 1, dtype=torch.long))
    told, forgets = Following(EVERYWHERE[4:]), Diary(EVERYWHERE[4:6], "other")
    with torch.no_grad(), foveate.compress(model, told + forgets):
        cache: Any = model(**batch).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2, 3]))
        model(**step, past_key_values=cache)
        cache.crop(-1)
        cache.crop(-1)
        state = next(entry.states for entry in cache.layers if getattr(entry, "states", None) is not None)
        assert state.of(told, 0)["changes"] == [[1, 0, 0], None]
        assert state.of(forgets, 1) == {}
        cache.crop(-length + 2)  # into the image: nobody knows what it was made of
        assert state.of(told, 0) == {}


def test_two_threads_have_their_own() -> None:
    model, batch, diary = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"]), Diary()
    with torch.no_grad(), foveate.compress(model, diary):
        threads = [threading.Thread(target=lambda: model(**batch)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    of = {where: [name for name, found, _ in diary.seen if found == where] for _, where, _ in diary.seen}
    assert list(of.values()) in (
        [NAMES[:6]] * 2,
        [NAMES[:6] * 2],
    )  # (the second may have been given the memory of the first)
    assert sum(been == [] for _, _, been in diary.seen) == 2


def test_a_method_that_remembers_nothing_leaves_the_cache_alone() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS["llava"])
    with torch.no_grad(), foveate.compress(model, foveate.Stride(keep=1.0)):
        kinds = {type(entry).__name__ for entry in model(**batch).past_key_values.layers}
    assert kinds == {"DynamicLayer"}


def test_what_carries_it_does_not_change_the_masks_of_layers_that_slide() -> None:
    model, batch = tiny.model("gemma3"), tiny.inputs("gemma3", ROWS["gemma3"])
    with torch.no_grad():
        expected = generate(model, batch)
        with foveate.compress(model, Diary(EVERYWHERE[4:5])):
            assert torch.equal(generate(model, batch), expected)


def test_an_engine_refuses_what_remembers() -> None:
    from foveate.handle import host_of
    from foveate.models import family_of
    from foveate.serving.plan import make_plan

    model = tiny.model("qwen2_5_vl")
    with pytest.raises(UnsupportedSiteError, match="remembers 'been' from one of its sites"):
        make_plan(Diary(EVERYWHERE[1:6]), host_of(model), family_of(model.config), model.config)
