"""What text gets of images beside the FFN: as plain loops add it, wherever the cache goes, and in every structure."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from calls import HOOKS_AROUND_CHECKPOINTS, LOGITS, ROWS, chunks, close, generate, text_of
from contract import CORE, Property
from probes.synthetic import Skips
from refusals import left_as_it_was, refused
from torch import Tensor

import foveate
from foveate import FastV, Host, Method, Site, Tokens
from foveate.answers import Remember
from foveate.errors import ConfigError, InputError, UnsupportedCacheError, UnsupportedSiteError
from foveate.lab.story import tell
from foveate.models import family_of
from foveate.runtime.attach import host_of
from foveate.serving.plan import make_plan
from foveate.site import Into

whole = pytest.mark.parametrize("family", tiny.WHOLE)


@dataclass(frozen=True)
class AIR(foveate.AIR):
    """The published method with a small memory, in layers that a tiny model has, for all text after an image."""

    layers: tuple[int, ...] | None = (3, 4, 5)
    outliers: int = 4
    window: int = 2
    into: Into = "text"


@pytest.mark.parametrize("check", CORE)
@whole
def test_beside_methods_that_remove(family: str, check: Property) -> None:
    """What leaves later is remembered; tokens that skip the same FFN do not change what text gets."""
    check(family, AIR(layers=(1, 3)) + FastV(layer=2, ratio=0.4) + Skips(keep=0.5, part="ffn"))


# -- what it computes ---------------------------------------------------------------------------------------------------


def images_of(family: str, batch: dict[str, Tensor], row: int) -> list[tuple[int, int]]:
    """The first and the last place of each image of a row."""
    places = tiny.visual_mask(family, batch)[row].nonzero().flatten().tolist()
    starts = [p for p in places if p - 1 not in places]
    return [(start, next(p for p in range(start, 9999) if p + 1 not in places)) for start in starts]


def windows_of(image: Tensor, width: int, method: AIR) -> list[Tensor]:
    """What `AIR` keeps of an image ``(N, C)``, number by number."""
    n, size = len(image), method.window
    mean = sum(image) / n
    unusual = sorted(range(n), key=lambda i: -float((image[i] - mean).norm()))[: method.outliers]
    unit = [row / row.norm() for row in image]
    windows: dict[tuple[int, int], list[int]] = {}
    for i in range(n):
        windows.setdefault((i // width // size, i % width // size), []).append(i)
    distances = []
    for members in windows.values():
        cost = [[1 - float(unit[q] @ unit[p]) for p in members] for q in unusual]
        plan = [[math.exp(-c / method.epsilon) for c in row] for row in cost]
        for _ in range(20):
            plan = [[p / sum(row) / len(unusual) for p in row] for row in plan]
            sums = [sum(column) for column in zip(*plan)]
            plan = [[p / total / len(members) for p, total in zip(row, sums)] for row in plan]
        distances.append(sum(p * c for a, b in zip(plan, cost) for p, c in zip(a, b)))
    mean_distance = sum(distances) / len(distances)
    near = {i for members, d in zip(windows.values(), distances) if d <= method.tau * mean_distance for i in members}
    assert 0 < len(near) < n
    return [unit[i] for i in sorted(near)]


@contextmanager
def by_hand(family: str, model: Any, batch: dict[str, Tensor], method: AIR, first: int = 0) -> Iterator[None]:
    """The stock model, for a forward of all of ``batch``: its FFNs add to text from place ``first`` on, token by token."""
    kept: list[list[tuple[int, list[Tensor]]]] = []
    widths = [w // 2 for _, _, w in batch["image_grid_thw"].tolist()] if "image_grid_thw" in batch else []

    def look(_: Any, args: Any, kwargs: Any) -> None:
        sizes = iter(widths)
        for row, embeds in enumerate(kwargs["inputs_embeds"]):
            images = images_of(family, batch, row)
            parts = [(a, b, next(sizes, math.isqrt(b + 1 - a))) for a, b in images]
            kept.append([(b, windows_of(embeds[a : b + 1], width, method)) for a, b, width in parts])

    def add(_: Any, args: Any, output: Tensor) -> Tensor:
        output, text = output.clone(), text_of(family, batch)
        for row, place in text.nonzero().tolist():
            for end, memory in kept[row]:
                for z in memory if end < place >= first else []:
                    dot = args[0][row, place] @ z
                    output[row, place] += dot * torch.sigmoid(dot) * z
        return output

    layers = tiny.lm(model).layers
    handles = [layers[i].mlp.register_forward_hook(add) for i in method.layers]
    handles.append(tiny.lm(model).register_forward_pre_hook(look, with_kwargs=True))
    yield
    for handle in handles:
        handle.remove()


@whole
def test_is_what_plain_loops_add(family: str, impl: str) -> None:
    """Text before an image gets nothing of it, and a row without one nothing at all."""
    model, batch, method = tiny.model(family, impl), tiny.inputs(family, ROWS[family]), AIR(layers=(1, 4))
    real = text_of(family, batch)
    with torch.no_grad():
        stock = model(**batch).logits[real]
        with by_hand(family, model, batch, method):
            expected = model(**batch).logits[real]
        with foveate.compress(model, method):
            close(model(**batch).logits[real], expected)
            close(model(**batch, use_cache=False).logits[real], expected)
    changed = (stock - expected).abs().amax(-1) > 1e-2
    assert changed.any()
    assert not changed.all()


@whole
@pytest.mark.parametrize("into", ["text", "prompt", "generated"])
def test_text_of_the_prompt_and_what_is_generated(family: str, into: Any) -> None:
    """Each with a cache and without one; the words of an answer begin where ``generate`` was called."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:2])
    with torch.no_grad(), foveate.compress(model, AIR(into=into)):
        out = generate(model, batch, **LOGITS)
        again = generate(model, batch, use_cache=False, **LOGITS)
    for a, b in zip(out.logits, again.logits, strict=True):
        close(a, b)
    longer, length = tiny.longer(family, batch, out.sequences), batch["input_ids"].shape[1]
    if into == "prompt":
        return
    with torch.no_grad(), by_hand(family, model, longer, AIR(), first=length if into == "generated" else 0):
        full = model(**longer).logits
    for step, logits in enumerate(out.logits):
        close(logits, full[:, length - 1 + step])


