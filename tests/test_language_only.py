"""Types of which the language model alone is known (`foveate.models.language_only`): what acts there keeps the contract."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from calls import close, counted
from packaging.version import Version
from torch import Tensor
from transformers import CONFIG_MAPPING

import foveate
from foveate import Method
from foveate.errors import UnsupportedSiteError
from foveate.lab.inspection import tiny as shrinking
from foveate.lab.inspection import trial
from foveate.models import list_families

NAMES = [
    name
    for family in list_families().values()
    for name in family.types
    if family.tower.unseen and name in CONFIG_MAPPING
]
each = pytest.mark.parametrize("name", NAMES)
HALF: dict[str, Method] = {
    "at the entry": foveate.Random(layer=0, ratio=0.5),
    "twice inside": foveate.Random(layer=1, ratio=0.5) + foveate.VTW(layer=3),
}
Batch = dict[str, Any]
#: fields of configs that sizes by name do not fit
OWN: dict[str, dict[str, Any]] = {"aria": {"projector_patch_to_query_dict": {64: 8}}}


def _config(name: str) -> Any:
    config = shrinking.config_of(name)
    for field, value in OWN.get(name, {}).items():
        setattr(config, field, value)
    return config


@cache
def model(name: str) -> Any:
    """A tiny model, small weights of which matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = shrinking.model_of(_config(name)).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    made.generation_config.eos_token_id = None
    made.set_attn_implementation("eager")
    return made


@cache
def _inputs(name: str) -> tuple[Batch, int]:
    """Two rows with an image each, and features of an image."""
    whole, config = model(name), model(name).config
    base = trial.base_of(whole)[1]
    found = trial.find(config, base)
    with torch.no_grad():
        count = len(trial.features(base, found)) // trial.IMAGES
    one = trial.prompt(config, whole, found, trial.IMAGES * count)
    token = int(getattr(config, "image_token_id", -1))
    ids = torch.tensor([[1, 2, *[token] * count, 3, 4, 5, 6], [7, 8, *[token] * count, 9, 10, 11, 12]])
    of_ids = {key: (ids == token).to(one[key].dtype) for key in one if key.endswith("token_type_ids")}
    return {**one, **of_ids, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, count


def inputs(name: str, row: int | None = None) -> Batch:
    batch, _ = _inputs(name)
    if row is None:
        return dict(batch)
    return {key: _half(value, row) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _half(x: Tensor, row: int) -> Tensor:
    n = len(x) // 2
    return x[row * n : row * n + n]


@each
def test_keeping_everything_is_stock(name: str) -> None:
    whole, batch = model(name), inputs(name)
    with torch.no_grad():
        stock = whole(**batch).logits
        with foveate.compress(whole, foveate.Random(layer=0, ratio=1.0) + foveate.FastV(layer=2, ratio=1.0)):
            assert torch.equal(whole(**batch).logits, stock)
        assert torch.equal(whole(**batch).logits, stock)


@each
@pytest.mark.parametrize("how", HALF)
def test_a_batch_is_its_rows_and_a_step_a_full_forward(name: str, how: str) -> None:
    whole, batch = model(name), inputs(name)
    length = batch["input_ids"].shape[1]
    with torch.no_grad(), foveate.compress(whole, HALF[how]):
        both = whole(**batch).logits[:, -4:]
        close(both, torch.cat([whole(**inputs(name, row)).logits[:, -4:] for row in range(2)]))
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
    with torch.no_grad(), foveate.compress(whole, foveate.FastV(layer=1, ratio=0.5)) as handle:
        whole(**batch)  # a report is of the last call
        ran = counted("eager", lambda: whole(**batch))
        report = handle.report()
    (visit,) = report.visits
    assert visit.shapes == ((1, count),)
    assert report.visual_tokens == count
    assert sum(visit.after) == count // 2 == report.layer_tokens[-1] - (batch["input_ids"].shape[1] - count)
    assert sum(report.full_flops.values()) - sum(report.flops.values()) == stock - ran > 0


@each
def test_what_acts_in_the_tower_is_told_why_not(name: str) -> None:
    for method in (foveate.ToMe(), foveate.VisionZip(), foveate.Downsample()):
        with pytest.raises(UnsupportedSiteError, match=r"foveate knows the language model alone, as .*: act at"):
            foveate.compress(model(name), method)
