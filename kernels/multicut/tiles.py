"""One tile of pair values, and the choice of the best among many: what the kernels share.

A pair (row i, column j) is worth ``<x_i, y_j> - alpha (u_i v_j)``. The product of the weights comes
first and sums run in the order of the inner index, so that the pair (j, i) is worth the same bits.
Rows and columns past the end are read at the last one and masked where they are compared: a mask in
the load would split it.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Index that stands for no candidate while candidates are compared: above every real one.
NONE = tl.constexpr(2**31 - 1)


@triton.jit
def load_rows(
    ptr, first, count, d, k, ROWS: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr
):
    """Elements k .. k + BK of rows first .. first + ROWS of [count, d]: [ROWS, BK].

    first: int64 scalar. EVEN: every k + BK <= d, so that nothing is masked.
    """
    row = tl.minimum(first + tl.arange(0, ROWS), count - 1)
    inner = k + tl.arange(0, BK)
    at = ptr + row[:, None] * d + inner[None, :]
    return tl.load(at) if EVEN else tl.load(at, mask=(inner < d)[None, :], other=0.0)


@triton.jit
def load_each(ptr, first, count, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Elements first .. first + ROWS of (count,), those past the end as the last; 1 for None."""
    if ptr is None:
        v = tl.full([ROWS], 1.0, ACC)
    else:
        v = tl.load(ptr + tl.minimum(first + tl.arange(0, ROWS), count - 1)).to(ACC)
    return v


@triton.jit
def product(x, y, total, ACC: tl.constexpr):
    """total + x y^T for [BM, BK] and [BN, BK]. 16-bit: tensor cores; wider: IEEE, no TF32."""
    if x.dtype == tl.float64 or x.dtype == tl.float32:
        total = tl.dot(x, tl.trans(y), total, input_precision="ieee", out_dtype=ACC)
    else:
        total = tl.dot(x, tl.trans(y), total, out_dtype=ACC)
    return total


@triton.jit
def pair_values(
    x,  # [BM, BK], the rows whole, if RESIDENT
    x_ptr,
    y_ptr,
    u,  # [BM] weights of the rows
    v_ptr,
    alpha,
    row,
    column,
    n,
    m,
    d,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    RESIDENT: tl.constexpr,  # d <= BK: the rows stay where they are for the whole sweep
    EVEN: tl.constexpr,  # d % BK == 0
    ACC: tl.constexpr,
):
    """Values of rows row .. row + BM and columns column .. column + BN: [BM, BN] in ACC."""
    s = tl.zeros([BM, BN], ACC)
    if RESIDENT:
        s = product(x, load_rows(y_ptr, column, m, d, 0, BN, BK, EVEN), s, ACC)
    else:
        for k in range(0, d, BK):
            rows = load_rows(x_ptr, row, n, d, k, BM, BK, EVEN)
            s = product(rows, load_rows(y_ptr, column, m, d, k, BN, BK, EVEN), s, ACC)
    v = load_each(v_ptr, column, m, BN, ACC)
    return s - alpha * (u[:, None] * v[None, :])


@triton.jit
def columns_of_split(m, BN: tl.constexpr):
    """Tiles [first, last) of columns that this program takes: an even share by program_id(1)."""
    tiles = tl.cdiv(m, BN)
    share = tl.cdiv(tiles, tl.num_programs(1))
    first = tl.program_id(1) * share
    return first, tl.minimum(first + share, tiles)
