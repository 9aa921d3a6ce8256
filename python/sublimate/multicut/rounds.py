"""How clusters are first contracted: rounds on the best partner of each cluster, and greedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .autograd import ops
from .level import Level, Partition, partition_of, singletons

#: Called after each round with (nodes at the start, clusters now).
Tick = Callable[[int, int], None]


def _pairs(value: Tensor, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(partner, whether it is of positive value, whether it is the best one's best one too).

    The best pair of all is always reciprocal, since s_ij has the same bits as s_ji and ties go to
    lower indices. Should a backend round unsymmetrically, it is made so: rounds cannot stop early.
    """
    here = torch.arange(len(value), device=value.device)
    wanted = value > 0
    partner = torch.where(wanted, partner, here)
    pair = wanted & (partner[partner] == here)
    if not bool(pair.any()) and bool(wanted.any()):
        best = int(value.argmax())
        partner = partner.clone()
        partner[partner[best]] = best
        pair = wanted & (partner[partner] == here)
    return partner, wanted, pair


def star_round(level: Level) -> Partition | None:
    """Merges reciprocal best pairs, with each other node that follows into one; None if nothing.

    A node whose best partner lies in a pair joins if its value to the whole pair is positive.
    """
    partner, wanted, pair = _pairs(*level.best_partners())
    if not bool(wanted.any()):
        return None
    here = torch.arange(len(level), device=partner.device)
    hub = torch.where(pair, torch.minimum(here, partner), here)
    follower = (wanted & ~pair & pair[partner]).nonzero()[:, 0]
    first = partner[follower]
    second = partner[first]
    joins = level.value(follower, first) + level.value(follower, second) > 0
    hub[follower] = torch.where(joins, hub[first], follower)
    return partition_of(hub, level.offsets, len(level))


def reciprocal_round(level: Level) -> Partition | None:
    """Merges reciprocal best pairs; None if nothing."""
    partner, wanted, pair = _pairs(*level.best_partners())
    if not bool(wanted.any()):
        return None
    here = torch.arange(len(level), device=partner.device)
    hub = torch.where(pair, torch.minimum(here, partner), here)
    return partition_of(hub, level.offsets, len(level))


def average_round(level: Level) -> Partition | None:
    """Merges reciprocal best pairs by mean value; with all rounds, average linkage."""
    x = level.features if level.sums is None else level.sums
    w = level.weights if level.masses is None else level.masses
    means = x if w is None else x / w[:, None]
    return reciprocal_round(
        replace(
            level, features=means.to(level.features.dtype), weights=None, sums=None, masses=None
        )
    )


ROUNDS = {"star": star_round, "reciprocal": reciprocal_round, "average": average_round}


def contract_in_rounds(level: Level, name: str, tick: Tick | None = None) -> tuple[Partition, int]:
    """(partition, number of rounds) after rounds of ``name`` until one merges nothing."""
    found, rounds, start = singletons(level), 0, len(level)
    for partition in _rounds(level, name):
        found, rounds = partition.after(found), rounds + 1
        if tick is not None:
            tick(start, partition.count)
    return found, rounds


def _rounds(level: Level, name: str) -> Iterator[Partition]:
    step = ROUNDS[name]
    while len(level) > 1:
        partition = step(level)
        if partition is None:
            return
        yield partition
        level = level.contract(partition)


def greedy(level: Level) -> Partition:
    """Exact greedy additive edge contraction."""
    labels, _, _ = ops.multicut_gaec(*level.nodes, level.backend)
    return partition_of(labels, level.offsets, len(level))
