"""Nodes of all instances at one level of contraction, and partitions of them.

A level's nodes are clusters of the level below: their features and weights are sums, kept in
float64 and rounded to the dtype that is computed in. Instances lie one after the other, so a batch
goes through the same calls as one instance, one launch each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .autograd import ops
from .cost import signature
from .distributed import topk

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Level:
    """Nodes and what a pair of them is worth: <x_i, x_j>_q - alpha w_i w_j.

    Attributes:
        features: [N, d] float32 or float64, contiguous.
        weights: [N] of that dtype, or None for ones.
        offsets: [B + 1] int64.
        sums, masses: float64 features and weights where they are sums, else None.
    """

    features: Tensor
    weights: Tensor | None
    offsets: Tensor
    alpha: float
    negative_dims: int
    backend: str
    group: ProcessGroup | None = None
    sums: Tensor | None = None
    masses: Tensor | None = None

    @property
    def nodes(self) -> tuple[Tensor, Tensor | None, Tensor, float, int]:
        """The leading arguments of every op."""
        return self.features, self.weights, self.offsets, self.alpha, self.negative_dims

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def instances(self) -> int:
        return self.offsets.shape[0] - 1

    def instance(self) -> Tensor:
        """[N] int64: which instance a node belongs to."""
        return instance_of(self.offsets, len(self))

    def best_partners(self) -> tuple[Tensor, Tensor]:
        """(value, node) of each node's best partner; -inf and -1 where there is none."""
        values, partners = topk(*self.nodes, 1, self.backend, self.group)
        return values[:, 0], partners[:, 0]

    def value(self, i: Tensor, j: Tensor) -> Tensor:
        """s_ij in float64 for nodes i and j, [m] each."""
        x = self.features if self.sums is None else self.sums
        sign = signature(x.shape[1], self.negative_dims, x.device)
        found = (x[i].double() * x[j] * sign).sum(1)
        if self.weights is None:
            return found - self.alpha
        w = self.weights if self.masses is None else self.masses
        return found - self.alpha * w[i].double() * w[j]

    def sums_of(self, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """float64 sums, float64 masses and counts of labels in [0, clusters)."""
        if self.sums is None:
            x, w = self.features, self.weights
        else:
            x, w = self.sums, self.masses
        found: tuple[Tensor, Tensor, Tensor] = ops.multicut_contract(
            x, w, labels, clusters, self.backend
        )
        return found

    def contract(self, partition: Partition) -> Level:
        """The clusters of a partition as nodes."""
        sums, masses, _ = self.sums_of(partition.labels, partition.count)
        return self.of_sums(sums, masses, partition.offsets)

    def of_sums(self, sums: Tensor, masses: Tensor, offsets: Tensor) -> Level:
        dtype = self.features.dtype
        return replace(
            self,
            features=sums.to(dtype),
            weights=masses.to(dtype),
            offsets=offsets,
            sums=sums,
            masses=masses,
        )


@dataclass(frozen=True)
class Partition:
    """Clusters of a level's nodes, numbered through all instances by first appearance.

    Attributes:
        labels: [N] int64 in [0, count).
        offsets: [B + 1]: clusters of instance b are offsets[b] .. offsets[b + 1].
    """

    labels: Tensor
    count: int
    offsets: Tensor

    def after(self, lower: Partition) -> Partition:
        """This partition of the clusters of ``lower``, as one of the nodes of ``lower``."""
        return Partition(self.labels[lower.labels], self.count, self.offsets)

    def within_instances(self, node_offsets: Tensor) -> Tensor:
        """Labels that start from 0 in each instance."""
        return self.labels - self.offsets[instance_of(node_offsets, len(self.labels))]


def instance_of(offsets: Tensor, count: int) -> Tensor:
    """[count] int64: the instance of each item."""
    if offsets.shape[0] == 2:
        return torch.zeros(count, dtype=torch.int64, device=offsets.device)
    items = torch.arange(count, device=offsets.device)
    return torch.bucketize(items, offsets[1:], right=True)


def partition_of(labels: Tensor, offsets: Tensor, names: int) -> Partition:
    """Numbers labels in [0, names), of which no two instances share one, by first appearance."""
    n = labels.shape[0]
    nodes = torch.arange(n, device=labels.device)
    lowest = torch.full((names,), n, dtype=torch.int64, device=labels.device)
    lowest = lowest.scatter_reduce(0, labels, nodes, "amin")
    root = lowest[labels]
    before = torch.nn.functional.pad((root == nodes).cumsum(0), (1, 0))  # clusters among nodes < i
    return Partition(before[root], int(before[-1]), before[offsets])


def singletons(level: Level) -> Partition:
    n = len(level)
    return Partition(torch.arange(n, device=level.offsets.device), n, level.offsets)


def objective_of(level: Level, partition: Partition) -> Tensor:
    """[B] float64: the cost of each instance's partition, up to that of pairs inside nodes."""
    sums, masses, _ = level.sums_of(partition.labels, partition.count)
    return costs_of_sums(level, sums, masses, partition.offsets)


def costs_of_sums(level: Level, sums: Tensor, masses: Tensor, offsets: Tensor) -> Tensor:
    """[B] float64 cost of cutting all pairs of clusters, given their sums."""
    d = sums.shape[1]
    sign = signature(d, level.negative_dims, sums.device)
    own = (sums.square() * sign).sum(1) - level.alpha * masses.square()
    instance = instance_of(offsets, len(own))
    columns = torch.cat([sums, masses[:, None], own[:, None]], 1)
    whole, _, _ = ops.multicut_contract(
        columns, None, instance, level.instances, level.backend
    )  # adds in fixed order
    total = (whole[:, :d].square() * sign).sum(1) - level.alpha * whole[:, d].square()
    return (total - whole[:, d + 1]) / 2
