"""Greedy contraction along the edges of a graph, in plain PyTorch, for tiny instances."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import pair_values


def lazy(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    neighbors: Tensor,
) -> Tensor:
    """Lowest member of each node's cluster after merging, while one is positive, the pair of
    clusters of largest value among those that an edge joins; ties by lower, then higher name.

    neighbors: [N, k] rows of the same instance, or -1.
    """
    w = None if weights is None else weights.double()
    s = pair_values(features.double(), w, alpha, negative_dims)
    n = features.shape[0]
    joined = torch.zeros(n, n, dtype=torch.bool, device=s.device)
    row, column = (neighbors >= 0).nonzero(as_tuple=True)
    joined[row, neighbors[row, column]] = True
    joined = (joined | joined.mT).fill_diagonal_(False)
    labels = torch.arange(n, device=s.device)
    while n > 0:
        candidates = torch.where(joined.triu(1), s, -torch.inf)
        i, j = divmod(int(candidates.argmax()), n)
        if not candidates[i, j] > 0:
            break
        s[i] += s[j]
        s[:, i] += s[:, j]
        joined[i] |= joined[j]
        joined[:, i] |= joined[:, j]
        joined[j], joined[:, j], joined[i, i] = False, False, False
        labels[labels == j] = i
    return labels
