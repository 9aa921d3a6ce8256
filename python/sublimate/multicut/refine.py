"""Local search: nodes move, clusters join, chains of moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .autograd import ops
from .level import Level, Partition, instance_of, partition_of
from .rounds import greedy

#: Sweeps end here even if something still moves; measured: 2 to 30.
MOST_SWEEPS = 200
#: Empty slots for nodes that leave into clusters of their own: a share of an instance's nodes,
#: at least and at most.
SPARE = (64, 4, 64)

#: Called after each sweep with the number of nodes that moved.
Tick = Callable[[int], None]


def moves(level: Level, partition: Partition, tick: Tick | None = None) -> tuple[Partition, int]:
    """Single nodes move and clusters join while that lowers the objective; and the sweeps it took.

    A sweep finds each node's best cluster (n x K x d), and moves those that gain in the order of
    their gains, each re-checked against the sums as they are by then. When nothing moves, clusters
    are joined greedily. O(n K d) a sweep.
    """
    sweeps = 0
    while sweeps < MOST_SWEEPS:
        sweeps += 1
        partition, moved = sweep(level, partition)
        if tick is not None:
            tick(moved)
        joined = join(level, partition)
        if moved == 0 and joined.count == partition.count:
            break
        partition = joined
    return partition, sweeps


def sweep(level: Level, partition: Partition) -> tuple[Partition, int]:
    """One pass over all nodes: (partition, how many moved)."""
    sizes = level.offsets.diff()
    spare = torch.nn.functional.pad((sizes // SPARE[0]).clamp(*SPARE[1:]).cumsum(0), (1, 0))
    slot_offsets = partition.offsets + spare
    slots = int(slot_offsets[-1])
    instance = instance_of(level.offsets, len(level))
    labels = partition.labels + spare[instance]
    state = (labels, *level.sums_of(labels, slots), slot_offsets)
    target, gain = ops.multicut_best_cluster(*level.nodes, *state, level.backend)
    wants = (gain > 0).nonzero()[:, 0]
    if len(wants) == 0:
        return partition, 0
    order = wants[gain[wants].argsort(descending=True, stable=True)]
    order = order[instance[order].argsort(stable=True)]
    borders = torch.searchsorted(instance[order], torch.arange(len(sizes) + 1, device=order.device))
    labels, _, _, _, moved = ops.multicut_move(
        *level.nodes, *state, order, borders, target, level.backend
    )
    return partition_of(labels, level.offsets, slots), int(moved.sum())


def join(level: Level, partition: Partition) -> Partition:
    """Clusters joined greedily while a pair of them attracts. O(K^2 d)."""
    sums, masses, _ = level.sums_of(partition.labels, partition.count)
    # In float64, so that what moves won is not undone by rounding.
    above = Level(
        sums, masses, partition.offsets, level.alpha, level.negative_dims, level.backend
    )
    return greedy(above).after(partition)


def kernighan_lin(
    level: Level, partition: Partition, neighbors: int, rounds: int
) -> tuple[Partition, Tensor]:
    """Chains of moves between pairs of clusters; and by how much each instance's objective fell."""
    n = len(level)
    lowest = torch.full((partition.count,), n, dtype=torch.int64, device=level.offsets.device)
    nodes = torch.arange(n, device=level.offsets.device)
    lowest = lowest.scatter_reduce(0, partition.labels, nodes, "amin")
    labels, gains = ops.multicut_kernighan_lin(
        *level.nodes, lowest[partition.labels], neighbors, rounds, level.backend
    )
    return partition_of(labels, level.offsets, n), gains
