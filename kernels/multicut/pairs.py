"""Kernels that pass over all pairs: the best columns of each row, and the sum of negative pairs.

A program takes a tile of rows and an even share of the columns that they meet, and walks them tile
by tile; the n x m values live in registers only. Small kernels join the shares.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    NONE,
    load_each,
    load_rows,
    pair_values,
    precedes,
    row_best,
    row_best_tame,
    share_of_columns,
)


@triton.jit
def _met(column, low, high, skip, BM: tl.constexpr, BN: tl.constexpr):
    """Index of each column for each row, NONE where they do not meet: int32 [BM, BN]."""
    at = column + tl.zeros([BM, BN], tl.int32) + tl.arange(0, BN)[None, :]
    meet = (at >= low[:, None]) & (at < high[:, None]) & (at != skip[:, None])
    return tl.where(meet, at, NONE)


@triton.jit
def _rows(
    low_ptr, high_ptr, skip_ptr, self_at, row, last_row, SKIP: tl.constexpr, BM: tl.constexpr
):
    """Columns that each row meets and the one it passes over: three int32 [BM]."""
    low = load_each(low_ptr, row, last_row, BM).to(tl.int32)
    high = load_each(high_ptr, row, last_row, BM).to(tl.int32)
    if SKIP == "given":
        skip = load_each(skip_ptr, row, last_row, BM).to(tl.int32)
    elif SKIP == "self":
        skip = (tl.minimum(row + tl.arange(0, BM), last_row) + self_at).to(tl.int32)
    else:
        skip = tl.full([BM], -1, tl.int32)
    return low, high, skip


@triton.jit(do_not_specialize=["n", "m", "self_at"])
def best_kernel(
    x_ptr,  # (n, d) rows
    y_ptr,  # (m, d) columns
    u_ptr,  # (n,) ACC
    v_ptr,  # (m,) ACC
    low_ptr,  # (n,) int64
    high_ptr,  # (n,) int64
    skip_ptr,  # (n,) int64, or None
    tame_ptr,  # () bool: no product can overflow
    values_ptr,  # (n, splits, KEEP) ACC
    index_ptr,  # (n, splits, KEEP) int32
    n,
    m,
    d,
    self_at,
    KEEP: tl.constexpr,  # 1 or 2
    SKIP: tl.constexpr,  # "none", "self": column self_at + i, "given"
    TAME: tl.constexpr,  # runs only where no value can be NaN or infinite; False: only elsewhere
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The best column of each row in a share and, if KEEP is 2, the best of another tile."""
    if (tl.load(tame_ptr) != 0) != TAME:
        return
    row = tl.program_id(0).to(tl.int64) * BM
    last_row = tl.zeros_like(row) + n - 1
    last_column = tl.zeros_like(row) + m - 1
    low, high, skip = _rows(low_ptr, high_ptr, skip_ptr, self_at, row, last_row, SKIP, BM)
    begin, end = tl.min(low, axis=0), tl.max(high, axis=0)
    inner_begin, inner_end = tl.max(low, axis=0), tl.min(high, axis=0)
    skip_begin, skip_end = tl.min(skip, axis=0), tl.max(skip, axis=0)
    u = load_each(u_ptr, row, last_row, BM)
    x = load_rows(x_ptr, row, last_row, d, 0, BM, BK, EVEN)
    best = tl.full([BM], float("-inf"), ACC)
    index = tl.full([BM], NONE, tl.int32)
    second = tl.full([BM], float("-inf"), ACC)
    second_index = tl.full([BM], NONE, tl.int32)
    first, last = share_of_columns(begin, end, BN)
    for t in range(first, last):
        column = begin + t * BN
        s = pair_values(
            x, x_ptr, y_ptr, u, v_ptr, row, last_row, column.to(tl.int64), last_column, d,
            BM, BN, BK, RESIDENT, EVEN, UPCAST, ACC,
        )  # fmt: skip
        if TAME:
            partly = (column < inner_begin) | (column + BN > inner_end)
            if SKIP != "none":
                partly = partly | ((column <= skip_end) & (column + BN > skip_begin))
            if partly:
                s = tl.where(_met(column, low, high, skip, BM, BN) == NONE, float("-inf"), s)
            top, at = row_best_tame(s, column, BN)
        else:
            top, at = row_best(s, _met(column, low, high, skip, BM, BN))
        wins = precedes(top, at, best, index)
        if KEEP == 2:
            # The loser of the two, if it is better than what was second.
            lower = tl.where(wins, best, top)
            lower_index = tl.where(wins, index, at)
            runner_up = precedes(lower, lower_index, second, second_index)
            second = tl.where(runner_up, lower, second)
            second_index = tl.where(runner_up, lower_index, second_index)
        best = tl.where(wins, top, best)
        index = tl.where(wins, at, index)
    rows = row + tl.arange(0, BM)
    out = (rows * tl.num_programs(1) + tl.program_id(1)) * KEEP
    tl.store(values_ptr + out, best, mask=rows < n)
    tl.store(index_ptr + out, index, mask=rows < n)
    if KEEP == 2:
        tl.store(values_ptr + out + 1, second, mask=rows < n)
        tl.store(index_ptr + out + 1, second_index, mask=rows < n)


