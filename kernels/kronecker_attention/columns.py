"""The kernel that holds a tile of the second key set: gradients of both key and value sets.

For fixed j and a tile of k the folds k1_j * k2 and v1_j * v2 are made once, and the rows stream by
as in the backward pass of ordinary attention:

    U_jk = sum_i dS_ijk q_i,  Y_jk = sum_i W_ijk dout_i

serve all four gradients: dk2_k += k1_j * U_jk, dk1_j += sum_k k2_k * U_jk, and v alike with Y. So
the four take 8 D FLOPs a triple, not 8 D a set.
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
    product_plus,
    rest,
    slope,
    store_tile,
    wide,
)


@triton.jit
def _stream(u, y, sums, r0, edge, key, value, left, q_ptr, dout_ptr, lse_ptr, delta_ptr,
            coefficients_ptr, q_h, q_n, dout_h, dout_n, base, at, n, i_high, group, k, window2,
            KIND: tl.constexpr,
            FUNCTION: tl.constexpr, DEGREE: tl.constexpr, LIMIT2: tl.constexpr,
            D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
            BM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
            ACC: tl.constexpr):  # fmt: skip
    """Adds the rows r0 .. r0 + BM to U, Y and, for strassen, the sums of dS over the rows.

    edge: not every row may read every key of the tile. The transposes of dS and W: [BN, BM].
    """
    row = r0 + tl.arange(0, BM)
    i, head = row // group, (row % group).to(tl.int64)
    inside = i < i_high
    q_at = head * q_h + i.to(tl.int64) * q_n
    q = load_tile(q_ptr, q_at, inside, D, BD).to(OPERAND)
    dout_at = head * dout_h + i.to(tl.int64) * dout_n
    dout = load_tile(dout_ptr, dout_at, inside, DV, BDV).to(OPERAND)
    each = base + head * n + i
    delta = tl.load(delta_ptr + each, mask=inside, other=0.0)
    s = product(key, tl.trans(q), ACC, PRECISION)
    if KIND == "strassen":
        s += left[:, None]
    ds = product(value, tl.trans(dout), ACC, PRECISION) - delta[None, :]
    if FUNCTION == "softmax":
        lse = tl.load(lse_ptr + each, mask=inside, other=float("inf"))
        lse = tl.where(lse == float("-inf"), float("inf"), lse)
        weight = tl.exp2(s - (lse * 1.4426950408889634)[None, :])
        ds *= weight
    else:
        from_ = at + head * (DEGREE + 1)
        weight = polynomial(s, coefficients_ptr, from_, inside, 1, DEGREE, ACC)
        ds *= slope(s, coefficients_ptr, from_, inside, 1, DEGREE, ACC)
    if edge:
        both = both_allowed(inside[None, :], i[None, :], k[:, None], window2, LIMIT2)
        weight = tl.where(both, weight, 0.0)
        ds = tl.where(both, ds, 0.0)
    y = product_plus(weight.to(OPERAND), dout, y, ACC, PRECISION)
    u = product_plus(ds.to(OPERAND), q, u, ACC, PRECISION)
    if KIND == "strassen":
        sums += tl.sum(ds, axis=1)
    return u, y, sums


@triton.jit(do_not_specialize=["n", "m1", "m2", "window1", "window2", "near"])
def key_kernel(
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
    dk1_ptr,  # (SHARES2, B, Hkv, M1, D) ACC, zeros
    dv1_ptr,  # (SHARES2, B, Hkv, M1, Dv) ACC, zeros
    dk2_ptr,  # (SHARES1, B, Hkv, M2, D) ACC
    dv2_ptr,  # (SHARES1, B, Hkv, M2, Dv) ACC
    dout_b, dout_h, dout_n,
    q_b, q_h, q_n, k1_b, k1_h, k1_n, k2_b, k2_h, k2_n, v1_b, v1_h, v1_n, v2_b, v2_h, v2_n,
    scale_high, scale_low,
    n, m1, m2, heads, group,
    window1, window2, near, shares1, shares2,
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
    """Sums of one share of the first key set (j = share1, + shares1, ...) and one of the tiles of
    the second, of a key head. A share owns what it writes; shares are summed afterwards, in order.
    """
    share1 = tl.program_id(0) % shares1
    share2 = tl.program_id(0) // shares1 % shares2
    pair = tl.program_id(0) // shares1 // shares2
    pairs = tl.num_programs(0) // shares1 // shares2
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    scale = wide(scale_high, scale_low, ACC)
    scale2 = scale * 1.4426950408889634 if FUNCTION == "softmax" else scale
    k1_ptr += b * k1_b + h * k1_h
    v1_ptr += b * v1_b + h * v1_h
    k2_ptr += b * k2_b + h * k2_h
    v2_ptr += b * v2_b + h * v2_h
    q_ptr += b * q_b + h * group * q_h
    dout_ptr += b * dout_b + h * group * dout_h
    base = (b * heads + h) * group * n
    at = (b * heads + h) * group * (DEGREE + 1)
    first_out = (share2 * pairs + pair).to(tl.int64) * m1
    second_out = (share1 * pairs + pair).to(tl.int64) * m2

    for tile in range(share2, tl.cdiv(m2, BN), shares2):
        k0 = tile * BN
        k = k0 + tl.arange(0, BN)
        exists = k < m2
        second_at = second_out + k
        keep, k = load_columns(mask2_ptr, b * m2, k, m2)
        k2 = load_tile(k2_ptr, k.to(tl.int64) * k2_n, keep, D, BD)
        v2 = load_tile(v2_ptr, k.to(tl.int64) * v2_n, keep, DV, BDV)
        dk2 = tl.zeros([BN, BD], ACC)
        dv2 = tl.zeros([BN, BDV], ACC)
        low = tl.zeros_like(k0)
        high = tl.zeros_like(k0) + m1
        if LIMIT1:
            high = tl.minimum(high, n)
            if LIMIT2:  # positions k0 .. k0 + BN - 2 + window2 read the tile
                low = tl.maximum(k0 - window1 + 1, 0)
                high = tl.minimum(high, k0 + BN - 1 + window2)
        low = low + (share1 + shares1 - low % shares1) % shares1
        for j in range(low, high, shares1):
            i_low = tl.zeros_like(k0)
            i_high = tl.zeros_like(k0) + n
            if LIMIT1:
                i_low = i_low + j
                i_high = tl.minimum(i_high, j + window1)
            if LIMIT2:
                i_low = tl.maximum(i_low, k0)
                i_high = tl.minimum(i_high, k0 + BN - 1 + window2)
            if NEAR:
                i_high = tl.minimum(i_high, (tl.maximum(k0, j) // near + 1) * near)
            if mask1_ptr is not None:
                kept = tl.load(mask1_ptr + b * m1 + j) != 0
                i_high = tl.where(kept, i_high, i_low)
            if i_low < i_high:
                k1 = load_vector(k1_ptr + tl.cast(j, tl.int64) * k1_n, D, BD, ACC)
                v1 = load_vector(v1_ptr + tl.cast(j, tl.int64) * v1_n, DV, BDV, ACC)
                left = tl.zeros([BN], ACC)
                sums = tl.zeros([BN], ACC)
                if KIND == "trilinear":
                    key = fold(k2, k1 * scale2, KIND, ACC).to(OPERAND)
                else:
                    key = (fold(k2, k1, KIND, ACC) * scale2).to(OPERAND)
                    left = rest(k2, k1, ACC) * scale2
                value = fold(v2, v1, "trilinear", ACC).to(OPERAND)
                u = tl.zeros([BN, BD], ACC)
                y = tl.zeros([BN, BDV], ACC)
                for r0 in range(i_low * group, i_high * group, BM):
                    edge = k0 + BN > m2
                    if mask2_ptr is not None:
                        edge = tl.full([], 1, tl.int1)
                    if LIMIT2:
                        past = (r0 + BM - 1) // group
                        edge = edge | (k0 + BN - 1 > r0 // group) | (k0 <= past - window2)
                    u, y, sums = _stream(
                        u, y, sums, r0, edge, key, value, left, q_ptr, dout_ptr, lse_ptr,
                        delta_ptr, coefficients_ptr, q_h, q_n, dout_h, dout_n, base, at, n, i_high,
                        group, k, window2, KIND, FUNCTION, DEGREE, LIMIT2, D, DV, BD, BDV, BM,
                        OPERAND, PRECISION, ACC,
                    )  # fmt: skip
                dv2 += y * v1[None, :]
                if KIND == "trilinear":
                    dk2 += u * k1[None, :]
                    dk1 = tl.sum(u * k2.to(ACC), axis=0) * scale
                else:
                    dk2 += u + sums[:, None] * k1[None, :]
                    dk1 = tl.sum(u + sums[:, None] * k2.to(ACC), axis=0) * scale
                dv1 = tl.sum(y * v2.to(ACC), axis=0)
                d, dv = tl.arange(0, BD), tl.arange(0, BDV)
                dk1_at = dk1_ptr + (first_out + j) * D + d
                dv1_at = dv1_ptr + (first_out + j) * DV + dv
                dk1 += tl.load(dk1_at, mask=d < D, other=0.0)
                dv1 += tl.load(dv1_at, mask=dv < DV, other=0.0)
                # Read by all, of the tile before this one, before it is written by some.
                tl.debug_barrier()
                tl.store(dk1_at, dk1, mask=d < D)
                tl.store(dv1_at, dv1, mask=dv < DV)
        store_tile(dk2_ptr, second_at * D, exists, dk2 * scale, D, BD)
        store_tile(dv2_ptr, second_at * DV, exists, dv2, DV, BDV)
        tl.debug_barrier()
