"""Kernels of the factored polynomial: monomials are made in tiles of BA and never stored.

A monomial of degree <= g in D variables is a multiset of g of the indices 0 .. D, where index D
stands for 1: C(D + g, g) of them, the minimal rank. ``index`` (g, rank) holds them; a feature is
the product of g elements of its row, read from the first-level cache. The features of every key set
are the plain monomials; those of q carry ``weight`` (B, Hq, rank) = c_|a| scale^|a| |a|! / a!.

Rows are packed as in tiles.py and cut into segments of ``length`` positions, each with its own sums
(all in one segment where nothing is causal). Products of 16-bit inputs run on fp32 operands rounded
to TF32: sums over n^2 pairs do not fit into fp16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_tile, product, product_plus, store_tile


@triton.jit
def _element(x_ptr, at, inside, index_ptr, alpha, rank, p, D: tl.constexpr, ACC: tl.constexpr):
    """Factor p of the monomials alpha of each row: [ROWS, BA]."""
    index = tl.load(index_ptr + p * rank + alpha, mask=alpha < rank, other=D)
    mask = inside[:, None] & (index < D)[None, :]
    return tl.load(x_ptr + at[:, None] + index[None, :], mask=mask, other=1.0).to(ACC)


@triton.jit
def _monomials(x_ptr, at, inside, index_ptr, alpha, rank, SKIP: tl.constexpr, DEGREE: tl.constexpr,
               D: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Monomials alpha of each row without their factor SKIP (-1: with all): [ROWS, BA]."""
    mask = inside[:, None] & (alpha < rank)[None, :]
    found = tl.where(mask, 1.0, 0.0).to(ACC)
    for p in tl.static_range(DEGREE):
        if p != SKIP:
            found *= _element(x_ptr, at, inside, index_ptr, alpha, rank, p, D, ACC)
    return found


