"""Triangle packing: how far the trivial lower bound can be raised, in O(n * BLOCK) memory.

Trivial: cut every repulsive pair and no other, sum of min(0, s_ij). A triangle with one repulsive
and two attractive pairs cannot be cut that way: if each of its pairs gives lambda > 0 of its
cost, the triangle's own best is 0 where the trivial bound said -lambda. So for any lambda_t >= 0
whose triangles t take no more than |s_ij| from any pair ij,

    sum of min(0, s_ij) + sum of lambda_t <= cost of every partition.

Given a good clustering, only two kinds of triangle can help: a repulsive pair i, j inside a cluster
with a k of that cluster attracted to both; and an attractive pair i, j across clusters with a k
of i's cluster attracted to i and repelled by j (complementary slackness: a triangle that helps
must have the clustering as one of its optima). Both are packed in parallel, every pair that the
clustering gets wrong sharing its cost among its k in proportion to the product of the other
two, and every share then scaled down where it would take more than is left; sums over k are matrix
products. The proof that nothing is taken twice is in this folder's README.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cost import signature

#: Nodes of a block: a few matrices of BLOCK x BLOCK live at a time, and one per block to the end.
BLOCK = 256
#: Pairs of blocks are packed in the order of what there is to win, up to this share of it.
COVERED = 0.99
_ROUNDS = 2


def _share(cost: Tensor, total: Tensor) -> Tensor:
    """cost / total; nothing where the total is so small that the quotient could overflow."""
    floor = torch.maximum(1e-9 * total.max(), 1e-12 * cost.max())
    wide = total > floor
    return torch.where(wide, cost / torch.where(wide, total, 1), 0)


def _cap(load: Tensor) -> Tensor:
    """Factor that brings a relative load to at most 1."""
    return 1 / load.clamp_min(1)


def _take(left: Tensor, load: Tensor) -> Tensor:
    return (left - load).clamp_min_(0)


def pack_inside(wrong: Tensor, attract: Tensor) -> tuple[float, Tensor]:
    """Packs repulsive pairs inside clusters.

    Args:
        wrong: [g, g] symmetric, -s of repulsive pairs in one cluster, else 0.
        attract: [g, g] symmetric, s of attractive pairs in one cluster, else 0.

    Returns:
        The gain, and what is left of ``attract``.
    """
    gain = 0.0
    for _ in range(_ROUNDS):
        share = _share(wrong, attract @ attract)
        load = share @ attract  # of (i, k) by triangles whose repulsive pair is at i
        used = attract * _cap(load + load.t())
        won = share * (used @ used)
        load = share @ used
        attract = _take(attract, used * (load + load.t()))
        wrong = _take(wrong, won)
        gain += float(won.sum(dtype=torch.float64)) / 2
    return gain, attract


def pack_across(
    wrong: Tensor, repel: Tensor, first: Tensor, second: Tensor | None
) -> tuple[float, Tensor, Tensor]:
    """Packs attractive pairs between the clusters of two blocks, or of one block with itself.

    Args:
        wrong: [a, b], s of attractive pairs across clusters, else 0.
        repel: [a, b], -s of repulsive pairs across clusters, else 0.
        first, second: [a, a] and [b, b], attraction left inside clusters; None: the first block
            again, everything symmetric.

    Returns:
        The gain, and what is left of ``first`` and ``second``.
    """
    gain, alone = 0.0, second is None
    for _ in range(_ROUNDS):
        other = first if second is None else second
        share = _share(wrong, first @ repel + repel @ other)
        here, there = share @ repel.t(), share.t() @ repel
        used_first = first * _cap(here + here.t())
        used_other = used_first if alone else other * _cap(there + there.t())
        used_repel = repel * _cap(first @ share + share @ other)
        won = share * (used_first @ used_repel + used_repel @ used_other)
        here, there = share @ used_repel.t(), share.t() @ used_repel
        repel = _take(repel, used_repel * (used_first @ share + share @ used_other))
        first = _take(first, used_first * (here + here.t()))
        if second is not None:
            second = _take(second, used_other * (there + there.t()))
        wrong = _take(wrong, won)
        gain += float(won.sum(dtype=torch.float64)) / (2 if alone else 1)
    return gain, first, first if second is None else second


def triangle_gain(
    x: Tensor, labels: Tensor, alpha: float, weights: Tensor | None, negative_dims: int
) -> float:
    """Sum of lambda_t for one instance: add it to the trivial bound.

    Args:
        x: (n, d) float32 or float64; its dtype is computed in.
        labels: (n,) the clustering that guides the packing; any clustering gives a valid bound.

    At most O(n^2 BLOCK) time in matrix products, O(n BLOCK) memory. Rounding: pairs are computed
    in x's dtype, and the gain is reduced by more than the rounding of its sums.
    """
    n, d = x.shape
    if n < 3:
        return 0.0
    order = torch.argsort(labels, stable=True)  # clusters in one piece, but for the largest
    x, labels = x[order], labels[order]
    signed = x * signature(d, negative_dims, x.device).to(x.dtype)
    w = x.new_ones(n) if weights is None else weights[order].to(x.dtype)
    blocks = [slice(low, min(low + BLOCK, n)) for low in range(0, n, BLOCK)]

    def pairs(a: slice, b: slice) -> tuple[Tensor, Tensor]:
        costs = signed[a] @ x[b].t() - alpha * torch.outer(w[a], w[b])
        if a == b:
            costs.fill_diagonal_(0)
        return costs, labels[a].unsqueeze(1) == labels[b]

    gain, left = 0.0, []
    for block in blocks:
        costs, same = pairs(block, block)
        inside = costs * same
        won, attract = pack_inside((-inside).clamp_min(0), inside.clamp_min(0))
        across = costs * ~same
        more, attract, _ = pack_across(across.clamp_min(0), (-across).clamp_min(0), attract, None)
        gain += won + more
        left.append(attract)
    stakes = []
    for i, a in enumerate(blocks):
        for j in range(i + 1, len(blocks)):
            costs, same = pairs(a, blocks[j])
            stakes.append((float((costs.clamp_min_(0) * ~same).sum(dtype=torch.float64)), i, j))
    stakes.sort(key=lambda stake: (-stake[0], *stake[1:]))
    wanted = COVERED * sum(stake for stake, _, _ in stakes)
    for stake, i, j in stakes:
        if wanted <= 0:
            break
        wanted -= stake
        costs, same = pairs(blocks[i], blocks[j])
        across = costs * ~same
        won, left[i], left[j] = pack_across(
            across.clamp_min(0), (-across).clamp_min_(0), left[i], left[j]
        )
        gain += won
    return gain * (1 - (1e-12 if x.dtype == torch.float64 else 1e-5))
