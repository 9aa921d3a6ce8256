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
SPARE = (64, 4, 16)
#: Clusters join after a sweep that moved more than this share of an instance, or nothing: to join
#: changes sums so much that all nodes have to be looked at again.
RESTLESS = 1 / 256
#: What rounding may add to a gain, in units of a node's length.
SLACK = 1e-3

#: Called after each sweep with the number of nodes that moved.
Tick = Callable[[int], None]


def moves(level: Level, partition: Partition, tick: Tick | None = None) -> tuple[Partition, int]:
    """Single nodes move and clusters join while that lowers the objective; and the sweeps it took.

    A sweep finds the best cluster of each node (n x K x d) and moves those that gain, in the order
    of their gains, each re-checked against the sums as they are by then. Nodes are passed over
    whose gain cannot have become positive: if cluster c changes by (dS_c, dm_c), no node's gain
    grows by more than |x| (|dS| of its own cluster + the largest |dS|), weights included. O(n K d)
    for the first sweeps, less for the others.
    """
    search = _Search(level, partition)
    sweeps = 0
    while sweeps < MOST_SWEEPS:
        sweeps += 1
        moved, changed = search.sweep()
        if tick is not None:
            tick(moved)
        if not changed:
            break
    return search.partition(), sweeps


class _Search:
    """Slots with room for new clusters, and for each node a bound on what it can gain by a move."""

    def __init__(self, level: Level, partition: Partition) -> None:
        self.level = level
        self.instance = level.instance()
        self.sizes = level.offsets.diff()
        x = level.features
        ones = x.new_ones(()) if level.weights is None else level.weights
        length = torch.linalg.vector_norm(x, dim=1)
        self.reach = torch.hypot(length, abs(level.alpha) ** 0.5 * ones)
        self._lay_out(partition)

    def _lay_out(self, partition: Partition) -> None:
        spare = torch.nn.functional.pad(
            (self.sizes // SPARE[0]).clamp(*SPARE[1:]).cumsum(0), (1, 0)
        )
        self.offsets = partition.offsets + spare
        self.slots = int(self.offsets[-1])
        self.slot_instance = instance_of(self.offsets, self.slots)
        self.labels = partition.labels + spare[self.instance]
        self.sums, self.masses, self.counts = self.level.sums_of(self.labels, self.slots)
        self.bound = torch.full_like(self.reach, torch.inf)

    def partition(self) -> Partition:
        return partition_of(self.labels, self.level.offsets, self.slots)

    def sweep(self) -> tuple[int, bool]:
        """(nodes that moved, whether anything changed)."""
        sums, masses = self.sums, self.masses
        moved = self._move()
        total = int(moved.sum())
        joins = (moved == 0) | (moved > self.sizes * RESTLESS)
        if bool(joins.any()) and self._join(joins):
            return total, True
        if total == 0:
            return 0, False
        empty = torch.zeros_like(self.sizes).index_add(
            0, self.slot_instance, (self.counts == 0).to(self.sizes.dtype)
        )
        if bool((empty == 0).any()):
            self._lay_out(self.partition())
        else:
            self._widen(sums, masses)
        return total, True

    def _state(self, labels: Tensor) -> tuple[Tensor, ...]:
        return labels, self.sums, self.masses, self.counts, self.offsets

    def _move(self) -> Tensor:
        """[B] how many nodes moved."""
        level = self.level
        looked = (self.bound > -SLACK * self.reach).nonzero()[:, 0]
        if 2 * len(looked) > len(level):
            target, gain = ops.multicut_best_cluster(
                *level.nodes, *self._state(self.labels), level.backend
            )
            self.bound = gain
        else:
            weights = None if level.weights is None else level.weights[looked]
            offsets = torch.searchsorted(looked, level.offsets)
            found, gain = ops.multicut_best_cluster(
                level.features[looked],
                weights,
                offsets,
                level.alpha,
                level.negative_dims,
                *self._state(self.labels[looked]),
                level.backend,
            )
            self.bound[looked] = gain
            target = torch.empty_like(self.labels)
            target[looked] = found
        wants = (self.bound > 0).nonzero()[:, 0]
        if len(wants) == 0:
            return torch.zeros_like(self.sizes)
        order = wants[self.bound[wants].argsort(descending=True, stable=True)]
        if len(self.sizes) > 1:
            order = order[self.instance[order].argsort(stable=True)]
        instances = torch.arange(len(self.sizes) + 1, device=order.device)
        borders = torch.searchsorted(self.instance[order], instances)
        labels, self.sums, self.masses, self.counts, moved = ops.multicut_move(
            *level.nodes, *self._state(self.labels), order, borders, target, level.backend
        )
        # Another cluster is now their own: the bound was not about that.
        self.bound = torch.where(labels == self.labels, self.bound, torch.inf)
        self.labels = labels
        return moved

    def _widen(self, sums: Tensor, masses: Tensor) -> None:
        """Raises the bounds by what the change from these sums to the present ones may be worth."""
        change = torch.linalg.vector_norm(self.sums - sums, dim=1)
        change = torch.hypot(change, abs(self.level.alpha) ** 0.5 * (self.masses - masses))
        largest = change.new_zeros(len(self.sizes))
        largest = largest.scatter_reduce(0, self.slot_instance, change, "amax")
        change = change.to(self.reach.dtype)
        widest = largest.to(self.reach.dtype)[self.instance]
        self.bound = self.bound + self.reach * (change[self.labels] + widest)

    def _join(self, instances: Tensor) -> bool:
        """Joins clusters of these instances [B] greedily; whether any did."""
        partition = self.partition()
        joined = join(self.level, partition)
        if joined.count == partition.count:
            return False
        if not bool(instances.all()):
            here = instances[self.instance]
            names = partition.count + joined.count
            both = torch.where(here, partition.count + joined.labels, partition.labels)
            joined = partition_of(both, self.level.offsets, names)
            if joined.count == partition.count:
                return False
        self._lay_out(joined)
        return True


def join(level: Level, partition: Partition) -> Partition:
    """Clusters joined greedily while a pair of them attracts. O(K^2 d)."""
    sums, masses, _ = level.sums_of(partition.labels, partition.count)
    # In float64, so that what moves won is not undone by rounding.
    above = Level(sums, masses, partition.offsets, level.alpha, level.negative_dims, level.backend)
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