@triton.jit(do_not_specialize=["n", "m", "self_at"])
def list_kernel(
    x_ptr,
    y_ptr,
    u_ptr,
    v_ptr,
    low_ptr,
    high_ptr,
    skip_ptr,
    tame_ptr,
    values_ptr,  # (n, splits, KEEP) ACC
    index_ptr,  # (n, splits, KEEP) int32
    n,
    m,
    d,
    self_at,
    KEEP: tl.constexpr,  # a power of two
    SKIP: tl.constexpr,
    TAME: tl.constexpr,
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The KEEP best columns of each row in a share, in no order.

    A tile is searched only as often as one of its rows may have a candidate that goes before the
    last of its list: after the first tiles hardly ever.
    """
    if (tl.load(tame_ptr) != 0) != TAME:
        return
    row = tl.program_id(0).to(tl.int64) * BM
    last_row = tl.zeros_like(row) + n - 1
    last_column = tl.zeros_like(row) + m - 1
    low, high, skip = _rows(low_ptr, high_ptr, skip_ptr, self_at, row, last_row, SKIP, BM)
    begin, end = tl.min(low, axis=0), tl.max(high, axis=0)
    inner_begin, inner_end = tl.max(low, axis=0), tl.min(high, axis=0)
    skip_begin, skip_end = tl.min(skip, axis=0), tl.max(skip, axis=0)
    u = load_each(u_ptr, row, last_row, BM)
    x = load_rows(x_ptr, row, last_row, d, 0, BM, BK, EVEN)
    value = tl.full([BM, KEEP], float("-inf"), ACC)
    # Places without a candidate differ, so that one at a time is filled.
    index = tl.full([BM, KEEP], NONE, tl.int32) - tl.arange(0, KEEP)[None, :]
    worst = tl.full([BM], float("-inf"), ACC)
    worst_index = tl.full([BM], NONE, tl.int32)
    first, last = share_of_columns(begin, end, BN)
    for t in range(first, last):
        column = begin + t * BN
        s = pair_values(
            x, x_ptr, y_ptr, u, v_ptr, row, last_row, column.to(tl.int64), last_column, d,
            BM, BN, BK, RESIDENT, EVEN, UPCAST, ACC,
        )  # fmt: skip
        # How often to look: a bound, for what enters first may keep others out.
        if TAME:
            partly = (column < inner_begin) | (column + BN > inner_end)
            if SKIP != "none":
                partly = partly | ((column <= skip_end) & (column + BN > skip_begin))
            if partly:
                s = tl.where(_met(column, low, high, skip, BM, BN) == NONE, float("-inf"), s)
            # Columns ascend, so an equal one never gets in.
            enters = s > worst[:, None]
            rounds = tl.minimum(tl.max(tl.sum(enters.to(tl.int32), axis=1), axis=0), KEEP)
            for _ in range(rounds):
                top, at = row_best_tame(s, column, BN)
                place = (index == worst_index[:, None]) & (top > worst)[:, None]
                value = tl.where(place, top[:, None], value)
                index = tl.where(place, at[:, None], index)
                worst, worst_index = _row_worst_tame(value, index)
                s = tl.where(column + tl.arange(0, BN)[None, :] == at[:, None], float("-inf"), s)
        else:
            met = _met(column, low, high, skip, BM, BN)
            enters = precedes(s, met, worst[:, None], worst_index[:, None]) & (met != NONE)
            rounds = tl.minimum(tl.max(tl.sum(enters.to(tl.int32), axis=1), axis=0), KEEP)
            for _ in range(rounds):
                top, at = row_best(s, met)
                wins = precedes(top, at, worst, worst_index)
                place = (index == worst_index[:, None]) & wins[:, None]
                value = tl.where(place, top[:, None], value)
                index = tl.where(place, at[:, None], index)
                worst, worst_index = _row_worst(value, index)
                met = tl.where(met == at[:, None], NONE, met)
    rows = row + tl.arange(0, BM)
    out = (rows * tl.num_programs(1) + tl.program_id(1)) * KEEP
    out = out[:, None] + tl.arange(0, KEEP)[None, :]
    tl.store(values_ptr + out, value, mask=(rows < n)[:, None])
    tl.store(index_ptr + out, index, mask=(rows < n)[:, None])


@triton.jit
def _row_worst_tame(value, index):
    """The last of each row's list: the smallest value, of equals the highest index."""
    bottom = tl.min(value, axis=1)
    return bottom, tl.max(tl.where(value == bottom[:, None], index, -1), axis=1)


@triton.jit
def _row_worst(value, index):
    """The same with NaN, which is before every number."""
    number = tl.where(value != value, float("inf"), value)
    bottom = tl.min(number, axis=1)
    last = tl.where(number == bottom[:, None], index, -1)
    # +inf and NaN tie here; numbers are after NaN.
    last = tl.where((value != value) & (last >= 0), -1, last)
    at = tl.max(last, axis=1)
    every = at < 0  # only NaN: the highest index of all
    at = tl.where(every, tl.max(index, axis=1), at)
    return tl.where(every, float("nan"), bottom), at


@triton.jit(do_not_specialize=["n", "m", "k"])
def join_kernel(
    x_ptr,  # (n, d), or None
    y_ptr,  # (m, d), or None
    u_ptr,
    v_ptr,
    partial_ptr,  # (n, COUNT) ACC
    candidate_ptr,  # (n, COUNT) int32, at least m for no candidate
    values_ptr,  # (n, k) ACC
    index_ptr,  # (n, k) int64
    n,
    m,
    d,
    k,
    COUNT: tl.constexpr,
    ROOM: tl.constexpr,  # COUNT rounded up to a power of two
    RESCORE: tl.constexpr,  # values anew, in fp32: the chain over coordinates of every other target
    ACC: tl.constexpr,
    BM: tl.constexpr,
):
    """The k best of each row's candidates, in order; -inf and -1 where there are fewer."""
    row = tl.program_id(0).to(tl.int64) * BM
    rows = row + tl.arange(0, BM)
    here = tl.minimum(rows, tl.zeros_like(rows) + n - 1)
    slot = tl.arange(0, ROOM)[None, :]
    at = here[:, None] * COUNT + slot
    index = tl.load(candidate_ptr + at, mask=slot < COUNT, other=NONE)
    index = tl.where(index < m, index, NONE)
    if RESCORE:
        known = index != NONE
        column = tl.where(known, index, 0).to(tl.int64)
        value = tl.zeros([BM, ROOM], ACC)
        for p in range(d):
            x = tl.load(x_ptr + here * d + p).to(ACC)
            y = tl.load(y_ptr + column * d + p, mask=known, other=0.0).to(ACC)
            value = tl.fma(x[:, None] + tl.zeros_like(y), y, value)
        v = tl.load(v_ptr + column)
        value = tl.fma(tl.load(u_ptr + here)[:, None] + tl.zeros_like(v), v, value)
        value = tl.where(known, value, float("-inf"))
    else:
        value = tl.load(partial_ptr + at, mask=slot < COUNT, other=float("-inf"))
    for r in range(k):
        top, best = row_best(value, index)
        found = best != NONE
        out = rows * k + r
        tl.store(values_ptr + out, tl.where(found, top, float("-inf")), mask=rows < n)
        tl.store(index_ptr + out, tl.where(found, best, -1).to(tl.int64), mask=rows < n)
        taken = index == best[:, None]
        value = tl.where(taken, float("-inf"), value)
        index = tl.where(taken, NONE, index)


@triton.jit(do_not_specialize=["n"])
def negative_kernel(
    x_ptr,  # (n, d), the signs of negative coordinates in it
    y_ptr,  # (n, d)
    u_ptr,  # (n,) ACC
    v_ptr,
    high_ptr,  # (n,) int64: end of the row's instance
    sums_ptr,  # (n, splits) fp64
    n,
    d,
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Sum of min(0, s_ij) over j > i, by row and share of columns.

    Shares interleave, so that they are even above the diagonal. ACC within a tile, fp64 beyond.
    """
    row = tl.program_id(0).to(tl.int64) * BM
    last_row = tl.zeros_like(row) + n - 1
    high = load_each(high_ptr, row, last_row, BM)
    end, inner_end = tl.max(high, axis=0), tl.min(high, axis=0)
    u = load_each(u_ptr, row, last_row, BM)
    x = load_rows(x_ptr, row, last_row, d, 0, BM, BK, EVEN)
    i = row + tl.arange(0, BM)
    total = tl.zeros([BM], tl.float64)
    for t in range(tl.program_id(1), tl.cdiv(end - row, BN).to(tl.int32), tl.num_programs(1)):
        column = row + t * BN
        s = pair_values(
            x, x_ptr, y_ptr, u, v_ptr, row, last_row, column, last_row, d,
            BM, BN, BK, RESIDENT, EVEN, UPCAST, ACC,
        )  # fmt: skip
        s = tl.where(s > 0, 0.0, s)  # NaN stays
        if (column < row + BM) | (column + BN > inner_end):
            j = column + tl.arange(0, BN)
            inside = (i[:, None] < j[None, :]) & (j[None, :] < high[:, None])
            s = tl.where(inside, s, 0.0)
        total += tl.sum(s, axis=1).to(tl.float64)
    tl.store(sums_ptr + i * tl.num_programs(1) + tl.program_id(1), total, mask=i < n)


@triton.jit
def instance_sums_kernel(
    sums_ptr,  # (n, splits) fp64
    offsets_ptr,  # (instances + 1,) int64
    out_ptr,  # (instances,) fp64
    splits,
    BLOCK: tl.constexpr,
):
    """Sum of an instance's rows, in an order that its length alone decides."""
    b = tl.program_id(0)
    begin = tl.load(offsets_ptr + b) * splits
    end = tl.load(offsets_ptr + b + 1) * splits
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + at, mask=at < end, other=0.0)
    tl.store(out_ptr + b, tl.sum(total, axis=0))
