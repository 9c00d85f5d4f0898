"""Optimal transport between sets of points, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

import torch
from torch import Tensor

from foveate.ops.segments import to_padded


def sinkhorn(cost: Tensor, there: Tensor, epsilon: float, rounds: int = 20) -> Tensor:
    """Return the entropic transport distance of pairs of sets, whose points all weigh the same: ``(...)``.

    Args:
        cost: ``(..., Q, P)``, from each point of the one set to each of the other.
        there: bool, of the same shape, pairs of points that there are; all pairs of some rows with some columns. A pair of sets
            of which one is empty has distance 0.
        epsilon: strength of the entropic term, above 0.
        rounds: how often rows and columns are scaled to their sums.
    """
    plan = torch.where(there, -cost / epsilon, -inf)
    # Scaled along the columns, each row has its share of the whole, one over the number of rows; and the other way round.
    rows, columns = (there.any(axis).sum(-1)[..., None, None].clamp(min=1).log() for axis in (-1, -2))
    for _ in range(rounds):
        for axis, points in ((-1, rows), (-2, columns)):
            plan = torch.where(there, plan - plan.logsumexp(axis, keepdim=True) - points, -inf)
    return torch.where(there, plan.exp() * cost, 0.0).sum((-1, -2))


def plan(cost: Tensor, weight: Tensor, other: Tensor, epsilon: float, rounds: int = 50) -> Tensor:
    """Return the entropic transport plan between pairs of sets of weighted points: ``(P, Q, R)``, as logarithms.

    Args:
        cost: ``(P, Q, R)``, from each point of the one set to each of the other.
        weight: ``(P, Q)`` and other ``(P, R)``, 0 or more; those of a set count by their share, and one without weight is not
            there.
        epsilon: strength of the entropic term, above 0.
        rounds: how often rows and columns are scaled to their sums.
    """
    rows, columns = ((each / each.sum(-1, keepdim=True).clamp(min=1e-12)).log() for each in (weight, other))
    there = (weight[:, :, None] > 0) & (other[:, None] > 0)
    found = torch.where(there, -cost / epsilon, -inf)
    for _ in range(rounds):
        for axis, mass in ((-2, columns[:, None]), (-1, rows[:, :, None])):
            found = torch.where(there, found - found.logsumexp(axis, keepdim=True) + mass, -inf)
    return found


def carried(
    features: Tensor,
    place: Tensor,
    counts: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    like: Tensor,
    epsilon: float,
    rounds: int = 50,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the tokens of some segments over to those of others, all of which weigh the same.

    To carry a token costs ``like * (1 - cosine) + (1 - like) * distance``, where a cosine below 0 counts as 0.

    Args:
        features: ``(N, C)``.
        place: ``(N, 2)``, in units of the largest distance.
        counts: tokens per segment, sums to ``N``.
        pairs: from which segment to which; no two to the same.
        like: ``(P,)``, from 0 to 1.
        epsilon, rounds: of `plan`.

    Returns:
        ``(P,)`` what it costs; ``(N,)`` the most that is carried from a single token to each, 0 if it is in no pair; and
        ``(N,)`` packed indices, which token that is.
    """
    n, device = len(features), features.device
    unit = to_padded(torch.nn.functional.normalize(features.detach().float(), dim=-1), counts)
    where, name = to_padded(place.float(), counts), to_padded(torch.arange(n, device=device), counts, n)
    here, there = torch.tensor(pairs, dtype=torch.long).view(-1, 2).to(device, non_blocking=True).unbind(1)
    cosine = (unit[here] @ unit[there].transpose(1, 2)).clamp(min=0)
    away = torch.cdist(where[here], where[there])
    cost = like[:, None, None] * (1 - cosine) + (1 - like)[:, None, None] * away
    exists = (name < n).float()
    amount = plan(cost, exists[here], exists[there], epsilon, rounds).exp()
    most, source = amount.max(1)
    carried_to = torch.zeros(n + 1, device=device).index_put((name[there],), most)
    by = torch.arange(n + 1, device=device).index_put((name[there],), name[here].gather(1, source))
    return (amount * cost).sum((1, 2)), carried_to[:n], by[:n]


def parts(cost: Sequence[float], room: Sequence[int], total: int, temperature: float) -> list[int]:
    """Share out ``total`` by the softmax of minus the ``cost`` over a temperature; what has no room goes to the others.

    Args:
        cost: of each part.
        room: the most that each can have; together at least ``total``.
        temperature: above 0.
    """
    given = [0] * len(cost)
    while (left := total - sum(given)) > 0:
        free = [i for i, most in enumerate(room) if given[i] < most]
        least = min(cost[i] for i in free)
        weight = {i: exp((least - cost[i]) / temperature) for i in free}
        exact = {i: left * weight[i] / sum(weight.values()) for i in free}
        most_over = sorted(free, key=lambda i: int(exact[i]) - exact[i])[: left - sum(map(int, exact.values()))]
        for i in free:
            given[i] = min(room[i], given[i] + int(exact[i]) + (i in most_over))
    return given
