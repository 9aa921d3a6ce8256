"""Kernels that hold a tile of query rows: the forward pass, and the gradient of q.

A program folds its rows with one k1 row after the other and multiplies by a tile of k2, which stays
for the whole inner sweep over k1: k2 tile outer, k1 rows inner. Nothing of pairs leaves registers.
With FUNCTION "softmax" the weight of a pair is exp(X - LSE), with "polynomial" it is p(X).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    both_allowed,
    fold,
    load_columns,
    load_tile,
    load_vector,
    polynomial,
    product,
    rest,
    seen_rows,
    slope,
    store_tile,
    wide,
)


@triton.jit
def norm_kernel(x_ptr, norm_ptr, x_b, x_h, x_n, heads, n, D: tl.constexpr, BD: tl.constexpr,
                ROWS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """3-norm of each row of x (B, H, N, D): (B, H, N) ACC."""
    tiles = tl.cdiv(n, ROWS)
    head = tl.program_id(0) // tiles
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    base = (head // heads).to(tl.int64) * x_b + (head % heads).to(tl.int64) * x_h
    x = load_tile(x_ptr + base, row.to(tl.int64) * x_n, row < n, D, BD).to(ACC)
    cubes = tl.sum(tl.abs(x) * x * x, axis=1)
    norm = tl.where(cubes > 0, tl.exp2(tl.log2(cubes) / 3), cubes)
    tl.store(norm_ptr + head.to(tl.int64) * n + row, norm, mask=row < n)


@triton.jit
def _range(first, last, m, window, LIMIT: tl.constexpr):
    """Keys [low, high) that some of the positions first .. last may read."""
    low = tl.zeros_like(first)
    high = tl.zeros_like(first) + m
    if LIMIT:
        low = tl.maximum(first - window + 1, 0)
        high = tl.minimum(high, last + 1)
    return low, high


@triton.jit
def _attend(acc, total, top, j, q, k2, v2, k1_ptr, v1_ptr, mask1_ptr, coefficients_ptr, at, k1_n,
            v1_n, scale, b, i, k, inside, m1, window1, window2, KIND: tl.constexpr,
            FUNCTION: tl.constexpr, ONLINE: tl.constexpr, EDGE: tl.constexpr, DEGREE: tl.constexpr,
            LIMIT1: tl.constexpr, LIMIT2: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
            BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, OPERAND: tl.constexpr,
            PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Adds the pairs of key j with a tile of k; EDGE: not every row may read every one of them."""
    k1 = load_vector(k1_ptr + tl.cast(j, tl.int64) * k1_n, D, BD, ACC)
    v1 = load_vector(v1_ptr + tl.cast(j, tl.int64) * v1_n, DV, BDV, ACC)
    if KIND == "trilinear":
        s = product(fold(q, k1 * scale, KIND, ACC).to(OPERAND), tl.trans(k2), ACC, PRECISION)
    else:
        s = product((fold(q, k1, KIND, ACC) * scale).to(OPERAND), tl.trans(k2), ACC, PRECISION)
        s += (rest(q, k1, ACC) * scale)[:, None]
    if EDGE:
        seen = seen_rows(mask1_ptr, b * m1, j, i, window1, LIMIT1)
        both = both_allowed(seen[:, None], i[:, None], k[None, :], window2, LIMIT2)
    if FUNCTION == "softmax":
        if EDGE:
            s = tl.where(both, s, float("-inf"))
        if ONLINE:
            higher = tl.maximum(top, tl.max(s, axis=1))
            # Nothing allowed yet: exp(-inf - 0) is 0, where -inf - -inf is no number.
            shift = tl.where(higher == float("-inf"), 0.0, higher) if EDGE else higher
            shrink = tl.exp2(top - shift)
            acc *= shrink[:, None]
            total *= shrink
            s -= shift[:, None]
            top = higher
        weight = tl.exp2(s)
    else:
        weight = polynomial(s, coefficients_ptr, at, inside, 0, DEGREE, ACC)
        if EDGE:
            weight = tl.where(both, weight, 0.0)
    total += tl.sum(weight, axis=1)
    step = product(weight.to(OPERAND), v2, ACC, PRECISION) * v1[None, :]
    if EDGE:  # 0 times what is not read may be NaN
        step = tl.where(seen[:, None], step, 0.0)
    return acc + step, total, top


