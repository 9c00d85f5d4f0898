"""Types of which the language model alone is known (`foveate.models.language_only`): what acts there keeps the contract."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
import unseen
from calls import close, counted
from packaging.version import Version
from probes.synthetic import PROBES, Nothing, PairsOf, Paths, Skips
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

import foveate
from foveate import Method
from foveate.errors import UnsupportedSiteError
from foveate.lab.inspection import tiny as shrinking
from foveate.lab.inspection import trial
from foveate.models import list_families

TYPES = {name: family for family in list_families().values() if family.tower.unseen for name in family.types}
NAMES = [name for name in TYPES if name in CONFIG_MAPPING]
each = pytest.mark.parametrize("name", NAMES)
#: a type for each way to build a language model; the others are left to the matrix
BUILT = {repr(replace(TYPES[name].decoder, module="", complete=())): name for name in reversed(NAMES)}
HALF: dict[str, Method] = {
    "at the entry": foveate.Random(layer=0, ratio=0.5),
    "twice inside": foveate.Random(layer=1, ratio=0.5) + foveate.VTW(layer=3),
}
#: what makes use of the language model in every way
INSIDE: dict[str, Method] = HALF | {
    **{probe: PROBES[probe] for probe in ("pairs at entry", "pairs in the decoder", "asked", "received", "uneven")},
    **{probe: PROBES[probe] for probe in ("nothing", "nothing, later", "recall")},
    "renumbered": foveate.Random(layer=1, ratio=0.5, positions="renumber"),
    "merged": PairsOf(positions="virtual"),
    "merged later": PairsOf(at="decoder", layer=1, positions="virtual"),
    "paths": Paths(),
    "without ffn": Skips(part="ffn"),
    "without attention": Skips(part="attention"),
}
Batch = dict[str, Any]


def leaves_to_the_matrix(name: str, probe: str = "", how: str = "") -> bool:
    """Whether another type has this language model, or one with other attention has this probe."""
    return name not in BUILT.values() or (probe not in HALF and name != NAMES[0] and bool(probe))


@cache
def model(name: str) -> Any:
    """A tiny model, small weights of which matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = shrinking.model_of(unseen.config_of(name)).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    made.generation_config.eos_token_id = None
    made.set_attn_implementation("eager")
    return made


@cache
def _inputs(name: str) -> tuple[Batch, int]:
    """Two rows with an image each, one of them padded, and features of an image."""
    whole, config = model(name), model(name).config
    base = trial.base_of(whole)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = unseen.trial_of(name, config, base)
    with torch.no_grad():
        count = len(trial.features(base, found)) // trial.IMAGES
    one = trial.prompt(config, whole, found, trial.IMAGES * count)
    token = unseen.token_of(config)
    ids = torch.tensor([[1, 2, *[token] * count, 3, 4, 5, 6], [0, 7, *[token] * count, 8, 9, 10, 11]])
    of_ids = {key: (ids == token).to(one[key].dtype) for key in one if key.endswith("token_type_ids")}
    return {**one, **of_ids, "input_ids": ids, "attention_mask": (ids != 0).long()}, count


def inputs(name: str, row: int | None = None) -> Batch:
    """The batch, or a row of it without its padding."""
    batch, _ = _inputs(name)
    if row is None:
        return dict(batch)
    alone = unseen.row_of(name, batch, row)
    real = alone["attention_mask"][0].bool()
    return {key: x[:, real] if isinstance(x, Tensor) and x.shape == real[None].shape else x for key, x in alone.items()}


@each
def test_keeping_everything_is_stock(name: str) -> None:
    whole, batch = model(name), inputs(name)
    with torch.no_grad():
        stock = whole(**batch).logits
        with foveate.compress(whole, foveate.Random(layer=0, ratio=1.0) + foveate.FastV(layer=2, ratio=1.0)):
            assert torch.equal(whole(**batch).logits, stock)
        assert torch.equal(whole(**batch).logits, stock)


@each
@pytest.mark.parametrize("probe", INSIDE)
def test_a_batch_is_its_rows(name: str, probe: str) -> None:
    whole, batch, words = model(name), inputs(name), slice(-4, None)
    rows = [inputs(name, row) for row in range(2)]
    with torch.no_grad():
        stock = [whole(**each).logits[:, words] for each in (batch, *rows)]
        if not torch.allclose(stock[0], torch.cat(stock[1:]), atol=1e-4):
            pytest.skip("nor is it in stock code")
        try:
            handle = foveate.compress(whole, INSIDE[probe])
        except UnsupportedSiteError as error:
            pytest.skip(str(error))
        with handle:
            alone = torch.cat([whole(**row).logits[:, words] for row in rows])
            close(whole(**batch).logits[:, words], alone)


