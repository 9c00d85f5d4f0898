"""VisToG's groups are those of a loop over images, patches and semantic tokens; patches do not see these."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from calls import close
from torch import Tensor

import foveate
from foveate import VisToG
from foveate.ops.relax import soft_assign

ROWS: list[list[tiny.Item]] = [[3, "image", 5, "image", 2], [2, "image", 4]]


def by_loop(x: Tensor, semantic: Tensor, place: Tensor, parts: Any) -> Tensor:
    """The groups ``(k, C)`` of one image."""
    query, key = parts["query"](x), parts["key"](semantic)
    members: list[list[Tensor]] = [[] for _ in semantic]
    for n in range(len(x)):
        at = (place == n).nonzero().flatten().tolist()
        members[at[0] if at else int((key @ query[n]).argmax())].append(x[n])
    return torch.stack([torch.stack([*each, s]).mean(0) for each, s in zip(members, semantic)])


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_groups_are_those_of_a_loop(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, method, seen = tiny.model(family), VisToG(keep=0.2), []
    reduce = VisToG.reduce

    def noting(self: VisToG, tokens: foveate.Tokens, site: foveate.Site) -> foveate.Reduction:
        found = reduce(self, tokens, site)
        seen.append((tokens, tokens.signal(site.asked[0]), found, self.learned))
        return found

    monkeypatch.setattr(VisToG, "reduce", noting)
    with torch.no_grad(), foveate.compress(model, method) as handle:
        model(**tiny.inputs(family, ROWS))
        visits = [(visit.site, visit.says) for visit in handle.report().visits]
        (tokens, semantic, found, parts) = seen[0]
        counts = found.counts
        assert counts == tuple(max(1, round(0.2 * n)) for n in tokens.counts)
        assert len(semantic) == sum(counts)
        start = torch.tensor([0, *tokens.counts]).cumsum(0)
        for i, (x, s, y, keep) in enumerate(
            zip(
                tokens.hidden.split(tokens.counts),
                semantic.split(counts),
                found.hidden.split(counts),
                found.keep.split(counts),
            )
        ):
            close(y, by_loop(x, s, keep - start[i], parts), 1e-4)
    assert [site for site, _ in visits] == ["tower 0 (append)", "tower 0 (sight)", "tower_output"]
    assert float(found.sizes.sum()) == len(tokens)


def test_gradients_go_through_the_choice() -> None:
    """That of a query is what its group's probability is worth; of a segment without keys nothing is chosen."""
    torch.manual_seed(0)
    query, key = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4)
    chance, which = soft_assign(query, key, (3, 0, 2), (2, 1, 0))
    assert which.tolist()[3:] == [3, 3]
    logits = (query[:3] @ key[:2].T).softmax(-1)
    torch.testing.assert_close(chance[:3], logits.max(-1).values)
    assert which.tolist()[:3] == logits.argmax(-1).tolist()
    chance.sum().backward()
    assert bool(query.grad[:3].any())  # type: ignore[index]
    assert not bool(query.grad[3:].any())  # type: ignore[index]


def test_noise_is_of_training_alone() -> None:
    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS)
    with torch.no_grad(), foveate.compress(model, VisToG(keep=0.2, noise=1.0)):
        first, again = (tiny.text_logits(model, batch) for _ in range(2))
        assert torch.equal(first, again)
        model.train()
        first, again = (tiny.text_logits(model, batch) for _ in range(2))
        assert not torch.equal(first, again)