@triton.jit
def _sweep(acc, total, top, q, k1_ptr, k2_ptr, v1_ptr, v2_ptr, mask1_ptr, mask2_ptr,
           coefficients_ptr, at, k1_n, k2_n, v1_n, v2_n, scale, b, i, inside, first, last, m1, m2,
           window1, window2, near, KIND: tl.constexpr, FUNCTION: tl.constexpr,
           ONLINE: tl.constexpr, DEGREE: tl.constexpr, LIMIT1: tl.constexpr, LIMIT2: tl.constexpr,
           NEAR: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
           BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, OPERAND: tl.constexpr,
           PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """All pairs that the rows may read: for a tile of k first the keys j that all rows may pair
    with all of it, then those before and after them."""
    j_low, j_high = _range(first, last, m1, window1, LIMIT1)
    k_low, k_high = _range(first, last, m2, window2, LIMIT2)
    segment = first // near * near if NEAR else first
    for k0 in range(k_low // BN * BN, k_high, BN):
        k = k0 + tl.arange(0, BN)
        keep, k = load_columns(mask2_ptr, b * m2, k, m2)
        k2 = load_tile(k2_ptr, k.to(tl.int64) * k2_n, keep, D, BD).to(OPERAND)
        v2 = load_tile(v2_ptr, k.to(tl.int64) * v2_n, keep, DV, BDV).to(OPERAND)
        begin = j_low
        if NEAR:
            begin = tl.where(k0 < segment, tl.maximum(j_low, segment), j_low)
        inner_begin, inner_end = begin, j_high
        if LIMIT1:
            inner_begin = tl.maximum(begin, last - window1 + 1)
            inner_end = tl.minimum(j_high, first + 1)
        partly = k0 + BN > m2
        if LIMIT2:
            partly = partly | (k0 + BN - 1 > first) | (k0 <= last - window2)
        if partly:
            inner_end = inner_begin
        if mask1_ptr is not None or mask2_ptr is not None:
            inner_end = inner_begin
        inside_count = tl.maximum(inner_end - inner_begin, 0)
        for j in range(inner_begin, inner_begin + inside_count):
            acc, total, top = _attend(
                acc, total, top, j, q, k2, v2, k1_ptr, v1_ptr, mask1_ptr, coefficients_ptr, at,
                k1_n, v1_n, scale, b, i, k, inside, m1, window1, window2, KIND, FUNCTION,
                ONLINE, False, DEGREE, LIMIT1, LIMIT2, D, DV, BD, BDV, BM, OPERAND, PRECISION, ACC,
            )  # fmt: skip
        for t in range(begin, j_high - inside_count):
            j = tl.where(t < inner_begin, t, t + inside_count)
            acc, total, top = _attend(
                acc, total, top, j, q, k2, v2, k1_ptr, v1_ptr, mask1_ptr, coefficients_ptr, at,
                k1_n, v1_n, scale, b, i, k, inside, m1, window1, window2, KIND, FUNCTION,
                ONLINE, True, DEGREE, LIMIT1, LIMIT2, D, DV, BD, BDV, BM, OPERAND, PRECISION, ACC,
            )  # fmt: skip
    return acc, total, top


@triton.jit(do_not_specialize=["n", "m1", "m2", "window1", "window2", "near"])
def forward_kernel(
    q_ptr,  # (B, Hq, N, D)
    k1_ptr,  # (B, Hkv, M1, D)
    k2_ptr,  # (B, Hkv, M2, D)
    v1_ptr,  # (B, Hkv, M1, Dv)
    v2_ptr,  # (B, Hkv, M2, Dv)
    mask1_ptr,  # (B, M1) int32, or None
    mask2_ptr,  # (B, M2) int32, or None
    bound_ptr,  # (B, Hq, N) ACC: no logit of the row is larger; None: not known
    coefficients_ptr,  # (B, Hq, DEGREE + 1) ACC, or None
    out_ptr,  # (B, Hq, N, Dv)
    lse_ptr,  # (B, Hq, N) ACC: LSE; of a polynomial the sum of weights
    q_b, q_h, q_n, k1_b, k1_h, k1_n, k2_b, k2_h, k2_n, v1_b, v1_h, v1_n, v2_b, v2_h, v2_n,
    out_b, out_h, out_n,
    scale_high, scale_low,  # times log2(e) for softmax
    n, m1, m2, heads, group,
    window1, window2, near,
    KIND: tl.constexpr,
    FUNCTION: tl.constexpr,
    DEGREE: tl.constexpr,
    LIMIT1: tl.constexpr,  # j <= i and j > i - window1
    LIMIT2: tl.constexpr,
    NEAR: tl.constexpr,  # only pairs with a member in the row's segment of ``near`` positions
    D: tl.constexpr,
    DV: tl.constexpr,
    BD: tl.constexpr,
    BDV: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    LIMIT_BOUND: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """O and LSE of BM rows of a key head; or numerator and denominator of a polynomial."""
    tiles = tl.cdiv(n * group, BM)
    pair = tl.program_id(0) // tiles
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    tile = tiles - 1 - tl.program_id(0) % tiles  # with causality, the long ones first
    row = tile * BM + tl.arange(0, BM)
    i, head = row // group, h * group + row % group
    inside = i < n
    each = (b * heads * group + head) * n + i
    first = tile * BM // group
    last = tl.minimum((tile * BM + BM - 1) // group, n - 1)
    scale = wide(scale_high, scale_low, ACC)
    q = load_tile(q_ptr + b * q_b, head * q_h + i.to(tl.int64) * q_n, inside, D, BD)
    at = (b * heads * group + head) * (DEGREE + 1)
    k1_ptr += b * k1_b + h * k1_h
    v1_ptr += b * v1_b + h * v1_h
    k2_ptr += b * k2_b + h * k2_h
    v2_ptr += b * v2_b + h * v2_h

    acc = tl.zeros([BM, BDV], ACC)
    total = tl.zeros([BM], ACC)
    top = tl.zeros([BM], ACC)
    online = FUNCTION == "softmax"
    if bound_ptr is not None:
        bound = tl.load(bound_ptr + each, mask=inside, other=0.0)
        # No maximum where exp(X) itself cannot overflow; a bound of NaN is none.
        online = tl.max((~(bound < LIMIT_BOUND)).to(tl.int32), axis=0) > 0
    if online:
        acc, total, top = _sweep(
            acc, total, tl.full([BM], float("-inf"), ACC), q, k1_ptr, k2_ptr, v1_ptr, v2_ptr,
            mask1_ptr, mask2_ptr, coefficients_ptr, at, k1_n, k2_n, v1_n, v2_n, scale, b, i, inside,
            first, last, m1, m2, window1, window2, near, KIND, FUNCTION, True, DEGREE, LIMIT1,
            LIMIT2, NEAR, D, DV, BD, BDV, BM, BN, OPERAND, PRECISION, ACC,
        )  # fmt: skip
    else:
        acc, total, top = _sweep(
            acc, total, top, q, k1_ptr, k2_ptr, v1_ptr, v2_ptr,
            mask1_ptr, mask2_ptr, coefficients_ptr, at, k1_n, k2_n, v1_n, v2_n, scale, b, i, inside,
            first, last, m1, m2, window1, window2, near, KIND, FUNCTION, False, DEGREE, LIMIT1,
            LIMIT2, NEAR, D, DV, BD, BDV, BM, BN, OPERAND, PRECISION, ACC,
        )  # fmt: skip
    out_at = head * out_h + i.to(tl.int64) * out_n
    if FUNCTION == "softmax":
        empty = total == 0.0
        acc = acc / tl.where(empty, 1.0, total)[:, None]
        total = tl.where(empty, float("-inf"), (top + tl.log2(total)) * 0.6931471805599453)
    store_tile(out_ptr + b * out_b, out_at, inside, acc, DV, BDV)
    tl.store(lse_ptr + each, total, mask=inside)


@triton.jit(do_not_specialize=["n", "m1", "m2", "window1", "window2", "near"])
def query_kernel(
    dout_ptr,  # (B, Hq, N, Dv)
    q_ptr,
    k1_ptr,
    k2_ptr,
    v1_ptr,
    v2_ptr,
    lse_ptr,  # (B, Hq, N) ACC, or None for a polynomial
    delta_ptr,  # (B, Hq, N) ACC
    mask1_ptr,
    mask2_ptr,
    coefficients_ptr,
    dq_ptr,  # (B, Hq, N, D)
    dout_b, dout_h, dout_n,
    q_b, q_h, q_n, k1_b, k1_h, k1_n, k2_b, k2_h, k2_n, v1_b, v1_h, v1_n, v2_b, v2_h, v2_n,
    dq_b, dq_h, dq_n,
    scale_high, scale_low,
    n, m1, m2, heads, group,
    window1, window2, near,
    KIND: tl.constexpr,
    FUNCTION: tl.constexpr,
    DEGREE: tl.constexpr,
    LIMIT1: tl.constexpr,
    LIMIT2: tl.constexpr,
    NEAR: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BD: tl.constexpr,
    BDV: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of BM rows of q: dS = W (dP - delta) with dP = dout . (v1_j * v2_k).

    W is exp(X - LSE), of a polynomial p'(X). dq = scale sum_j k1_j * T_j with T_j = sum_k dS k2_k.
    """
    tiles = tl.cdiv(n * group, BM)
    pair = tl.program_id(0) // tiles
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    tile = tiles - 1 - tl.program_id(0) % tiles
    row = tile * BM + tl.arange(0, BM)
    i, head = row // group, h * group + row % group
    inside = i < n
    each = (b * heads * group + head) * n + i
    first = tile * BM // group
    last = tl.minimum((tile * BM + BM - 1) // group, n - 1)
    scale = wide(scale_high, scale_low, ACC)
    scale2 = scale * 1.4426950408889634 if FUNCTION == "softmax" else scale
    at = (b * heads * group + head) * (DEGREE + 1)
    q = load_tile(q_ptr + b * q_b, head * q_h + i.to(tl.int64) * q_n, inside, D, BD)
    dout_at = head * dout_h + i.to(tl.int64) * dout_n
    dout = load_tile(dout_ptr + b * dout_b, dout_at, inside, DV, BDV)
    delta = tl.load(delta_ptr + each, mask=inside, other=0.0)
    if FUNCTION == "softmax":
        lse = tl.load(lse_ptr + each, mask=inside, other=float("inf")) * 1.4426950408889634
        lse = tl.where(lse == float("-inf"), float("inf"), lse)  # an empty row: all weights 0
    k1_ptr += b * k1_b + h * k1_h
    v1_ptr += b * v1_b + h * v1_h
    k2_ptr += b * k2_b + h * k2_h
    v2_ptr += b * v2_b + h * v2_h

    dq = tl.zeros([BM, BD], ACC)
    j_low, j_high = _range(first, last, m1, window1, LIMIT1)
    k_low, k_high = _range(first, last, m2, window2, LIMIT2)
    segment = first // near * near if NEAR else first
    for k0 in range(k_low // BN * BN, k_high, BN):
        k = k0 + tl.arange(0, BN)
        keep, k = load_columns(mask2_ptr, b * m2, k, m2)
        k2 = load_tile(k2_ptr, k.to(tl.int64) * k2_n, keep, D, BD).to(OPERAND)
        v2 = load_tile(v2_ptr, k.to(tl.int64) * v2_n, keep, DV, BDV).to(OPERAND)
        partly = k0 + BN > m2
        if mask1_ptr is not None or mask2_ptr is not None:
            partly = tl.full([], 1, tl.int1)
        if LIMIT2:
            partly = partly | (k0 + BN - 1 > first) | (k0 <= last - window2)
        begin = j_low
        if NEAR:
            begin = tl.where(k0 < segment, tl.maximum(j_low, segment), j_low)
        for j in range(begin, j_high):
            k1 = load_vector(k1_ptr + tl.cast(j, tl.int64) * k1_n, D, BD, ACC)
            v1 = load_vector(v1_ptr + tl.cast(j, tl.int64) * v1_n, DV, BDV, ACC)
            if KIND == "trilinear":
                query = fold(q, k1 * scale2, KIND, ACC).to(OPERAND)
            else:
                query = (fold(q, k1, KIND, ACC) * scale2).to(OPERAND)
            s = product(query, tl.trans(k2), ACC, PRECISION)
            if KIND == "strassen":
                s += (rest(q, k1, ACC) * scale2)[:, None]
            if FUNCTION == "softmax":
                weight = tl.exp2(s - lse[:, None])
            else:
                weight = slope(s, coefficients_ptr, at, inside, 0, DEGREE, ACC)
            ds = product(fold(dout, v1, "trilinear", ACC).to(OPERAND), tl.trans(v2), ACC, PRECISION)
            ds = (ds - delta[:, None]) * weight
            edge = partly
            if LIMIT1:
                edge = edge | (j > first) | (j <= last - window1)
            seen = seen_rows(mask1_ptr, b * m1, j, i, window1, LIMIT1)
            if edge:
                both = both_allowed(seen[:, None], i[:, None], k[None, :], window2, LIMIT2)
                ds = tl.where(both, ds, 0.0)
            step = product(ds.to(OPERAND), k2, ACC, PRECISION)
            if KIND == "trilinear":
                step *= k1[None, :]
            else:
                step += tl.sum(ds, axis=1)[:, None] * k1[None, :]
            if edge:
                step = tl.where(seen[:, None], step, 0.0)
            dq += step
    dq_at = head * dq_h + i.to(tl.int64) * dq_n
    store_tile(dq_ptr + b * dq_b, dq_at, inside, dq * scale, D, BD)