@each
def test_nothing_left_and_renumbered_is_a_prompt_without_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows that are no shorter than the prompt, as they count tokens that have left."""
    whole, batch = model(name), inputs(name, 1)
    if getattr(text := whole.config.get_text_config(), "sliding_window", None):
        monkeypatch.setattr(text, "sliding_window", 512)
    words = batch["input_ids"][batch["input_ids"] != unseen.token_of(whole.config)][None]
    with torch.no_grad():
        alone = whole(input_ids=words, attention_mask=torch.ones_like(words)).logits
        with foveate.compress(whole, Nothing(positions="renumber")):
            close(whole(**batch).logits[:, -4:], alone[:, -4:])


@each
def test_what_stands_for_several_tokens_goes_through_every_projection(name: str) -> None:
    """Gates, too: stock code is shown a row for every member, which are empty."""
    whole, spec, same = model(name), TYPES[name].decoder, list[bool]()

    def note(module: Any, args: Any, output: Tensor) -> None:
        same.append(bool((output == output[:, -1:]).all()))

    try:
        handle = foveate.compress(whole, PairsOf(at="decoder", layer=1, positions="virtual"))
    except UnsupportedSiteError as error:
        pytest.skip(str(error))
    *_, layer = trial.base_of(whole)[1].get_submodule(spec.module).get_submodule(spec.layers).children()
    noted = [
        child.register_forward_hook(note)
        for child in layer.get_submodule(spec.attention).children()
        if isinstance(child, nn.Linear)
    ]
    with torch.no_grad(), handle:
        whole(**inputs(name, 1))
    for hook in noted:
        hook.remove()
    assert same == [False] * len(noted)


@each
@pytest.mark.parametrize("how", HALF)
def test_a_step_is_a_full_forward(name: str, how: str) -> None:
    whole, batch = model(name), inputs(name)
    length = batch["input_ids"].shape[1]
    with torch.no_grad(), foveate.compress(whole, HALF[how]):
        made = whole.generate(
            **batch, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
        ids = made.sequences
        longer = {key: _longer(key, value, ids.shape[1] - length) for key, value in batch.items()} | {"input_ids": ids}
        full = whole(**longer).logits
    for step, logits in enumerate(made.logits):
        close(full[:, length - 1 + step], logits)


def _longer(key: str, x: Any, n: int) -> Any:
    fill = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
    return torch.nn.functional.pad(x, (0, n), value=fill[key]) if key in fill else x


@each
def test_the_report_says_what_is_left_of_an_image(name: str) -> None:
    """One prompt: its image is one line, and FLOPs that were saved are those of the language model."""
    if name == "aria" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("stock experts of older ones are not counted as the report counts them")
    whole, batch, count = model(name), inputs(name, 0), _inputs(name)[1]
    stock = counted("eager", lambda: whole(**batch))
    with torch.no_grad(), foveate.compress(whole, foveate.FastV(layer=2, ratio=0.5)) as handle:
        whole(**batch)  # a report is of the last call
        ran = counted("eager", lambda: whole(**batch))
        report = handle.report()
    (visit,) = report.visits
    assert visit.shapes == ((1, count),)
    assert report.visual_tokens == count
    assert sum(visit.after) == (count + 1) // 2 == report.layer_tokens[-1] - (batch["input_ids"].shape[1] - count)
    assert sum(report.full_flops.values()) - sum(report.flops.values()) == stock - ran > 0


@each
def test_the_report_counts_a_step(name: str) -> None:
    """What a second word costs, with a cache of tokens that have left."""
    if name == "aria" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("stock experts of older ones are not counted as the report counts them")
    whole, batch, ran, said = model(name), inputs(name, 0), list[int](), list[int]()
    for words in (1, 2):
        with foveate.compress(whole, foveate.Random(layer=1, ratio=0.5)) as handle:
            ran.append(counted("eager", partial(whole.generate, **batch, max_new_tokens=words, pad_token_id=0)))
            said.append(sum(handle.report().flops.values()))
    assert ran[1] - ran[0] == said[1] - said[0] > 0


@pytest.mark.parametrize("name", [name for name in NAMES if TYPES[name].takes_videos])
def test_the_report_says_what_is_left_of_a_video(name: str) -> None:
    whole, (_, count) = model(name), _inputs(name)
    video = unseen.video_of(name, whole.config, inputs(name, 1))
    with torch.no_grad(), foveate.compress(whole, foveate.FastV(layer=2, ratio=0.5)) as handle:
        whole(**video)
        report = handle.report()
    assert report.visual_tokens == count
    assert sum(report.visits[0].after) == (count + 1) // 2


@each
def test_what_acts_in_the_tower_is_told_why_not(name: str) -> None:
    for method in (foveate.ToMe(), foveate.VisionZip(), foveate.Downsample()):
        with pytest.raises(UnsupportedSiteError, match=r"foveate knows the language model alone, as .*: act at"):
            foveate.compress(model(name), method)
