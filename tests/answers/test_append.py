"""New tokens behind an image: the same as a prompt in which they really are, wherever they are cached or leave again."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import close, generate, text_of
from contract import CORE, PROPERTIES, Property, a_batch_is_its_rows, the_report_counts_what_ran
from probes.layer_skip import LayerSkip
from probes.voco import VoCo
from refusals import refused
from torch import Tensor

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate.answers import Answer, Append
from foveate.errors import ConfigError, UnsupportedCacheError, UnsupportedSiteError
from foveate.lab.story import tell
from foveate.models import family_of
from foveate.runtime.attach import host_of
from foveate.serving.plan import make_plan

FOREVER = 99  # a layer that is never reached
CASES: dict[str, VoCo] = {
    "behind": VoCo(2, FOREVER, hides=False),
    "hidden": VoCo(1, FOREVER),
    "cut": VoCo(3, 3),
    "numbered on": VoCo(2, FOREVER, positions="renumber"),
}
ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 3]]


def really_inserted(family: str, model: Any, batch: dict[str, Tensor], method: VoCo) -> Tensor:
    """Logits ``(L, V)`` of one row whose embeddings have the new tokens, with positions and masks by hand."""
    given: dict[str, Any] = {}
    listen = tiny.lm(model).register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    listen.remove()
    embeds, visual = given["inputs_embeds"][0], tiny.visual_mask(family, batch)[0].tolist()
    length = len(visual)
    ids = tiny.positions(model, batch)[:, 0] if family in tiny.PACKED else torch.arange(length)[None]
    new = method.drawn(Tokens(*[None] * 5, hidden=embeds))  # type: ignore[arg-type,misc]
    rows, kinds, positions, further = [], [], [], 0
    for i in range(length):
        rows.append(embeds[i])
        kinds.append("image" if visual[i] else "text")
        positions.append(ids[:, i] + further)
        if visual[i] and not visual[i + 1]:  # the last one of an image
            highest = max(int(position.max()) for position in positions)
            for v in range(method.count):
                rows.append(new[v])
                kinds.append("new")
                numbered = torch.full_like(ids[:, i], highest + 1 + v)
                positions.append(numbered if method.positions == "renumber" else positions[-1])
            further += method.count if method.positions == "renumber" else 0
    longer = len(rows)
    hooks = []
    for layer, module in enumerate(tiny.lm(model).layers):
        mask = torch.zeros(1, 1, longer, longer, dtype=torch.bool)
        for i in range(longer):
            for j in range(i + 1):
                gone = method.layer is not None and layer >= method.layer and kinds[j] == "image"
                hides = method.hides and kinds[i] == "text" and kinds[j] == "image"
                mask[0, 0, i, j] = i == j or not (gone or hides)
        if model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)

        def give(_: Any, args: Any, kwargs: Any, mask: Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        hooks.append(module.register_forward_pre_hook(give, with_kwargs=True))
    of_all = torch.stack(positions, -1)
    with torch.no_grad():
        states = tiny.lm(model)(
            inputs_embeds=torch.stack(rows)[None],
            position_ids=of_all[:, None] if family in tiny.PACKED else of_all,
            attention_mask=torch.ones(1, longer, dtype=torch.long),
        ).last_hidden_state[0]
        logits: Tensor = model.get_output_embeddings()(states)
    for hook in hooks:
        hook.remove()
    return logits[torch.tensor([kind != "new" for kind in kinds])]


@pytest.mark.parametrize(("case", "impl"), [*((case, "sdpa") for case in CASES), ("cut", "eager")])
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_logits_are_those_of_a_prompt_that_has_them(family: str, case: str, impl: str) -> None:
    model, method = tiny.model(family, impl), CASES[case]
    batch = tiny.inputs(family, ROWS)
    real = batch["attention_mask"].bool()
    alone = [tiny.inputs(family, ROWS, only=i) for i in range(len(ROWS))]
    expected = [really_inserted(family, model, each, method) for each in alone]
    with torch.no_grad(), foveate.compress(model, method):
        together, uncached = model(**batch).logits, model(**batch, use_cache=False).logits
        for i, each in enumerate(alone):
            text = text_of(family, each)[0]
            for logits in (together[i][real[i]], uncached[i][real[i]], model(**each).logits[0]):
                close(logits[text], expected[i][text])


@dataclass(frozen=True)
class AsMany(Method):
    """As many tokens behind an image as its content asks for, 0 to 2; half of all that is there leaves later."""

    layer: int = 2
    seen: tuple[Any, ...] = ()

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry", 0, 0.5), Site("lm_entry", action="append"), Site("decoder", self.layer, 0.5)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return tokens.keep_best(-((tokens.index * 7) % 5).float() + 9.0 * tokens.appended, site)
        means = [part.mean(0) for part in tokens.hidden.split(tokens.counts)]
        counts = tuple(int(mean[0].abs() * 1e4) % 3 for mean in means)
        return Append(torch.cat([mean.expand(n, -1) for mean, n in zip(means, counts, strict=True)]), counts)


METHODS: dict[str, Method] = {
    "as published": VoCo(),
    **{name: CASES[name] for name in ("cut", "numbered on")},
    "as many": AsMany(),
    "signals": VoCo(2, FOREVER, hides=False) + foveate.FastV(keep=0.5),
    "tower": foveate.ToMe(keep=0.6) + VoCo(2, 4),
}


#: all of the contract where tokens come and go, what is at its core elsewhere
CHECKED = [(name, check) for name in METHODS for check in (PROPERTIES if name in ("cut", "as many") else CORE)]


@pytest.mark.parametrize(("name", "check"), CHECKED, ids=lambda x: x if isinstance(x, str) else x.__name__)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_it_has_every_property(family: str, name: str, check: Property) -> None:
    check(family, METHODS[name])


@pytest.mark.parametrize("family", [family for family in tiny.STRUCTURES if family not in tiny.WHOLE])
def test_every_structure(family: str) -> None:
    """Tiles and their newlines, features that are added between layers, layers with a state; or one sentence."""
    if tiny.slides(family):
        refused(tiny.model(family), CASES["cut"], UnsupportedSiteError, "voco appends tokens, and a sliding layer")
        return
    for method in (CASES["behind"], CASES["cut"]):
        a_batch_is_its_rows(family, method)
        the_report_counts_what_ran(family, method)


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_report_of_those_that_come_back_knows_them_from_the_images_own(family: str) -> None:
    the_report_counts_what_ran(family, CASES["behind"] + LayerSkip(ratio=0.5))


@dataclass(frozen=True)
class Watched(Method):
    """Appends two tokens, and notes what deeper sites are shown."""

    notes: Any = None

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry", action="append"), Site("decoder", 1), Site("decoder", 3)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "append":
            return Append(tokens.hidden.new_ones(len(tokens.counts), 2, tokens.hidden.shape[1]))
        self.notes.append((tokens.counts, tokens.appended.tolist()))
        if site.layer == 1:  # the first of the two of each image leaves
            first = tokens.appended & ~torch.nn.functional.pad(tokens.appended, (1, 0))[:-1]
            return tokens.keep_mask(~first)
        return Reduction(torch.arange(len(tokens)), tokens.counts)


def test_deeper_sites_know_which_they_are() -> None:
    model, batch, notes = tiny.model("llava"), tiny.inputs("llava", ROWS), list[Any]()
    method = Watched()
    object.__setattr__(method, "notes", notes)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        cache = model(**batch).past_key_values
        report = handle.report()
    n = report.visits[0].before[0]
    one, other = [False] * n + [True] * 2, [False] * n + [True]
    assert notes == [((n + 2,) * 3, one * 3), ((n + 1,) * 3, other * 3)]
    length = batch["input_ids"].shape[1]
    assert report.layer_tokens == (length + 4, *[length + 2] * (tiny.LAYERS - 1))  # of the row with two images
    assert report.kv_lengths == report.layer_tokens
    assert cache.get_seq_length() == length
    assert [visit.after for visit in report.visits] == [(n,) * 3] * 3
    assert "watched: 6 tokens appended" in str(report)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_cropped_and_copied_cache_has_them(family: str, case: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    tail = dict(input_ids=batch["input_ids"][:, -2:], attention_mask=batch["attention_mask"])
    if family in tiny.PACKED:
        tail["position_ids"] = tiny.positions(model, batch)[..., -2:]
    with torch.no_grad(), foveate.compress(model, CASES[case]):
        out = model(**batch)
        cache = out.past_key_values
        held = [entry.keys.shape[2] for entry in tiny.entries(cache)]
        cache.crop(-2)
        assert [entry.keys.shape[2] for entry in tiny.entries(cache)] == [n - 2 for n in held]
        file = io.BytesIO()
        torch.save(cache, file)
        file.seek(0)
        for each in (copy.deepcopy(cache), torch.load(file, weights_only=False)):
            close(model(**tail, past_key_values=each).logits, out.logits[:, -2:])
        cache.reorder_cache(torch.tensor([1, 0]))
        other = {name: value.flip(1 if value.dim() == 3 else 0) for name, value in tail.items()}
        close(model(**other, past_key_values=cache).logits, out.logits[:, -2:].flip(0))
        cache.crop(-(batch["input_ids"].shape[1] - 4))  # into the images, whose new tokens go with their last one
        assert all(entry.keys.shape[2] <= 4 for entry in tiny.entries(cache))


def test_samples_of_one_row_are_what_they_are_alone(impl: str) -> None:
    model, alone = tiny.model("llava", impl), [tiny.inputs("llava", [row], seed=i) for i, row in enumerate(ROWS)]
    row = {"pixel_values": torch.cat([batch["pixel_values"] for batch in alone])}
    row["input_ids"] = torch.cat([batch["input_ids"] for batch in alone], 1)
    lengths = [batch["input_ids"].shape[1] for batch in alone]
    row["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    for method in (CASES["behind"], CASES["cut"], METHODS["signals"]):
        with torch.no_grad(), foveate.compress(model, method):
            together = model(**row, use_cache=False).logits[0].split(lengths)
            for ours, batch in zip(together, alone, strict=True):
                text = text_of("llava", batch)[0]
                close(ours[text], model(**batch).logits[0][text])


# -- what is refused ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says(Method):
    """Whatever is asked for."""

    what: Any = None
    first: str = "append"
    then: str = ""

    def sites(self, host: Host) -> Sequence[Site]:
        actions: list[Any] = [action for action in (self.first, self.then) if action]
        return [Site("lm_entry", action=action) for action in actions]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        return self.what  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (None, "returned NoneType, expected an Append"),
        (Append(torch.zeros(2, 1, 64)), r"hidden is float32 \(2, 1, 64\), expected floats \(3, any number, 64\)"),
        (Append(torch.zeros(3, 1, 63)), r"hidden is float32 \(3, 1, 63\), expected floats \(3, any number, 64\)"),
        (Append(torch.zeros(3, 1, 64).long()), r"hidden is int64 \(3, 1, 64\), expected floats"),
        (Append(torch.zeros(3, 64)), r"hidden is float32 \(3, 64\), expected floats \(3, any number, 64\)"),
        (Append(torch.zeros(3, 64), (1, 1, 2)), r"expected floats \(4, 64\), as many as counts says"),
        (Append(torch.zeros(2, 64), (1, 1)), r"counts \(1, 1\), expected one for each of the 3 spans"),
        (Append(torch.zeros(2, 64), (1, -1, 2)), r"counts=\(1, -1, 2\), expected a tuple with a whole number"),
    ],
)
def test_new_tokens_of_the_wrong_size_are_a_sentence(what: Any, sentence: str) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with foveate.compress(model, Says(what)), pytest.raises(ConfigError, match=rf"Says.answer at lm_entry.*{sentence}"):
        model(**batch)


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    refused(model, Says(then="append"), UnsupportedSiteError, "only one site can append tokens at lm_entry")
    refused(model, Says(first="sight", then="append"), UnsupportedSiteError, "append them first")
    refused(model, At(), UnsupportedSiteError, "'append' cannot happen at decoder 1")
    with foveate.compress(model, VoCo()), pytest.raises(UnsupportedCacheError, match="cache_implementation='static'"):
        generate(model, batch, cache_implementation="static")
    shared = tiny.build(tiny.config("gemma4", shared=2, layer_types=["full_attention"] * 8))
    refused(
        shared,
        CASES["cut"],
        UnsupportedSiteError,
        "appends tokens, and later layers of this model attend to the keys of",
    )
    family = family_of(model.config)
    with pytest.raises(
        UnsupportedSiteError, match=r"appends tokens at lm_entry \(append\), and a prompt of this engine"
    ):
        make_plan(VoCo(hides=False), host_of(model, family), family, model.config)


@dataclass(frozen=True)
class At(Method):
    """In the middle of the language model."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", 1, action="append")]


# -- what is told of it -------------------------------------------------------------------------------------------------


def test_the_page_says_what_was_appended_and_hidden() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS[:1])
    with torch.no_grad(), foveate.compress(model, VoCo(count=2, layer=3)) as handle, handle.trace() as trace:
        model(**batch)
        story, report = tell(trace(), handle.report()), handle.report()
    acts = [act for step in story.acts for act in step]
    n = report.visual_tokens
    assert [(act.action, act.before, act.after, act.says) for act in acts] == [
        ("append", n, n, "2 tokens appended"),
        ("sight", n, n, "text sees group 1, text"),
        ("reduce", n, 0, ""),
    ]
    text = batch["input_ids"].shape[1] - n
    assert report.layer_tokens == (text + n + 2,) * 3 + (text + 2,) * (tiny.LAYERS - 3)
