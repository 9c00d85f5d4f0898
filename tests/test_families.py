"""What the docs say of every family: their tables are those that are generated, and what they call refused is."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_alike
import tiny_diffusion
import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LISTED

import foveate
from foveate import Host, Method, Site, Tokens
from foveate.errors import FoveateError, UnsupportedModelError
from foveate.models import family_of, list_families
from foveate.models.refused import REFUSED
from foveate.ops import select
from foveate.tokens import Reduction

ROOT = Path(__file__).parents[1]
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "family_tables.py"))


@dataclass(frozen=True)
class At(Method):
    """Every second token, at one site."""

    site: Site = field(default_factory=lambda: Site("tower", 2))

    def sites(self, host: Host) -> Sequence[Site]:
        return [self.site]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(0.5)
        return Reduction(select.stride(tokens.counts, counts), counts)


def test_every_family_is_in_the_matrix() -> None:
    """But for one that does not write word by word, which has a file of its own: runtime/test_canvas.py."""
    own = {*tiny.FAMILIES, tiny_diffusion.NAME}
    seen = {
        name for name, family in list_families().items() if not family.tower.unseen
    }  # others: test_language_only.py
    assert own | {*tiny_alike.ALIKE} >= seen >= own


def test_the_tables_are_those_of_the_code() -> None:
    if not {family.model_type for family in list_families().values()} <= {*CONFIG_MAPPING}:
        pytest.skip("this transformers does not know all families")
    families, sites = (page.read_text() for page in TOOL["PAGES"])
    assert TOOL["written"](families) == families, "run: python tools/family_tables.py"
    assert TOOL["written"](sites) == sites
    assert all(f"`{name}`" in families for family in list_families().values() for name in (family.name, *family.types))
    assert all(f"| `{family}`" in sites for family in list_families())


def test_what_does_not_run_on_a_family_is_named() -> None:
    found = {"fastv": {"options": {"layer": 4}}, "evs": {"options": None}, "luvc": {"options": {}}}
    assert TOOL["without"](found) == "`EVS`; only with `layer=4`: `FastV`"
    assert TOOL["without"]({}) == "none"


def test_every_type_works_or_says_why() -> None:
    """All that transformers lists for images and text."""
    known = {name for family in list_families().values() for name in family.types}
    assert not known & set(REFUSED)
    if Version(transformers.__version__) < Version("5.25"):  # later ones may have more
        assert set(LISTED) <= known | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why(name: str) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know it")
    assert name not in list_families()
    assert f"`{name}`" in (ROOT / "docs" / "families.md").read_text()
    with pytest.raises(UnsupportedModelError, match=f"does not support the model family '{name}', because ") as error:
        family_of(SimpleNamespace(model_type=name))
    assert "llava, " in str(error.value)


@pytest.mark.parametrize(
    ("what", "site"),
    [
        ("`cls_row`", Site("tower", 2, signals=("cls_row",))),
        ("dropping single patches", Site("tower", 2, unit="patch")),
        ("`decode` sites", Site("decode", 3)),
        ("`pixels` sites", Site("pixels")),
    ],
    ids=["cls_row", "patch", "decode", "pixels"],
)
def test_what_the_table_calls_refused_is(family: str, what: str, site: Site) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    if what in TOOL["refused"](list_families()[family]):
        with pytest.raises(FoveateError, match=r"CLS|single patches|not sliding ones|images of one size only"):
            foveate.compress(model, At(site=site)).remove()
        return
    if site.at == "pixels":
        return  # wants a new grid
    with torch.no_grad(), foveate.compress(model, At(site=site)):
        assert model(**batch).logits.isfinite().all()


def test_only_means_over_frames_can_leave_something_out() -> None:
    """Another way to pool is refused in the tower of a video, and nowhere else."""
    model = tiny.build(tiny.config("llava_next_video"))
    video, image = (tiny.inputs("llava_next_video", [[3, item, 5]]) for item in ((2,), (4, 8)))
    model.config.spatial_pool_mode = "max"
    model.model.vision_resampler.pool = torch.nn.MaxPool2d(2, 2)
    with torch.no_grad():
        with foveate.compress(model, At()):
            assert model(**image).logits.isfinite().all()
            with pytest.raises(UnsupportedModelError, match=r"'max'.*reduce in its language model"):
                model(**video)
        with foveate.compress(model, At(site=Site("decoder", 2))):
            assert model(**video).logits.isfinite().all()
