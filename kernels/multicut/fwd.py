"""Streaming passes over all pairs: the best columns of each row, and the sum of negative pairs.

A program takes a tile of rows and an even share of the columns and walks them tile by tile; the
n x m values live in registers only. A second small kernel joins the shares. Candidates are ordered
by (value, lower index), so that the shares, the launch and the order of work do not show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ..common.launch import accumulator, device_of
from . import configs
from .tiles import NONE, columns_of_split, load_each, load_rows, pair_values

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _before(a, b):
    """Whether value a goes before value b whatever their indices. NaN goes before every number."""
    return (a > b) | ((a != a) & (b == b))


@triton.jit
def _largest(a, b):
    return tl.where(_before(b, a), b, a)


@triton.jit
def _better(a, i, b, j):
    """The earlier of candidates (a, i) and (b, j)."""
    second = _before(b, a) | (~_before(a, b) & (j < i))
    return tl.where(second, b, a), tl.where(second, j, i)


@triton.jit
def _smallest(a, b):
    return tl.where(_before(b, a), a, b)


@triton.jit
def _row_best(value, index):
    """Best of each row: (value, lowest index of that value), [BM] each."""
    top = tl.reduce(value, 1, _largest)
    same = (value == top[:, None]) | ((value != value) & (top != top)[:, None])
    return top, tl.min(tl.where(same, index, NONE), axis=1)


@triton.jit
def _hide(s, column, row, skip, m, SKIP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """s with -inf at columns past the end and at the row's own column."""
    at = column.to(tl.int32) + tl.arange(0, BN)
    if column + BN > m:
        s = tl.where((at < m)[None, :], s, float("-inf"))
    if SKIP == "self":
        if (column < row + BM) & (row < column + BN):
            s = tl.where(at[None, :] == skip[:, None], float("-inf"), s)
    elif SKIP == "given":
        s = tl.where(at[None, :] == skip[:, None], float("-inf"), s)
    return s


@triton.jit
def _skipped(skip_ptr, row, n, SKIP: tl.constexpr, BM: tl.constexpr):
    """Column that each row passes over, int32 [BM]."""
    if SKIP == "given":
        at = tl.load(skip_ptr + tl.minimum(row + tl.arange(0, BM), n - 1)).to(tl.int32)
    else:
        at = row.to(tl.int32) + tl.arange(0, BM)
    return at


