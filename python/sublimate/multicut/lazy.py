"""Greedy contraction on a nearest-neighbour graph that is rebuilt when it is used up."""

from __future__ import annotations

from .autograd import ops
from .distributed import topk
from .level import Level, Partition, partition_of, singletons
from .rounds import Tick

#: Edges of a node; more were slower and worse (measured on Gaussian mixtures).
NEIGHBORS = 5


def lazy(level: Level, tick: Tick | None = None) -> tuple[Partition, int]:
    """(partition, number of graphs). After Abbas and Swoboda, ICML 2023.

    Values between clusters are exact, but only pairs that an edge of the present graph joins are
    looked at. The contraction is sequential and runs on the host.
    """
    found, rounds, start = singletons(level), 0, len(level)
    while len(level) > 1:
        values, neighbors = topk(*level.nodes, NEIGHBORS, level.backend, level.group)
        neighbors = neighbors.masked_fill(~(values > 0), -1)
        if not bool((neighbors >= 0).any()):
            break
        labels = ops.multicut_lazy(*level.nodes, neighbors, level.backend)
        partition = partition_of(labels, level.offsets, len(level))
        found, rounds = partition.after(found), rounds + 1
        if tick is not None:
            tick(start, partition.count)
        if partition.count == len(level):
            break  # an edge is positive by rounding alone
        level = level.contract(partition)
    return found, rounds