@dataclass(frozen=True)
class Counts(Method):
    """Remembers the hidden states of images at several layers, and notes what it is given."""

    seen: list[Any] = field(default_factory=list, compare=False)

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.inject(0), Site.remember(), Site.remember(2), Site.inject(1), Site.inject(3, "prompt")]

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        self.seen.append((str(site), tokens.counts))
        wide = torch.cat([tokens.hidden, tokens.hidden], dim=1)  # as wide as it likes
        return Remember(wide, tokens.counts)

    def inject(self, x: Tensor, memory: Tensor, site: Site) -> Tensor:
        self.seen.append((str(site), tuple(x.shape), tuple(memory.shape)))
        return x * 0.1


def test_each_layer_takes_what_was_remembered_last() -> None:
    model, batch, method = tiny.model("llava"), tiny.inputs("llava", [[2, "image", 3, "image", 1]]), Counts()
    n = int(tiny.visual_mask("llava", batch).sum()) // 2
    rest = batch["input_ids"].shape[1] - 2 * n
    with torch.no_grad(), foveate.compress(model, FastV(layer=2, ratio=0.5) + method) as handle:
        cache = model(**batch).past_key_values
        report = handle.report()
        model(input_ids=torch.tensor([[20]]), past_key_values=cache)
    between = 3 if rest == 6 else 4
    groups = [((between, 64), n), ((rest - 2 - between, 64), 2 * n)]
    assert method.seen[0] == ("lm_entry (remember)", (n, n))
    assert method.seen[1:5] == [
        (f"decoder {layer} ffn (inject)", x, (rows, 128)) for layer in (0, 1) for x, rows in groups
    ]
    assert method.seen[5] == ("decoder 2 (remember)", ((n + 1) // 2,) * 2)
    halves = [((between, 64), (n + 1) // 2), ((rest - 2 - between, 64), 2 * ((n + 1) // 2))]
    assert method.seen[6:8] == [("decoder 3 ffn (inject into prompt)", x, (rows, 128)) for x, rows in halves]
    assert method.seen[8:] == [(f"decoder {layer} ffn (inject)", (1, 64), (2 * n, 128)) for layer in (0, 1)]
    assert f"{2 * n} rows remembered of 2 images" in str(report)
    assert f"adds to {rest - 2} tokens of text" in str(report)


@whole
def test_the_story_of_a_call_tells_of_it(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS[family][:1])
    with torch.no_grad(), foveate.compress(model, AIR()) as handle, handle.trace() as trace:
        model(**batch)
        story = tell(trace(), handle.report())
    assert [act.action for acts in story.acts for act in acts] == ["remember", "inject", "inject", "inject"]
    assert story.tokens[-1] == story.full_tokens[-1]


# -- the cache ----------------------------------------------------------------------------------------------------------


@whole
def test_it_goes_where_the_cache_goes(family: str) -> None:
    """Copied, repeated, chosen, cropped to before an image and filled again, and emptied."""
    model, image = tiny.model(family), (8, 8) if family in tiny.PACKED else "image"
    both = tiny.inputs(family, [[3, image, 5, image, 4]])
    (_, first), (second, _) = images_of(family, both, 0)
    length, cut = both["input_ids"].shape[1], (first + second) // 2
    places = tiny.positions(model, both) if family in tiny.PACKED else torch.arange(length)[None]

    def ask(cache: Any, start: int, end: int, rows: int = 1, **images: Any) -> Tensor:
        """The logits of places of the prompt, of which the cache has what comes before."""
        named = {n: both[n][:, start:end] for n in ("input_ids", "mm_token_type_ids") if n in both}
        ids = places[..., start:end]
        named |= {"attention_mask": both["attention_mask"][:, :end], "position_ids": ids}
        named = {n: v.repeat_interleave(rows, -2) for n, v in named.items()}
        return model(**named, **images, past_key_values=cache).logits[:, -1]

    with torch.no_grad(), foveate.compress(model, AIR()):
        expected = model(**both).logits[0]
        cache = model(**both).past_key_values
        cache.crop(cut - length)
        twin = copy.deepcopy(cache)
        close(ask(twin, cut, cut + 1)[0], expected[cut])
        twin.crop(-1)
        twin.batch_repeat_interleave(3)
        twin.batch_select_indices(torch.tensor([0, 2]))
        close(ask(twin, cut, cut + 1, rows=2), expected[cut].expand(2, -1))
        images = tiny.of_images(family, both, slice(1, 2))
        close(ask(cache, cut, length, **images)[0], expected[-1])
        cache.crop(first - length)  # into the first image: what text after it would get is not known
        stock = copy.deepcopy(cache)
        cache.reset()
        fresh = model(**both).logits[0]
        close(fresh, expected)
        state = next(entry.states for entry in stock.layers if getattr(entry, "states", None) is not None)
        assert all(not row.images and row.rows is None for each in state.memories.values() for row in each.rows)


@dataclass(frozen=True)
class Frames(AIR):
    """Remembers the mean of a video at its every frame, so that a frame alone is not enough; with a signal, on demand."""

    signals: tuple[str, ...] = ()

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.remember(2, signals=self.signals), *(Site.inject(layer) for layer in self.layers)]

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        clips = [sum(tokens.counts[s] for s in clip) for clip in tokens.spans.clips]
        means = torch.stack([part.mean(0) for part in tokens.hidden.split(clips)])
        return Remember(torch.cat([mean.expand(len(c), 1, -1) for mean, c in zip(means, tokens.spans.clips)]))


@chunks
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_chunks_that_cut_an_image_or_a_video(family: str) -> None:
    """It is remembered with its last chunk, as a whole; of signals, which are of what a chunk has, a sentence."""
    rows: list[list[tiny.Item]] = [[2, (4, 4, 4), 3]] if family in tiny.PACKED else [[2, "image", 3, "image", 2]]
    model, batch = tiny.model(family), tiny.inputs(family, rows)
    with torch.no_grad(), foveate.compress(model, Frames()):
        expected = generate(model, batch, **LOGITS)
        for size in (3, 7):
            cut = generate(model, batch, prefill_chunk_size=size, **LOGITS)
            for a, b in zip(cut.logits, expected.logits, strict=True):
                close(a, b)
    with foveate.compress(model, Frames(signals=("keys",))), pytest.raises(InputError, match="keys of whole images"):
        generate(model, batch, prefill_chunk_size=3)


# -- every structure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*tiny.STRUCTURES, "qwen3_vl_moe"])
def test_every_structure(family: str) -> None:
    """Cached steps are full forwards, a batch is its rows, and taken off, nothing is left; with experts, too."""
    model, rows = tiny.model(family), ROWS[family][:2]
    batch, alone = tiny.inputs(family, rows), tiny.inputs(family, rows, only=0)
    with left_as_it_was(model, batch) as stock, torch.no_grad(), foveate.compress(model, AIR()):
        out = generate(model, batch, **LOGITS)
        full = model(**tiny.longer(family, batch, out.sequences)).logits[:, -5:-1]
        close(torch.stack(out.logits, 1), full)
        close(model(**batch).logits[0, -1], model(**alone).logits[0, -1])
        assert (tiny.text_logits(model, batch) - stock).abs().max() > 1e-2


# -- what cannot be ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd(AIR):
    """Answers as told."""

    remembers: Any = None
    injects: Any = None

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        return super().remember(tokens, site) if self.remembers is None else self.remembers

    def inject(self, x: Tensor, memory: Tensor, site: Site) -> Tensor:
        return self.injects if isinstance(self.injects, Tensor) else super().inject(x, memory[:, : self.injects], site)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Odd(remembers=torch.ones(1, 2, 3)), r"Odd.remember at lm_entry \(remember\) returned Tensor, expected a Remember"),
        (Odd(remembers=Remember(torch.ones(4, 2, 3))), r"rows is float32 \(4, 2, 3\), expected floats \(1, any number"),
        (Odd(remembers=Remember(torch.ones(4, 3), (2,))), r"rows is .*, expected floats \(2, any width\)"),
        (Odd(remembers=Remember(torch.ones(4, 3), (2, 2))), r"counts \(2, 2\), expected one for each of the 1 spans"),
        (Odd(injects=torch.ones(1, 2)), r"Odd.inject at decoder 3 ffn \(inject\) returned float32 \(1, 2\), expected floats"),
    ],
)  # fmt: skip
def test_what_is_not_an_answer(method: Method, sentence: str) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[1, "image", 2]])
    with foveate.compress(model, method), pytest.raises(ConfigError, match=sentence):
        model(**batch)


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="Python 3.11")
def test_an_error_names_the_function_that_raised_it() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[1, "image", 2]])
    with foveate.compress(model, Odd(injects=3)), pytest.raises(RuntimeError) as error:
        model(**batch)
    assert vars(error.value)["__notes__"] == ["(raised by Odd.inject at decoder 3 ffn (inject))"]


