"""New tokens in the vision tower: the same as a tower into which they are put by hand, and gone when its blocks have run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from calls import ROWS, close, counted, text_of
from contract import CORE, PROPERTIES, Property, a_batch_is_its_rows, the_report_counts_what_ran
from probes.registers import Registers
from refusals import refused
from torch import Tensor

import foveate
from foveate import Host, Method, Site, Tokens
from foveate.answers import Answer, Append
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.models import family_of
from foveate.runtime.attach import host_of
from foveate.serving.plan import make_plan

CASES: dict[str, Registers] = {
    "first block": Registers(),
    "second block": Registers(3, 1),
    "somewhere": Registers(2, 0, at=(0.5, 3.0)),
}


def at_the_end(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The rows that the projector or merger is given."""
    found: list[Tensor] = []
    listen = tiny.end(model).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        model(**batch)
    listen.remove()
    return found[0]


def by_hand(family: str, model: Any, batch: dict[str, Tensor], method: Registers) -> Tensor:
    """The same rows of a tower in which the new ones are put behind those of each image, and taken away behind its blocks."""
    given: list[tuple[Tensor, dict[str, Any]]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: given.append((args[0], kwargs)), with_kwargs=True)
        for block in tiny.blocks(model)
    ]
    at_the_end(model, batch)
    for hook in hooks:
        hook.remove()
    x = given[method.block][0]
    blocks = list(enumerate(tiny.blocks(model)))[method.block :]
    with torch.no_grad():
        if family == "llava":
            n = x.shape[1]
            new = method.drawn(Tokens(*[None] * 5, hidden=x[0]))  # type: ignore[arg-type,misc]
            x = torch.cat([x, new.expand(len(x), -1, -1)], dim=1)
            for _, block in blocks:
                x = block(x, attention_mask=None)
            return x[:, 1:n]
        new = method.drawn(Tokens(*[None] * 5, hidden=x.view(-1, 4 * x.shape[1])))  # type: ignore[arg-type,misc]
        new = new.view(-1, x.shape[1])  # four rows each
        ends = torch.tensor([t * h * w for t, h, w in batch["image_grid_thw"].tolist()]).cumsum(0).tolist()
        rows, turned, own = [], [], []
        rotary = tiny.tower(model).rotary_pos_emb
        for i in range(len(x)):
            rows.append(x[i])
            turned.append(tuple(part[i] for part in given[0][1]["position_embeddings"]))
            own.append(True)
            if i + 1 not in ends:
                continue
            _, height, width = batch["image_grid_thw"][ends.index(i + 1)].tolist()
            y, x_ = method.at or ((height // 2 - 1) / 2, (width // 2 - 1) / 2)
            for k in range(len(new)):
                dy, dx = divmod(k % 4, 2)
                angle = torch.cat([(2 * y + dy) * rotary.inv_freq, (2 * x_ + dx) * rotary.inv_freq]).repeat(2)
                rows.append(new[k])
                turned.append((angle.cos(), angle.sin()))
                own.append(False)
        x = torch.stack(rows)
        positions = tuple(torch.stack(parts) for parts in zip(*turned))
        for i, block in blocks:
            stock = given[i][1]["cu_seqlens"].tolist()
            borders = [border + len(new) * sum(end <= border for end in ends) for border in stock]
            x = block(x, cu_seqlens=torch.tensor(borders, dtype=torch.int32), position_embeddings=positions)
        return x[torch.tensor(own)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_the_tower_is_one_that_has_them(family: str, case: str, impl: str) -> None:
    model, method = tiny.model(family, impl), CASES[case]
    batch = tiny.inputs(family, ROWS[family])
    expected, stock = by_hand(family, model, batch, method), at_the_end(model, batch)
    with foveate.compress(model, method):
        found = at_the_end(model, batch)
    assert found.shape == stock.shape
    assert not torch.allclose(expected, stock, atol=1e-2), "they matter"
    close(found, expected, 1e-3)


@dataclass(frozen=True)
class AsMany(Method):
    """As many tokens as the content of an image asks for, 0 to 2, before two blocks; between them half of all leaves."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.append(0), Site.tower(2, 0.5), Site.append(2), Site.output(0.75)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return tokens.keep_best(-((tokens.index * 7) % 5).float() + 3.0 * tokens.appended, site)
        means = [
            part.mean(0) if len(part) else part.new_zeros(part.shape[1]) for part in tokens.hidden.split(tokens.counts)
        ]
        counts = tuple(int(mean[0].abs() * 1e3) % 3 for mean in means)
        return Append(torch.cat([mean.expand(n, -1) for mean, n in zip(means, counts, strict=True)]), counts)


METHODS: dict[str, Method] = {
    "registers": Registers(),
    "cut": Registers(2, 1, cut=3),
    "as many": AsMany(),
    "parked": Registers(1) + foveate.IPCV(keep=0.5, stabilise=1, min_tokens=0),
    "merged": Registers(1) + foveate.ToMe(keep=0.6),
}


#: all of the contract where tokens come and go in the tower, what is at its core elsewhere
CHECKED = [(name, check) for name in METHODS for check in (PROPERTIES if name in ("cut", "as many") else CORE)]


@pytest.mark.parametrize(("name", "check"), CHECKED, ids=lambda x: x if isinstance(x, str) else x.__name__)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_it_has_every_property(family: str, name: str, check: Property) -> None:
    check(family, METHODS[name])


@pytest.mark.parametrize("family", [family for family in tiny.STRUCTURES if family not in tiny.WHOLE])
def test_every_structure(family: str) -> None:
    """Taps, tiles, rows of several images, patches that are put together."""
    if family in tiny.cpm.FAMILIES:
        refused(tiny.model(family), Registers(), UnsupportedSiteError, "this tower merges rows where block 3 begins")
        return
    for method in (Registers(1), Registers(2, 1, cut=3)):
        a_batch_is_its_rows(family, method)
        the_report_counts_what_ran(family, method)


def test_they_come_when_the_tower_has_merged_rows() -> None:
    config = tiny.config("minicpmv4_6")
    config.vision_config.insert_layer_id = 0
    model, rows = tiny.build(config), ROWS["minicpmv4_6"]
    batch = tiny.inputs("minicpmv4_6", rows)
    with torch.no_grad():
        stock, text = model(**batch).logits, text_of("minicpmv4_6", batch)
    with torch.no_grad(), foveate.compress(model, Registers(2, 2, cut=3)):
        together = model(**batch).logits
        assert not torch.allclose(together[text], stock[text], atol=1e-3)
        for i in range(len(rows)):
            alone = tiny.inputs("minicpmv4_6", rows, only=i)
            close(together[i][text[i]], model(**alone).logits[0][text_of("minicpmv4_6", alone)[0]])


def test_a_report_counts_them() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    with foveate.compress(model, Registers(2, 1, cut=3)) as handle:
        flops = counted("sdpa", lambda: model(**batch))
        report = handle.report()
    n = report.visual_tokens
    assert sum(report.flops.values()) == flops
    assert [(visit.site, visit.says) for visit in report.visits[:1]] == [("tower 1 (append)", "2 tokens appended")]
    assert report.block_flops[1] > report.full_block_flops[1] == report.block_flops[0] > report.block_flops[3]
    assert report.visits[1].before == (n,)
    assert report.visits[1].after == ((n + 2) // 2 - 2,), "of the image's own; the registers stay"


# -- what is refused ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says(Method):
    """Whatever is asked for."""

    places: tuple[Site, ...] = (Site.append(0),)
    what: Any = None

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        return self.what  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ((Site.park(1, 0.5), Site.append(2), Site.restore(3)), "whose other tokens are parked since tower 1"),
        ((Site.append(2), Site.tower(2, signals=("keys",))), "append before block 1, or ask of block 2 or later"),
        ((Site.append(1), Site.output(signals=("hidden", foveate.Signal("hidden", layer=0)))), "append before block 0"),
        ((Site.append(1), Site.entry(signals=(foveate.Signal("hidden", layer=0, at="tower"),))), "knows nothing"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(places: tuple[Site, ...], sentence: str) -> None:
    refused(tiny.model("llava"), Says(places), UnsupportedSiteError, sentence)


def test_other_refusals() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5]])
    for site in (dict(mid=True), dict(unit="patch")):
        with pytest.raises(ConfigError, match="new tokens come before a block, as wide as tokens are"):
            Site.append(1, **site)
    for append, sentence in (
        (Append(torch.zeros(1, 1, 31)), r"hidden is float32 \(1, 1, 31\), expected floats \(1, any number, 32\)"),
        (Append(torch.zeros(1, 1, 32), coords=torch.zeros(1, 2)), r"coords is .*expected floats \(1, 1, 2\)"),
    ):
        with foveate.compress(model, Says(what=append)), pytest.raises(ConfigError, match=sentence):
            model(**batch)
    entry = Says((Site.append(),), Append(torch.zeros(1, 1, 64), coords=torch.zeros(1, 1, 2)))
    with foveate.compress(model, entry), pytest.raises(ConfigError, match="coords, which are for the tower"):
        model(**batch)
    family = family_of(model.config)
    with pytest.raises(UnsupportedSiteError, match="says how many tokens each site has before there are any"):
        make_plan(Registers(), host_of(model, family), family, model.config)
