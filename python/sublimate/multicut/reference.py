"""Dense multicut in plain PyTorch: the truth that every kernel and solver is held to.

Nodes i with features x_i and weights w_i (default 1); the pair (i, j) is worth
s_ij = <x_i, x_j>_q - alpha w_i w_j, where the last q coordinates count negatively. The objective of
a labelling is the sum of s_ij over pairs with different labels, to be minimised.

The first part works on the matrix of all s_ij and is for reading and for small n. The second part
are the primitives of csrc/multicut/kernels.h, in the same arguments: nodes of several instances one
after the other, instance b in rows offsets[b] .. offsets[b + 1], labels and indices counted over
all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .._dtypes import accumulator

# ------------------------------------------------------------------------------ costs, objective


def signed(x: Tensor, negative_dims: int) -> Tensor:
    """x with its last ``negative_dims`` coordinates negated: <x, y>_q = <x, signed(y)>."""
    if negative_dims == 0:
        return x
    split = x.shape[-1] - negative_dims
    return torch.cat([x[..., :split], -x[..., split:]], dim=-1)


def pair_values(
    features: Tensor,
    weights: Tensor | None = None,
    alpha: float = 0.0,
    negative_dims: int = 0,
    other: Tensor | None = None,
    other_weights: Tensor | None = None,
) -> Tensor:
    """s [n, m] between rows of features and rows of ``other`` (default: the features)."""
    if other is None:
        other, other_weights = features, weights
    values = features @ signed(other, negative_dims).mT
    w = features.new_ones(features.shape[0]) if weights is None else weights
    v = other.new_ones(other.shape[0]) if other_weights is None else other_weights
    return values - alpha * (w[:, None] * v[None, :])


def objective(values: Tensor, labels: Tensor) -> Tensor:
    """Sum of values[i, j] over i < j with different labels."""
    cut = labels[:, None] != labels[None, :]
    return (values * cut).triu(1).sum()


def by_first_appearance(labels: Tensor) -> Tensor:
    """The same partition numbered 0, 1, ... in the order in which clusters first appear."""
    names: dict[int, int] = {}
    return torch.tensor(
        [names.setdefault(v, len(names)) for v in labels.tolist()],
        dtype=torch.int64,
        device=labels.device,
    )


def brute_force(values: Tensor) -> tuple[float, Tensor]:
    """The optimum and a labelling that attains it, by dynamic programming over subsets.

    Best value kept inside clusters of a set of nodes: the cluster of its lowest node, plus the best
    of the rest. O(3^n): n <= 12 or so.
    """
    n = values.shape[0]
    s = values.double().tolist()
    inside = [0.0] * (1 << n)
    for mask in range(1, 1 << n):
        low = (mask & -mask).bit_length() - 1
        rest = mask & (mask - 1)
        inside[mask] = inside[rest] + sum(s[low][j] for j in range(low + 1, n) if rest >> j & 1)
    best, choice = [0.0] * (1 << n), [0] * (1 << n)
    for mask in range(1, 1 << n):
        low, rest = mask & -mask, mask & (mask - 1)
        best[mask], part = -math.inf, rest
        while True:  # every subset of the rest joins the lowest node
            value = inside[part | low] + best[rest & ~part]
            if value > best[mask]:
                best[mask], choice[mask] = value, part | low
            if part == 0:
                break
            part = (part - 1) & rest
    labels, mask, cluster = [0] * n, (1 << n) - 1, 0
    while mask:
        for i in range(n):
            if choice[mask] >> i & 1:
                labels[i] = cluster
        mask, cluster = mask & ~choice[mask], cluster + 1
    return inside[-1] - best[-1], by_first_appearance(torch.tensor(labels))


# ------------------------------------------------------------------------------------ contraction


def symmetric(values: Tensor) -> Tensor:
    """The upper half twice: rounding may have given the pair (j, i) other bits."""
    upper = values.triu(1)
    return upper + upper.mT


def greedy_contraction(values: Tensor) -> tuple[Tensor, list[tuple[int, int]], list[float]]:
    """Exact greedy additive edge contraction of a symmetric matrix of pair values.

    Merges the pair i < j of largest value while that is positive, ties by lower i, then lower j; a
    cluster is named by its lowest node.

    Returns:
        (lowest node of each node's cluster, merges (i, j), their values)
    """
    s = symmetric(values).fill_diagonal_(-math.inf)
    n = s.shape[0]
    labels, merges, costs = torch.arange(n, device=s.device), [], []
    while n > 1:
        flat = int(s.argmax())  # the first of equals: lower i, then lower j, as s is symmetric
        i, j = divmod(flat, n)
        if not s[i, j] > 0:
            break
        merges.append((i, j))
        costs.append(float(s[i, j]))
        row = s[i] + s[j]
        row[i] = row[j] = -math.inf
        s[i], s[:, i] = row, row
        s[j], s[:, j] = -math.inf, -math.inf
        labels[labels == j] = i
    return labels, merges, costs


def contract_values(values: Tensor, labels: Tensor) -> Tensor:
    """[K, K]: sums of pair values between clusters 0 .. K - 1."""
    member = torch.nn.functional.one_hot(labels).to(values)
    return member.mT @ values @ member


def best_partners(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest value off the diagonal and its lowest column."""
    s = values.clone().fill_diagonal_(-math.inf)
    partner = s.argmax(dim=1)
    return s.gather(1, partner[:, None])[:, 0], partner


def round_of_reciprocal(values: Tensor) -> Tensor:
    """Labels that merge every reciprocal pair of best partners of positive value."""
    best, partner = best_partners(values)
    index = torch.arange(values.shape[0], device=values.device)
    pair = (partner[partner] == index) & (best > 0)
    return by_first_appearance(torch.where(pair, torch.minimum(index, partner), index))


def round_of_stars(values: Tensor) -> Tensor:
    """Reciprocal pairs, joined by each other node whose best partner lies in a pair.

    The node joins if its value to the pair as a whole is positive.
    """
    best, partner = best_partners(values)
    index = torch.arange(values.shape[0], device=values.device)
    pair = (partner[partner] == index) & (best > 0)
    hub = torch.where(pair, torch.minimum(index, partner), index)
    a, b = hub[partner], torch.maximum(partner, partner[partner])
    whole = values[index, a] + values[index, b]
    follows = ~pair & pair[partner] & (best > 0) & (whole > 0)
    return by_first_appearance(torch.where(follows, a, hub))


def rounds(values: Tensor, of) -> Tensor:  # type: ignore[no-untyped-def]
    """Labels after rounds of ``of`` (a round_of_* function) until one merges nothing."""
    labels = torch.arange(values.shape[0], device=values.device)
    while values.shape[0] > 1:
        merged = of(values)
        if int(merged.max()) + 1 == values.shape[0]:
            break
        labels, values = merged[labels], contract_values(values, merged)
    return by_first_appearance(labels)


def average_linkage(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Merges the pair of clusters of largest mean value while that is positive (UPGMA, cut at 0).

    The mean between A and B is their sum of values over m_A m_B, m being sums of ``weights``.
    """
    n = values.shape[0]
    size = values.new_ones(n) if weights is None else weights.to(values).clone()
    mean = (values / (size[:, None] * size[None, :])).fill_diagonal_(-math.inf)
    labels = torch.arange(n, device=values.device)
    while n > 1:
        i, j = divmod(int(mean.argmax()), n)
        if not mean[i, j] > 0:
            break
        row = (size[i] * mean[i] + size[j] * mean[j]) / (size[i] + size[j])
        row[i] = row[j] = -math.inf
        mean[i], mean[:, i] = row, row
        mean[j], mean[:, j] = -math.inf, -math.inf
        size[i] += size[j]
        labels[labels == j] = i
    return by_first_appearance(labels)


# --------------------------------------------- primitives of csrc/multicut/kernels.h


def instances(offsets: Tensor) -> Iterator[tuple[int, slice]]:
    bounds = offsets.tolist()
    for b, (begin, end) in enumerate(itertools.pairwise(bounds)):
        yield b, slice(begin, end)


def _rows(weights: Tensor | None, rows: slice) -> Tensor | None:
    return None if weights is None else weights[rows]


def topk(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    other: Tensor | None,
    other_weights: Tensor | None,
    other_offsets: Tensor | None,
    k: int,
    self_offset: int | None,
) -> tuple[Tensor, Tensor]:
    """The k largest s of each row with their columns, descending, ties by lowest column.

    NaN goes before every number. Missing ones are -inf and -1.
    """
    acc = accumulator(features.dtype)
    x = features.to(acc)
    if other is None:
        y, v, bounds = x, weights, offsets
    else:
        assert other_offsets is not None
        y, v, bounds = other.to(acc), other_weights, other_offsets
    values = x.new_full((x.shape[0], k), -math.inf)
    indices = torch.full((x.shape[0], k), -1, dtype=torch.int64, device=x.device)
    for (_, rows), (_, columns) in zip(instances(offsets), instances(bounds), strict=True):
        column = torch.arange(columns.start, columns.stop, device=x.device)
        row = torch.arange(rows.start, rows.stop, device=x.device)
        s = pair_values(
            x[rows], _rows(weights, rows), alpha, negative_dims, y[columns], _rows(v, columns)
        )
        column = column.expand(len(row), -1)
        if self_offset is not None:
            others = column != row[:, None] + self_offset
            has_self = bool((~others).any())
            # Left out, not lowered: a value of -inf is a candidate, and a row's self is none.
            order = (~others).to(torch.int8).sort(dim=1, stable=True).indices
            s, column, others = (t.gather(1, order) for t in (s, column, others))
            if has_self:
                s = torch.where(others, s, -math.inf)
                column = torch.where(others, column, -1)
        best, order = s.sort(dim=1, descending=True, stable=True)
        width = min(k, s.shape[1])
        values[rows, :width] = best[:, :width]
        indices[rows, :width] = column.gather(1, order)[:, :width]
    return values, indices


def negative_sum(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
) -> Tensor:
    """Sum of min(0, s_ij) over i < j for each instance: no labelling is below it."""
    sums = features.new_zeros(offsets.shape[0] - 1, dtype=torch.float64)
    for b, rows in instances(offsets):
        s = pair_values(features[rows], _rows(weights, rows), alpha, negative_dims)
        sums[b] = s.double().clamp(max=0).triu(1).sum()
    return sums


def contract(
    features: Tensor, weights: Tensor | None, labels: Tensor, clusters: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of features, sums of weights (both fp64) and counts of labels 0 .. clusters - 1."""
    w = features.new_ones(features.shape[0]) if weights is None else weights
    sums = features.new_zeros((clusters, features.shape[1]), dtype=torch.float64)
    masses = features.new_zeros(clusters, dtype=torch.float64)
    counts = torch.zeros(clusters, dtype=torch.int64, device=features.device)
    sums.index_add_(0, labels, features.double())
    masses.index_add_(0, labels, w.double())
    counts.index_add_(0, labels, torch.ones_like(labels))
    return sums, masses, counts


def best_cluster(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    labels: Tensor,
    sums: Tensor,
    masses: Tensor,
    counts: Tensor,
    slot_offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Each node's best slot other than its own, and the gain of going there."""
    target = torch.full_like(labels, -1)
    gain = features.new_full((features.shape[0],), -math.inf)
    s, m = sums.to(features.dtype), masses.to(features.dtype)
    for (_, rows), (_, slots) in zip(instances(offsets), instances(slot_offsets), strict=True):
        x = features[rows]
        w = x.new_ones(x.shape[0]) if weights is None else weights[rows]
        values = pair_values(x, w, alpha, negative_dims, s[slots], m[slots])
        own = (labels[rows] - slots.start)[:, None]
        itself = (x * signed(x, negative_dims)).sum(1) - alpha * w * w
        stay = values.gather(1, own)[:, 0] - itself
        stay = torch.where(counts[labels[rows]] == 1, 0.0, stay)
        if slots.stop - slots.start > 1:
            best, slot = values.scatter(1, own, -math.inf).max(dim=1)
            target[rows], gain[rows] = slot + slots.start, best - stay
    return target, gain


def move(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    labels: Tensor,
    sums: Tensor,
    masses: Tensor,
    counts: Tensor,
    slot_offsets: Tensor,
    order: Tensor,
    order_offsets: Tensor,
    target: Tensor,
) -> Tensor:
    """Moves re-checked one after the other, in place on labels, sums, masses, counts.

    Returns:
        number of moves made in each instance
    """
    moved = torch.zeros(offsets.shape[0] - 1, dtype=torch.int64, device=features.device)
    for b, places in instances(order_offsets):
        begin, end = (int(v) for v in slot_offsets[b : b + 2])
        for i in order[places].tolist():
            x = features[i].double()
            y = signed(x, negative_dims)
            w = 1.0 if weights is None else float(weights[i])
            c, t = int(labels[i]), int(target[i])
            there = float(y @ sums[t]) - alpha * w * float(masses[t])
            if there < 0 and counts[t] > 0:
                empty = (counts[begin:end] == 0).nonzero()
                if len(empty) == 0:
                    continue
                t, there = begin + int(empty[0, 0]), 0.0
            alone = int(counts[c]) == 1
            if t == c or (alone and counts[t] == 0):
                continue
            here = 0.0
            if not alone:
                here = float(y @ (sums[c] - x)) - alpha * w * (float(masses[c]) - w)
            if not there - here > 1e-10 * (abs(there) + abs(here)):
                continue
            labels[i] = t
            for slot, sign in ((c, -1), (t, 1)):
                sums[slot] += sign * x
                masses[slot] += sign * w
                counts[slot] += sign
            if counts[c] == 0:
                sums[c], masses[c] = 0.0, 0.0
            moved[b] += 1
    return moved


def gaec(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact greedy contraction: (lowest members, merges, their values); unused rows -1 and 0."""
    n = features.shape[0]
    labels = torch.empty(n, dtype=torch.int64, device=features.device)
    merges = torch.full((n, 2), -1, dtype=torch.int64, device=features.device)
    costs = features.new_zeros(n)
    for _, rows in instances(offsets):
        values = pair_values(features[rows], _rows(weights, rows), alpha, negative_dims)
        found, pairs, s = greedy_contraction(values)
        labels[rows] = found + rows.start
        for t, (pair, cost) in enumerate(zip(pairs, s, strict=True), rows.start):
            merges[t] = torch.tensor(pair, device=merges.device) + rows.start
            costs[t] = cost
    return labels, merges, costs
