"""Cost of a clustering in O(n d), differentiable at fixed labels.

With S_c the sum of features in cluster c, m_c its weight, T and W those of the whole instance, and
<,> with the last ``negative_dims`` coordinates counted negatively:

    sum over cut pairs of s_ij = (<T, T> - alpha W^2 - sum_c (<S_c, S_c> - alpha m_c^2)) / 2.

Gradient: d/df_i = T - S_c(i) (signed), d/dalpha = -(W^2 - sum_c m_c^2) / 2, d/dw_i = -alpha (W -
m_c(i)). Sums are kept in float64: two numbers of size n^2 are subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Batch
from .autograd import ClusterSums


@dataclass(frozen=True)
class Numbering:
    """Clusters of all instances, numbered through.

    Attributes:
        ids: (N,) int64 in [0, count): the cluster of each node.
        count: number of clusters, unused numbers included.
        instance: (count,) int64: which instance a cluster belongs to.
    """

    ids: Tensor
    count: int
    instance: Tensor


def number_clusters(labels: Tensor, batch: Batch) -> Numbering:
    """Labels of any integers as one numbering; sorts only if they are far from compact."""
    flat = labels.reshape(-1).long()
    n = flat.numel()
    if n == 0:
        empty = flat.new_zeros(0)
        return Numbering(empty, 0, empty)
    low, high = (int(v) for v in torch.aminmax(flat))
    span = high - low + 1
    if batch.size == 1:
        ids, instances = flat - low, None
    else:
        instances = batch.instance_of_nodes(flat.device)
        if span * batch.size >= 2**62:
            flat, span, low = torch.unique(flat, return_inverse=True)[1], n, 0
        ids = instances * span + (flat - low)
    if span * batch.size <= 2 * n + 1024:
        count = span * batch.size
        every = torch.arange(count, device=flat.device)
        return Numbering(ids, count, every.div(span, rounding_mode="floor"))
    values, ids = torch.unique(ids, return_inverse=True)
    return Numbering(ids, values.numel(), values.div(span, rounding_mode="floor"))


def signature(d: int, negative_dims: int, device: torch.device) -> Tensor:
    """(d,) float64: 1, and -1 in the last ``negative_dims`` places."""
    sign = torch.ones(d, dtype=torch.float64, device=device)
    sign[d - negative_dims :] = -1
    return sign


def cut_cost(
    x: Tensor,
    labels: Tensor,
    alpha: float | Tensor,
    weights: Tensor | None,
    negative_dims: int,
    batch: Batch,
    backend: str,
) -> Tensor:
    """(instances,) float64 cost of the labels; differentiable in x, alpha and weights.

    Args:
        x: (..., d) checked features, any floating dtype.
        labels: checked labels, of x's shape without d.
    """
    d = x.shape[-1]
    rows = x.reshape(-1, d)
    clusters = number_clusters(labels, batch)
    sums = ClusterSums.apply(rows, clusters.ids, clusters.count, backend)  # [C, d]
    sizes = sizes_of(clusters, weights, backend)  # [C]
    # The gathers below only add: fixed order, so the same bits for any number of threads.
    whole = ClusterSums.apply(
        torch.cat([sums, sizes.unsqueeze(1)], 1), clusters.instance, batch.size, backend
    )
    if isinstance(alpha, Tensor):
        alpha = alpha.reshape(()).to(sums.device, torch.float64)
    else:
        alpha = float(alpha)
    sign = signature(d, negative_dims, x.device)
    own = (sums.square() * sign).sum(1) - alpha * sizes.square()
    kept = ClusterSums.apply(own.unsqueeze(1), clusters.instance, batch.size, backend)
    total = (whole[:, :d].square() * sign).sum(1) - alpha * whole[:, d].square()
    return (total - kept[:, 0]) / 2


def sizes_of(clusters: Numbering, weights: Tensor | None, backend: str) -> Tensor:
    """(C,) float64: number or total weight of each cluster's nodes."""
    if weights is None:
        return torch.bincount(clusters.ids, minlength=clusters.count).double()
    column = weights.reshape(-1, 1)
    summed: Tensor = ClusterSums.apply(column, clusters.ids, clusters.count, backend)
    return summed[:, 0]


def disagreement(
    first: Tensor, second: Tensor, weights: Tensor | None, batch: Batch, backend: str
) -> Tensor:
    """(instances,) float64: sum of w_i w_j over pairs that one labelling cuts and the other not.

    It is (sum_a m_a^2 + sum_b m_b^2) / 2 - sum_ab m_ab^2 over the clusters of the first, of the
    second, and of their intersection.
    """
    one, two = number_clusters(first, batch), number_clusters(second, batch)
    both = torch.unique(one.ids * max(two.count, 1) + two.ids, return_inverse=True)
    instance = two.instance[both[0] % max(two.count, 1)] if len(both[0]) else both[0]
    common = Numbering(both[1].reshape(-1), both[0].numel(), instance)
    parts = []
    for clusters in (one, two, common):
        squares = sizes_of(clusters, weights, backend).square().unsqueeze(1)
        parts.append(ClusterSums.apply(squares, clusters.instance, batch.size, backend)[:, 0])
    return (parts[0] + parts[1]) / 2 - parts[2]
