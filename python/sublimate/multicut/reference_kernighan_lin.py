"""Kernighan-Lin chains between pairs of clusters, in plain PyTorch, for small instances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .reference import by_first_appearance, contract_values, instances, pair_values, symmetric

#: A chain ends when so many moves in a row have not improved it.
PATIENCE = 100


def kernighan_lin(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    labels: Tensor,
    neighbors: int,
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """Kernighan-Lin chains: (lowest members, by how much each instance's objective fell)."""
    labels = labels.clone()
    gains = features.new_zeros(offsets.shape[0] - 1, dtype=torch.float64)
    for b, rows in instances(offsets):
        w = features.new_ones(rows.stop - rows.start) if weights is None else weights[rows]
        values = pair_values(features[rows].double(), w.double(), alpha, negative_dims)
        found, gain = _kernighan_lin(values, w.double(), labels[rows], neighbors, rounds)
        labels[rows], gains[b] = found + rows.start, gain
    return labels, gains


def _kernighan_lin(
    s: Tensor, w: Tensor, labels: Tensor, neighbors: int, rounds: int
) -> tuple[Tensor, float]:
    s, total = symmetric(s), 0.0
    names = by_first_appearance(labels).tolist()
    clusters = [
        [i for i, c in enumerate(names) if c == k] for k in range(max(names, default=-1) + 1)
    ]
    changed = [True] * len(clusters)
    for _ in range(rounds):
        active, changed = changed, [False] * len(clusters)
        gain = 0.0
        for a, b in _neighbor_pairs(s, w, clusters, neighbors):
            if (active[a] or active[b] or changed[a] or changed[b]) and clusters[a] and clusters[b]:
                gain += _update_pair(s, clusters, a, b, changed)
        for a in range(len(active)):
            if (active[a] or changed[a]) and len(clusters[a]) > 1:
                clusters.append([])
                changed.append(False)
                gain += _update_pair(s, clusters, a, len(clusters) - 1, changed)
        kept = sorted((c, k) for k, c in enumerate(clusters) if c)  # by lowest member
        clusters, changed = [c for c, _ in kept], [changed[k] for _, k in kept]
        total += gain
        if gain == 0.0:
            break
    lowest = torch.empty_like(labels)
    for members in clusters:
        lowest[members] = members[0]
    return lowest, total


def _neighbor_pairs(
    s: Tensor, w: Tensor, clusters: list[list[int]], neighbors: int
) -> list[tuple[int, int]]:
    """Pairs a < b of which one is among the other's ``neighbors`` of largest mean value."""
    count = len(clusters)
    if neighbors == 0 or neighbors >= count - 1:
        return [(a, b) for a in range(count) for b in range(a + 1, count)]
    mass = torch.stack([w[c].sum() for c in clusters])
    labels = torch.empty(len(w), dtype=torch.int64)
    for k, c in enumerate(clusters):
        labels[c] = k
    mean = contract_values(s, labels) / (mass[:, None] * mass[None, :])
    mean.fill_diagonal_(-math.inf)
    nearest = mean.sort(dim=1, descending=True, stable=True).indices[:, :neighbors]
    return sorted({(min(a, b), max(a, b)) for a, row in enumerate(nearest.tolist()) for b in row})


def _update_pair(
    s: Tensor, clusters: list[list[int]], a: int, b: int, changed: list[bool]
) -> float:
    """The best of a chain of moves between two clusters and of their union; 0 if none is better."""
    nodes = clusters[a] + clusters[b]
    side = [0] * len(clusters[a]) + [1] * len(clusters[b])
    v = s[nodes][:, nodes].clone().fill_diagonal_(0.0)
    sign = torch.tensor([1.0 if k == 0 else -1.0 for k in side], dtype=s.dtype)
    # Gain of moving u to the other side: what is there minus what is here.
    d = -sign * (v @ sign)
    tolerance = 1e-10 * float(d.abs().sum())
    free = torch.ones(len(nodes), dtype=torch.bool)
    best, best_length, so_far, chain = 0.0, 0, 0.0, []
    for length in range(1, len(nodes) + 1):
        u = int(torch.where(free, d, -math.inf).argmax())
        so_far += float(d[u])
        chain.append(u)
        free[u] = False
        # u now attracts from where it was not: twice its value, towards its new side.
        d += 2 * sign * sign[u] * v[u]
        sign[u] = -sign[u]
        if so_far > best:
            best, best_length = so_far, length
        if length - best_length == PATIENCE:
            break
    joined = float(s[clusters[a]][:, clusters[b]].sum()) if clusters[b] else 0.0
    if max(best, joined) <= tolerance:
        return 0.0
    if joined >= best - tolerance:
        clusters[a], clusters[b] = sorted(nodes), []
        best = joined
    else:
        for u in chain[:best_length]:
            side[u] = 1 - side[u]
        for cluster, k in ((a, 0), (b, 1)):
            clusters[cluster] = sorted(i for i, here in zip(nodes, side, strict=True) if here == k)
    changed[a] = changed[b] = True
    return best
