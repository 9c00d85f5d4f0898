"""Who sees whom in the vision tower: new tokens that read the patches and do not disturb them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import stand_ins
import tiny
import torch
from calls import ROWS, close
from contract import CORE, PROPERTIES, Property
from probes.registers import Registers
from refusals import refused
from torch import Tensor

import foveate
from foveate import Host, Method, Signal, Site, Tokens
from foveate.answers import Answer, Sight
from foveate.errors import ConfigError, UnsupportedModelError, UnsupportedSiteError

ISOLATED = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 0, 1]]).bool()


@dataclass(frozen=True)
class Isolated(Registers):
    """Registers that patches do not see, and what they are at the tower's output."""

    seen: ClassVar[list[Tensor]] = []

    def sites(self, host: Host) -> Sequence[Site]:
        append, *cut = super().sites(host)
        sight = Site.tower(self.block, action="sight")
        return [append, sight, *cut, Site.output(signals=(Signal("hidden", of="appended"),))]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "sight":
            return Sight(tokens.appended.long(), ISOLATED)
        if site.at == "tower_output":
            self.seen.append(tokens.signal(site.asked[0]))
            return tokens.keep_best(tokens.index.float(), 1.0)
        return super().answer(tokens, site)


def at_the_end(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The rows that the projector or merger is given."""
    found: list[Tensor] = []
    listen = tiny.end(model).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        model(**batch)
    listen.remove()
    return found[0]


@pytest.mark.parametrize("family", [family for family in tiny.STRUCTURES if family not in tiny.cpm.FAMILIES])
def test_patches_are_those_of_the_stock_tower(family: str) -> None:
    """In rows of their own, in one sequence with windows, in tiles, and where all images share a row."""
    impls = ("sdpa", "eager") if family in tiny.WHOLE else ("sdpa",)
    for impl in impls:
        model, batch = tiny.model(family, impl), tiny.inputs(family, ROWS[family])
        stock = at_the_end(model, batch)
        with foveate.compress(model, Registers(2, 1)):
            disturbed = at_the_end(model, batch)
        with foveate.compress(model, Isolated(2, 1)):
            close(at_the_end(model, batch), stock)
        assert not torch.allclose(disturbed, stock, atol=1e-3), "others do"


def test_new_tokens_read_the_patches() -> None:
    """They are what blocks make of them beside the patches as the stock tower has them."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5, "image"]])
    given: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: given.append(args[0])) for b in tiny.blocks(model)]
    at_the_end(model, batch)
    for hook in hooks:
        hook.remove()
    method = Isolated(2, 1)
    new = method.drawn(Tokens(*[None] * 5, hidden=given[1][0]))  # type: ignore[arg-type,misc]
    new = new.expand(2, -1, -1)
    with torch.no_grad():
        for x, block in list(zip(given, tiny.blocks(model)))[1:]:
            new = block(torch.cat([x, new], 1), attention_mask=None)[:, -2:]
    Isolated.seen.clear()
    with torch.no_grad(), foveate.compress(model, method):
        model(**batch)
    close(Isolated.seen[0], new.flatten(0, 1))


@pytest.mark.parametrize("check", [*CORE, *(c for c in PROPERTIES if c.__name__ == "flash_attention_agrees")])
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_it_has_the_properties(family: str, check: Property) -> None:
    check(family, Isolated(2, 1, cut=3))


def test_reports_say_it() -> None:
    model = tiny.model("llava")
    with torch.no_grad(), foveate.compress(model, Isolated()) as handle:
        model(**tiny.inputs("llava", [[3, "image", 5]]))
        says = [(visit.site, visit.says) for visit in handle.report().visits[:2]]
    assert says == [
        ("tower 0 (append)", "2 tokens appended"),
        ("tower 0 (sight)", "group 0 sees group 0, text; text sees group 0, text"),
    ]


@dataclass(frozen=True)
class Says(Method):
    """Whatever is asked for."""

    places: tuple[Site, ...] = (Site.tower(0, action="sight"),)
    what: Any = None

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        return self.what(tokens)  # type: ignore[no-any-return]


def test_refusals() -> None:
    model, batch, sight = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]]), Site.tower(1, action="sight")
    for places, sentence in (
        ((sight, Site.append(2)), "appends tokens of which nothing is said at tower 2"),
        ((sight, Site.park(2, 0.5), Site.restore(3)), "parks tokens that may be seen at tower 2"),
    ):
        refused(model, Says(places), UnsupportedSiteError, sentence)
    for family in tiny.cpm.FAMILIES:
        refused(
            tiny.model(family),
            Says((sight,)),
            UnsupportedSiteError,
            "says at tower 1 .sight. who sees whom, and this tower",
        )
    for options in (dict(mid=True), dict(unit="patch")):
        with pytest.raises(ConfigError, match="who sees whom is said before a block"):
            Site.tower(1, action="sight", **options)
    for options in (dict(window=1), dict(apart=True)):

        def says(tokens: Tokens, options: dict[str, Any] = options) -> Sight:
            return Sight(tokens.index * 0, torch.ones(2, 2).bool(), **options)

        with foveate.compress(model, Says(what=says)), pytest.raises(ConfigError, match="are for the language model"):
            model(**batch)
    early = Says((Site.decoder(1, signals=(Signal("hidden", of="appended"),)),))
    refused(model, early, UnsupportedSiteError, "they are known at the tower's output")
    flash = stand_ins.with_flash("llava")
    refuses = pytest.raises(UnsupportedModelError, match="flash attention takes no mask of pairs")
    with stand_ins.flash_attention(), foveate.compress(flash, Isolated()), refuses:
        flash(**batch)


def test_two_sides_may_say_it() -> None:
    """One method in the tower, another in the language model."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, Isolated() + foveate.VoCoLLaMA(keep=0.2)) as handle:
        model(**batch)
        assert [visit.site for visit in handle.report().visits if "sight" in visit.site] == [
            "tower 0 (sight)",
            "lm_entry (sight)",
        ]