@triton.jit(do_not_specialize=["n", "m"])
def top1_kernel(
    x_ptr,  # (n, d) rows
    y_ptr,  # (m, d) columns
    u_ptr,  # (n,) ACC weights, or None
    v_ptr,  # (m,) ACC, or None
    alpha_ptr,  # () ACC
    skip_ptr,  # (n,) int64, or None
    values_ptr,  # (n, splits, KEEP) ACC
    index_ptr,  # (n, splits, KEEP) int32
    n,
    m,
    d,
    KEEP: tl.constexpr,
    SKIP: tl.constexpr,  # "none", "self", "given"
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The KEEP best columns of a share, one of each residue class modulo 8; the first is the best.

    Eight neighbouring columns are eight accumulators' worth of a matrix instruction, so that the
    best of a class within a tile is found in registers. Lanes meet at the end of the sweep only.
    The runners-up are what a later, more exact look may prefer.
    """
    row = tl.program_id(0).to(tl.int64) * BM
    u = load_each(u_ptr, row, n, BM, ACC)
    alpha = tl.load(alpha_ptr)
    skip = _skipped(skip_ptr, row, n, SKIP, BM)
    x = load_rows(x_ptr, row, n, d, 0, BM, BK, EVEN)
    best = tl.full([BM, 8], float("-inf"), ACC)
    index = tl.full([BM, 8], NONE, tl.int32)
    local = tl.zeros([BM, BN], tl.int32) + tl.arange(0, BN)[None, :]
    local = tl.reshape(local, [BM, BN // 8, 8])
    first, last = columns_of_split(m, BN)
    for t in range(first, last):
        column = t.to(tl.int64) * BN
        s = pair_values(
            x, x_ptr, y_ptr, u, v_ptr, alpha, row, column, n, m, d, BM, BN, BK, RESIDENT, EVEN, ACC
        )
        s = _hide(s, column, row, skip, m, SKIP, BM, BN)
        top, at = tl.reduce((tl.reshape(s, [BM, BN // 8, 8]), local), 1, _better)
        wins = _before(top, best)
        best = tl.where(wins, top, best)
        index = tl.where(wins, at + (t * BN).to(tl.int32), index)
    rows = row + tl.arange(0, BM)
    out = (rows * tl.num_programs(1) + tl.program_id(1)) * KEEP
    for r in tl.static_range(KEEP):
        top, at = _row_best(best, index)
        tl.store(values_ptr + out + r, top, mask=rows < n)
        tl.store(index_ptr + out + r, at, mask=rows < n)
        taken = index == at[:, None]
        best = tl.where(taken, float("-inf"), best)
        index = tl.where(taken, NONE, index)


@triton.jit(do_not_specialize=["n", "m"])
def topk_kernel(
    x_ptr,
    y_ptr,
    u_ptr,
    v_ptr,
    alpha_ptr,
    skip_ptr,
    values_ptr,  # (n, splits, KEEP)
    index_ptr,
    n,
    m,
    d,
    KEEP: tl.constexpr,  # a power of two
    SKIP: tl.constexpr,
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The KEEP best columns of a share, in order.

    A row's list is unordered in registers. A tile is searched only while one of its rows still has
    a value before the last of its list: after the first tiles that is rare.
    """
    row = tl.program_id(0).to(tl.int64) * BM
    u = load_each(u_ptr, row, n, BM, ACC)
    alpha = tl.load(alpha_ptr)
    skip = _skipped(skip_ptr, row, n, SKIP, BM)
    x = load_rows(x_ptr, row, n, d, 0, BM, BK, EVEN)
    value = tl.full([BM, KEEP], float("-inf"), ACC)
    # Places without a candidate differ, so that one at a time is filled.
    index = tl.zeros([BM, KEEP], tl.int32) + (NONE - tl.arange(0, KEEP))[None, :]
    worst = tl.full([BM], float("-inf"), ACC)
    first, last = columns_of_split(m, BN)
    for t in range(first, last):
        column = t.to(tl.int64) * BN
        s = pair_values(
            x, x_ptr, y_ptr, u, v_ptr, alpha, row, column, n, m, d, BM, BN, BK, RESIDENT, EVEN, ACC
        )
        s = _hide(s, column, row, skip, m, SKIP, BM, BN)
        at = column.to(tl.int32) + tl.zeros([BM, BN], tl.int32) + tl.arange(0, BN)[None, :]
        top, where = _row_best(s, at)
        wins = _before(top, worst)
        while tl.max(wins.to(tl.int32), axis=0) > 0:
            # The last of the list: the smallest value, of these the highest index.
            last_value = value == worst[:, None]
            last_index = tl.max(tl.where(last_value, index, -1), axis=1)
            place = (index == last_index[:, None]) & wins[:, None]
            value = tl.where(place, top[:, None], value)
            index = tl.where(place, where[:, None], index)
            s = tl.where(at == where[:, None], float("-inf"), s)
            worst = tl.reduce(value, 1, _smallest)
            top, where = _row_best(s, at)
            wins = _before(top, worst)
    rows = row + tl.arange(0, BM)
    out = (rows * tl.num_programs(1) + tl.program_id(1)) * KEEP
    for r in range(KEEP):
        top, where = _row_best(value, index)
        tl.store(values_ptr + out + r, top, mask=rows < n)
        tl.store(index_ptr + out + r, where, mask=rows < n)
        taken = index == where[:, None]
        value = tl.where(taken, float("-inf"), value)
        index = tl.where(taken, NONE, index)


@triton.jit(do_not_specialize=["n", "m"])
def join_kernel(
    x_ptr,  # (n, d), or None
    y_ptr,  # (m, d), or None
    u_ptr,
    v_ptr,
    alpha_ptr,
    partial_ptr,  # (n, COUNT) ACC
    candidate_ptr,  # (n, COUNT) int32, NONE or just below for no candidate
    values_ptr,  # (n, k) ACC
    index_ptr,  # (n, k) int64
    n,
    m,
    d,
    k,
    COUNT: tl.constexpr,
    ROOM: tl.constexpr,  # COUNT rounded up to a power of two
    RESCORE: tl.constexpr,  # values anew in ACC, one product at a time, in the order of the row
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """The k best of each row's candidates, in order; -inf and -1 where there are fewer."""
    row = tl.program_id(0).to(tl.int64) * BM
    rows = row + tl.arange(0, BM)
    slot = tl.arange(0, ROOM)[None, :]
    at = tl.minimum(rows, n - 1)[:, None] * COUNT + slot
    index = tl.load(candidate_ptr + at, mask=slot < COUNT, other=NONE)
    if RESCORE:
        value = tl.full([BM, ROOM], float("-inf"), ACC)
        u = load_each(u_ptr, row, n, BM, ACC)
        alpha = tl.load(alpha_ptr)
        for c in range(COUNT):
            j = tl.max(tl.where(slot == c, index, -1), axis=1)
            known = j < m
            j = tl.where(known, j, 0).to(tl.int64)
            total = tl.zeros([BM, BK], ACC)
            for first in range(0, d, BK):
                inner = (first + tl.arange(0, BK))[None, :]
                mask = (inner < d) & known[:, None]
                x = load_rows(x_ptr, row, n, d, first, BM, BK, False).to(ACC)
                y = tl.load(y_ptr + j[:, None] * d + inner, mask=mask, other=0.0).to(ACC)
                total += x * y
            s = tl.sum(total, axis=1)
            if v_ptr is None:
                s -= alpha * u
            else:
                s -= alpha * (u * tl.load(v_ptr + j).to(ACC))
            value = tl.where((slot == c) & known[:, None], s[:, None], value)
    else:
        value = tl.load(partial_ptr + at, mask=slot < COUNT, other=float("-inf"))
    out = rows * k
    for r in range(k):
        top, best = _row_best(value, index)
        found = best < m
        tl.store(values_ptr + out + r, tl.where(found, top, float("-inf")), mask=rows < n)
        tl.store(index_ptr + out + r, tl.where(found, best, -1).to(tl.int64), mask=rows < n)
        taken = index == best[:, None]
        value = tl.where(taken, float("-inf"), value)
        index = tl.where(taken, NONE, index)


@triton.jit(do_not_specialize=["n", "clusters"])
def choose_kernel(
    x_ptr,  # (n, d)
    sums_ptr,  # (clusters, d)
    u_ptr,
    sizes_ptr,  # (clusters,)
    alpha_ptr,
    own_ptr,  # (n,) int64
    partial_ptr,  # (n, COUNT) ACC: the best other cluster of each share
    candidate_ptr,  # (n, COUNT) int32
    target_ptr,  # (n,) int64
    gain_ptr,  # (n,) ACC
    n,
    clusters,
    d,
    q,  # coordinates from d - q on count negatively
    COUNT: tl.constexpr,
    ROOM: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Where each node should be: the best of its own cluster, another one and a new one."""
    row = tl.program_id(0).to(tl.int64) * BM
    rows = row + tl.arange(0, BM)
    slot = tl.arange(0, ROOM)[None, :]
    at = tl.minimum(rows, n - 1)[:, None] * COUNT + slot
    index = tl.load(candidate_ptr + at, mask=slot < COUNT, other=NONE)
    value = tl.load(partial_ptr + at, mask=slot < COUNT, other=float("-inf"))
    top, best = _row_best(value, index)
    own = tl.load(own_ptr + tl.minimum(rows, n - 1))
    u = load_each(u_ptr, row, n, BM, ACC)
    total = tl.zeros([BM, BK], ACC)
    for first in range(0, d, BK):
        inner = (first + tl.arange(0, BK))[None, :]
        x = load_rows(x_ptr, row, n, d, first, BM, BK, False)
        s = tl.load(sums_ptr + own[:, None] * d + inner, mask=inner < d, other=0.0)
        term = x * (s - x)
        total += tl.where(inner < d - q, term, -term)
    # What the rest of the own cluster is worth to the node: 0 exactly for a node on its own.
    stay = tl.sum(total, axis=1) - tl.load(alpha_ptr) * (u * (tl.load(sizes_ptr + own) - u))
    best = best.to(tl.int64)
    fresh = _before(tl.zeros_like(top), top)
    top = tl.where(fresh, 0.0, top)
    best = tl.where(fresh, clusters, best)
    leaves = _before(top, stay)
    tl.store(target_ptr + rows, tl.where(leaves, best, own), mask=rows < n)
    tl.store(gain_ptr + rows, tl.where(leaves, top - stay, 0.0), mask=rows < n)


@triton.jit(do_not_specialize=["n"])
def negative_sum_kernel(
    x_ptr,  # (n, d), the signs of negative coordinates in it
    y_ptr,  # (n, d)
    w_ptr,  # (n,) ACC, or None
    alpha_ptr,
    sums_ptr,  # (row tiles, splits) fp64
    n,
    d,
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Sum of min(0, s_ij) over i < j, by tile of rows and share of columns.

    Shares interleave, so that they are even above the diagonal. fp32 within a tile, fp64 beyond.
    """
    row = tl.program_id(0).to(tl.int64) * BM
    u = load_each(w_ptr, row, n, BM, ACC)
    alpha = tl.load(alpha_ptr)
    x = load_rows(x_ptr, row, n, d, 0, BM, BK, EVEN)
    i = row + tl.arange(0, BM)
    total = tl.zeros([BM], tl.float64)
    first = (row // BN).to(tl.int32) + tl.program_id(1)
    for t in range(first, tl.cdiv(n, BN), tl.num_programs(1)):
        column = t.to(tl.int64) * BN
        s = pair_values(
            x, x_ptr, y_ptr, u, w_ptr, alpha, row, column, n, n, d, BM, BN, BK, RESIDENT, EVEN, ACC
        )
        s = tl.where(s > 0, 0.0, s)  # NaN stays
        if (column < row + BM) | (column + BN > n) | (row + BM > n):
            j = column + tl.arange(0, BN)
            inside = (i[:, None] < j[None, :]) & (j < n)[None, :]
            s = tl.where(inside, s, 0.0)
        total += tl.sum(s, axis=1).to(tl.float64)
    at = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums_ptr + at, tl.sum(total, axis=0))


# ------------------------------------------------------------------------------------ launchers


def _signed(x: Tensor, negative_dims: int) -> Tensor:
    """x with its last coordinates negated: an indefinite product becomes a plain one."""
    if negative_dims == 0:
        return x
    y = x.clone()
    y[:, x.shape[1] - negative_dims :].neg_()
    return y


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size > configs.MOST_ROWS:
            raise ValueError(f"{name}: expected at most {configs.MOST_ROWS} rows, got {size}")


def _candidates(
    rows: Tensor,
    columns: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    alpha: Tensor,
    skip: str,
    given: Tensor | None,
    keep: int,
    top1: bool,
) -> tuple[Tensor, Tensor]:
    """(n, shares, keep) values and int32 columns: the best of each share of the columns."""
    n, d = rows.shape
    m = columns.shape[0]
    config = configs.sweep(rows.element_size(), d, keep, top1)
    splits = configs.splits(n, m, config)
    values = rows.new_empty((n, splits, keep), dtype=alpha.dtype)
    index = rows.new_empty((n, splits, keep), dtype=torch.int32)
    kernel = top1_kernel if top1 else topk_kernel
    kernel[(triton.cdiv(n, config.bm), splits)](
        rows,
        columns,
        u,
        v,
        alpha,
        given,
        values,
        index,
        n,
        m,
        d,
        KEEP=keep,
        SKIP=skip,
        RESIDENT=d <= config.bk,
        EVEN=d % config.bk == 0,
        ACC=accumulator(rows),
        BM=config.bm,
        BN=config.bn,
        BK=config.bk,
        **config.options(),
    )
    return values, index


def inner_product_topk(
    features: Tensor,
    other: Tensor | None,
    weights: Tensor | None,
    other_weights: Tensor | None,
    alpha: float,
    k: int,
    exclude_self: bool,
    negative_dims: int,
    values: Tensor,
    indices: Tensor,
) -> None:
    """Writes the k best ``<x_i, y_j> - alpha u_i v_j`` of each row i, ties by lowest j.

    Args:
        features: (n, d) contiguous; fp32, fp64, fp16 or bf16. 16-bit: tensor cores find a few
            more candidates than k, whose values are then summed anew in fp32.
        other: (m, d) of the same dtype, or None: the rows themselves.
        weights, other_weights: (n,) and (m,) fp32 (fp64 for fp64), or None: ones.
        k: 1 .. configs.MOST_K.
        exclude_self: passes over column i in row i.
        negative_dims: the last so many coordinates count negatively.
        values, indices: (n, k) fp32 (fp64 for fp64) and int64; -inf and -1 past the last column.

    O(n m d) time, O(n (k + shares)) memory beside the inputs.
    """
    n, d = features.shape
    columns = features if other is None else other
    v = weights if other is None else other_weights
    m = columns.shape[0]
    _check_sizes(features=n, other=m)
    if not 1 <= k <= configs.MOST_K:
        raise ValueError(f"k: expected 1 to {configs.MOST_K}, got {k}")
    if n == 0:
        return
    if m == 0:
        values.fill_(float("-inf"))
        indices.fill_(-1)
        return
    if (weights is None) != (v is None):
        weights = values.new_ones(n) if weights is None else weights
        v = values.new_ones(m) if v is None else v
    narrow = features.element_size() == 2
    rows = _signed(features, negative_dims)
    cost = values.new_full((), alpha)
    skip = "self" if exclude_self else "none"
    with device_of(features):
        keep = configs.candidates(k, narrow)
        found, index = _candidates(rows, columns, weights, v, cost, skip, None, keep, k == 1)
        count = found[0].numel()
        room = max(2, triton.next_power_of_2(count))
        config = configs.join(room, d)
        join_kernel[(triton.cdiv(n, config.bm),)](
            rows if narrow else None,
            columns if narrow else None,
            weights,
            v,
            cost,
            found,
            index,
            values,
            indices,
            n,
            m,
            d,
            k,
            COUNT=count,
            ROOM=room,
            RESCORE=narrow,
            ACC=accumulator(values),
            BM=config.bm,
            BK=config.bk,
            **config.options(),
        )


def best_cluster(
    features: Tensor,
    weights: Tensor | None,
    sums: Tensor,
    sizes: Tensor,
    labels: Tensor,
    alpha: float,
    negative_dims: int,
    target: Tensor,
    gain: Tensor,
) -> None:
    """Writes for each node the cluster it is worth most to, and what moving there gains.

    Args:
        features, sums: (n, d) and (K, d) contiguous, fp32 or fp64.
        weights, sizes: (n,) or None for ones, and (K,), of the dtype of the features.
        labels: (n,) int64 in 0 .. K - 1, K at least 1 if n is.
        target: (n,) int64; K stands for a new cluster.
        gain: (n,), at least 0; 0 for a node that stays.

    A node counts in no sum when it compares. O(n K d) time.
    """
    n, d = features.shape
    clusters = sums.shape[0]
    _check_sizes(features=n, sums=clusters)
    if n == 0:
        return
    rows = _signed(features, negative_dims)
    cost = features.new_full((), alpha)
    u = features.new_ones(n) if weights is None else weights
    with device_of(features):
        found, index = _candidates(rows, sums, u, sizes, cost, "given", labels, 1, True)
        count = found[0].numel()
        room = max(2, triton.next_power_of_2(count))
        config = configs.join(room, d)
        choose_kernel[(triton.cdiv(n, config.bm),)](
            features,
            sums,
            u,
            sizes,
            cost,
            labels,
            found,
            index,
            target,
            gain,
            n,
            clusters,
            d,
            negative_dims,
            COUNT=count,
            ROOM=room,
            ACC=accumulator(features),
            BM=config.bm,
            BK=config.bk,
            **config.options(),
        )


def negative_sum(
    features: Tensor,
    weights: Tensor | None,
    alpha: float,
    negative_dims: int,
) -> Tensor:
    """Sum of min(0, <x_i, x_j> - alpha w_i w_j) over i < j: () fp64 on the features' device.

    Args:
        features: (n, d) contiguous, fp32 or fp64.
        weights: (n,) of the same dtype, or None for ones.

    O(n^2 d / 2) time. The order of the sum depends on n and d alone.
    """
    n, d = features.shape
    _check_sizes(features=n)
    if n < 2:
        return features.new_zeros((), dtype=torch.float64)
    rows = _signed(features, negative_dims)
    config = configs.sweep(features.element_size(), d, 1, True)
    splits = configs.splits(n, n, config)
    tiles = triton.cdiv(n, config.bm)
    sums = features.new_empty((tiles, splits), dtype=torch.float64)
    with device_of(features):
        negative_sum_kernel[(tiles, splits)](
            rows,
            features,
            weights,
            features.new_full((), alpha),
            sums,
            n,
            d,
            RESIDENT=d <= config.bk,
            EVEN=d % config.bk == 0,
            ACC=accumulator(features),
            BM=config.bm,
            BN=config.bn,
            BK=config.bk,
            **config.options(),
        )
    return sums.sum()