@dataclass(frozen=True)
class Says(AIR):
    """The same at other sites."""

    places: tuple[Site, ...] = ()

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[1, "image", 2]])
    with pytest.raises(ConfigError, match=r"removes nothing that a share could be of, so leave out keep=0\.5"):
        AIR(keep=0.5)
    with pytest.raises(ConfigError, match="signals are of visual tokens"):
        Site.inject(1, signals=("keys",))
    with pytest.raises(ConfigError, match='goes with action="inject"'):
        Site.decoder(1, into="prompt")
    for places, sentence in (
        ((Site.inject(1),), r"decoder 1 ffn \(inject\), and remembers nothing of an image by then"),
        ((Site.remember(2), Site.inject(1)), "remembers nothing of an image by then"),
        ((Site("tower", 1, action="remember"),), "'remember' cannot happen at tower 1"),
        ((Site("decode", 1, action="inject", part="ffn"),), r"'inject' cannot happen at decode 1 ffn \(inject\)"),
    ):
        refused(model, Says(places=places), UnsupportedSiteError, sentence)
    refused(model, AIR() + Says(places=(Site.inject(1),)), UnsupportedSiteError, "remembers nothing")
    with pytest.raises(UnsupportedSiteError, match="keeps something of an image beside the KV cache"):
        make_plan(AIR(), host_of(model, family_of(model.config)), family_of(model.config), model.config)
    with foveate.compress(model, AIR()), pytest.raises(UnsupportedCacheError, match="carry what air remembers"):
        generate(model, batch, cache_implementation="static")


@pytest.mark.skipif(not HOOKS_AROUND_CHECKPOINTS, reason="this transformers runs hooks again inside of checkpoints")
def test_gradient_checkpointing_is_refused() -> None:
    model, batch = tiny.model("llava", fresh=True).train(), tiny.inputs("llava", [[1, "image", 2]])
    model.gradient_checkpointing_enable()
    with foveate.compress(model, AIR()), pytest.raises(UnsupportedSiteError, match="cannot be replayed by gradient"):
        model(**batch, labels=batch["input_ids"])