@triton.jit
def _weights(weight_ptr, head, inside, alpha, rank, ACC: tl.constexpr):
    mask = inside[:, None] & (alpha < rank)[None, :]
    return tl.load(weight_ptr + head[:, None] * rank + alpha[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit(do_not_specialize=["n", "length"])
def moment_kernel(
    x_ptr,  # (B, H, N, D)
    v_ptr,  # (B, H, N, Dv)
    one_ptr,  # (B, H, N) ACC, or None for ones
    keep_ptr,  # (B, N) int32, or None
    weight_ptr,  # (B, H, rank) ACC, or None for ones
    index_ptr,  # (DEGREE, rank) int32
    sums_ptr,  # (segments, B, H / group, rank, Dv) ACC
    ones_ptr,  # (segments, B, H / group, rank) ACC
    x_b, x_h, x_n, v_b, v_h, v_n,
    n, length, heads, group, rank, segments,
    DEGREE: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BDV: tl.constexpr,
    BM: tl.constexpr,
    BA: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums over the rows of a segment of BA features, each times v and times one."""
    tiles = tl.cdiv(rank, BA)
    alpha = tl.program_id(0) % tiles * BA + tl.arange(0, BA)
    pair = tl.program_id(0) // tiles // segments
    segment = tl.program_id(0) // tiles % segments
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    pairs = tl.num_programs(0) // tiles // segments
    end = tl.minimum(n, (segment + 1) * length)
    sums = tl.zeros([BA, BDV], ACC)
    ones = tl.zeros([BA], ACC)
    for r0 in range(segment * length * group, end * group, BM):
        row = r0 + tl.arange(0, BM)
        i, head = row // group, h * group + row % group
        inside = i < end
        if keep_ptr is not None:
            kept = tl.load(keep_ptr + b * n + i, mask=inside, other=0)
            inside = inside & (kept != 0)
        at = b * x_b + head * x_h + i.to(tl.int64) * x_n
        feature = _monomials(x_ptr, at, inside, index_ptr, alpha, rank, -1, DEGREE, D, ACC)
        if weight_ptr is not None:
            feature *= _weights(weight_ptr, b * heads * group + head, inside, alpha, rank, ACC)
        v = load_tile(v_ptr + b * v_b, head * v_h + i.to(tl.int64) * v_n, inside, DV, BDV).to(ACC)
        sums = product_plus(tl.trans(feature), v, sums, ACC, PRECISION)
        if one_ptr is not None:
            each = (b * heads * group + head) * n + i
            feature *= tl.load(one_ptr + each, mask=inside, other=0.0)[:, None]
        ones += tl.sum(feature, axis=0)
    out = (segment * pairs + pair).to(tl.int64) * rank + alpha
    store_tile(sums_ptr, out * DV, alpha < rank, sums, DV, BDV)
    tl.store(ones_ptr + out, ones, mask=alpha < rank)


@triton.jit(do_not_specialize=["n", "length"])
def evaluate_kernel(
    x_ptr,  # (B, H, N, D)
    weight_ptr,  # (B, H, rank) ACC, or None for ones
    index_ptr,
    sums_ptr,  # (segments, B, H / group, rank, Dv) ACC
    ones_ptr,  # (segments, B, H / group, rank) ACC, or None
    out_ptr,  # (B, H, N, Dv)
    total_ptr,  # (B, H, N) ACC, or None
    x_b, x_h, x_n, out_b, out_h, out_n,
    n, length, heads, group, rank,
    DEGREE: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BDV: tl.constexpr,
    BM: tl.constexpr,
    BA: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Features of BM rows times the sums of their segment."""
    tiles = tl.cdiv(n * group, BM)
    pair = tl.program_id(0) // tiles
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    pairs = tl.num_programs(0) // tiles
    row = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    i, head = row // group, h * group + row % group
    inside = i < n
    segment = tl.program_id(0) % tiles * BM // group // length
    at = b * x_b + head * x_h + i.to(tl.int64) * x_n
    start = (segment * pairs + pair).to(tl.int64) * rank
    out = tl.zeros([BM, BDV], ACC)
    total = tl.zeros([BM], ACC)
    for a0 in range(0, rank, BA):
        alpha = a0 + tl.arange(0, BA)
        feature = _monomials(x_ptr, at, inside, index_ptr, alpha, rank, -1, DEGREE, D, ACC)
        if weight_ptr is not None:
            feature *= _weights(weight_ptr, b * heads * group + head, inside, alpha, rank, ACC)
        sums = load_tile(sums_ptr, (start + alpha) * DV, alpha < rank, DV, BDV)
        out = product_plus(feature, sums, out, ACC, PRECISION)
        if ones_ptr is not None:
            ones = tl.load(ones_ptr + start + alpha, mask=alpha < rank, other=0.0)
            total += tl.sum(feature * ones[None, :], axis=1)
    out_at = head * out_h + i.to(tl.int64) * out_n
    store_tile(out_ptr + b * out_b, out_at, inside, out, DV, BDV)
    if total_ptr is not None:
        tl.store(total_ptr + (b * heads * group + head) * n + i, total, mask=inside)


@triton.jit(do_not_specialize=["n", "length"])
def gradient_kernel(
    x_ptr,  # (B, H, N, D)
    v_ptr,  # (B, H, N, Dv): gradient of the numerator, or values
    one_ptr,  # (B, H, N) ACC: gradient of the denominator, or None for ones
    keep_ptr,  # (B, N) int32, or None
    weight_ptr,
    index_ptr,
    sums_ptr,  # (segments, B, H / group, rank, Dv) ACC
    ones_ptr,  # (segments, B, H / group, rank) ACC
    dx_ptr,  # (B, H, N, D)
    x_b, x_h, x_n, v_b, v_h, v_n, dx_b, dx_h, dx_n,
    n, length, heads, group, rank,
    DEGREE: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BD: tl.constexpr,
    BDV: tl.constexpr,
    BM: tl.constexpr,
    BA: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of BM rows of x through their features: dfeature = v sums^T + one ones^T.

    The derivative by factor p goes to variable index[p]: a product with a matrix of zeros and ones.
    """
    tiles = tl.cdiv(n * group, BM)
    pair = tl.program_id(0) // tiles
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    pairs = tl.num_programs(0) // tiles
    row = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    i, head = row // group, h * group + row % group
    exists = i < n
    inside = exists
    if keep_ptr is not None:
        inside = inside & (tl.load(keep_ptr + b * n + i, mask=inside, other=0) != 0)
    segment = tl.program_id(0) % tiles * BM // group // length
    at = b * x_b + head * x_h + i.to(tl.int64) * x_n
    start = (segment * pairs + pair).to(tl.int64) * rank
    v = load_tile(v_ptr + b * v_b, head * v_h + i.to(tl.int64) * v_n, inside, DV, BDV).to(ACC)
    one = tl.full([BM], 1.0, ACC)
    if one_ptr is not None:
        one = tl.load(one_ptr + (b * heads * group + head) * n + i, mask=inside, other=0.0)
    dx = tl.zeros([BM, BD], ACC)
    for a0 in range(0, rank, BA):
        alpha = a0 + tl.arange(0, BA)
        sums = load_tile(sums_ptr, (start + alpha) * DV, alpha < rank, DV, BDV)
        ones = tl.load(ones_ptr + start + alpha, mask=alpha < rank, other=0.0)
        slope = product(v, tl.trans(sums), ACC, PRECISION) + one[:, None] * ones[None, :]
        if weight_ptr is not None:
            slope *= _weights(weight_ptr, b * heads * group + head, inside, alpha, rank, ACC)
        for p in tl.static_range(DEGREE):
            others = _monomials(x_ptr, at, inside, index_ptr, alpha, rank, p, DEGREE, D, ACC)
            index = tl.load(index_ptr + p * rank + alpha, mask=alpha < rank, other=D)
            to = (index[:, None] == tl.arange(0, BD)[None, :]) & (index < D)[:, None]
            dx = product_plus(slope * others, to.to(ACC), dx, ACC, PRECISION)
    dx_at = head * dx_h + i.to(tl.int64) * dx_n
    store_tile(dx_ptr + b * dx_b, dx_at, exists, dx, D, BD)
