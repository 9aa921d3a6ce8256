"""Nodes that must be together, as one node: its features and weights are their sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .autograd import ops


@dataclass(frozen=True)
class Contracted:
    """Instances after their must-link components have become nodes.

    Attributes:
        features: (M, d); a component is the sum of its members.
        weights: (M,).
        offsets: (B + 1,) borders of the instances in these rows.
        node: (N,) row of each original node. Rows are in the order of their lowest members, so a
            numbering by first appearance of the rows is one of the nodes.
    """

    features: Tensor
    weights: Tensor
    offsets: Tensor
    node: Tensor


def components(n: int, pairs: Tensor) -> Tensor:
    """(n,) lowest node of each node's connected component; pairs (p, 2) int64."""
    root = torch.arange(n, device=pairs.device)
    ends = pairs.t().reshape(-1)
    other = pairs.flip(1).t().reshape(-1)
    while True:
        # Roots hook onto the lowest root they are linked to, then paths are shortened.
        lower = root.scatter_reduce(0, root[ends], root[other], "amin")
        lower = lower[lower]
        while not torch.equal(lower, lower[lower]):
            lower = lower[lower]
        lower = lower[root]
        if torch.equal(lower, root):
            return root
        root = lower


def contract(
    x: Tensor, weights: Tensor | None, offsets: Tensor, pairs: Tensor, backend: str
) -> Contracted:
    """The instances with every component of ``pairs`` merged. O(n d + (n + p) log n)."""
    n = x.shape[0]
    root = components(n, pairs.long())
    first = root == torch.arange(n, device=x.device)
    before = torch.nn.functional.pad(first.long().cumsum(0), (1, 0))  # roots among nodes < i
    node = before[root]
    sums, masses, _ = ops.multicut_contract(x, weights, node, int(before[-1]), backend)
    return Contracted(sums.to(x.dtype), masses.to(x.dtype), before[offsets], node)
