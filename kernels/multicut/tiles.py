"""One tile of pair values, and the order of candidates: what the kernels share.

The pair (row i, column j) is worth ``<x_i, y_j> + u_i v_j``, where the weights' factors hold the
term of alpha: u = -+sqrt|alpha| w, v = sqrt|alpha| w. Sums run in the order of the coordinates and
end with that term, so that (j, i) is worth the same bits. Rows and columns past the end are read at
the last one and masked where they are compared: a mask in the load would split it.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Index that stands for no candidate while candidates are compared: above every real one.
NONE = tl.constexpr(2**31 - 1)


@triton.jit
def load_rows(ptr, first, last, d, k, ROWS: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr):
    """Coordinates k .. k + BK of rows first .. first + ROWS: [ROWS, BK].

    first, last: int64 scalars; rows after ``last`` are read as that one. EVEN: d % BK == 0.
    """
    row = tl.minimum(first + tl.arange(0, ROWS), last)
    inner = k + tl.arange(0, BK)
    if EVEN:
        d = d // 16 * 16  # the same, and the compiler sees that rows begin at vectors
    at = ptr + row[:, None] * d + inner[None, :]
    return tl.load(at) if EVEN else tl.load(at, mask=(inner < d)[None, :], other=0.0)


@triton.jit
def load_each(ptr, first, last, ROWS: tl.constexpr):
    """Elements first .. first + ROWS, those after ``last`` as that one: [ROWS]."""
    return tl.load(ptr + tl.minimum(first + tl.arange(0, ROWS), last))


@triton.jit
def product(x, y, total, UPCAST: tl.constexpr, ACC: tl.constexpr):
    """total + x y^T for [BM, BK] and [BN, BK]. 16-bit: tensor cores; wider: IEEE, no TF32.

    UPCAST: in ACC, where the products of 16-bit numbers are exact too.
    """
    if UPCAST:
        x, y = x.to(ACC), y.to(ACC)
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
    u,  # [BM]
    v_ptr,
    row,
    last_row,
    column,
    last_column,
    d,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    RESIDENT: tl.constexpr,  # d <= BK: the rows stay where they are for the whole sweep
    EVEN: tl.constexpr,  # d % BK == 0
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
):
    """Values of rows row .. row + BM and columns column .. column + BN: [BM, BN] in ACC."""
    s = tl.zeros([BM, BN], ACC)
    if RESIDENT:
        columns = load_rows(y_ptr, column, last_column, d, 0, BN, BK, EVEN)
        s = product(x, columns, s, UPCAST, ACC)
    else:
        for k in range(0, d, BK):
            rows = load_rows(x_ptr, row, last_row, d, k, BM, BK, EVEN)
            columns = load_rows(y_ptr, column, last_column, d, k, BN, BK, EVEN)
            s = product(rows, columns, s, UPCAST, ACC)
    v = load_each(v_ptr, column, last_column, BN)
    return tl.fma(u[:, None] + tl.zeros_like(s), v[None, :] + tl.zeros_like(s), s)


@triton.jit
def share_of_columns(begin, end, BN: tl.constexpr):
    """Tiles [first, last) of columns begin .. end that are this program's: by program_id(1)."""
    tiles = tl.cdiv(end - begin, BN)
    each = tl.cdiv(tiles, tl.num_programs(1))
    first = tl.program_id(1) * each
    return first, tl.minimum(first + each, tiles)


@triton.jit
def precedes(a, i, b, j):
    """Whether candidate (a, i) goes before (b, j): NaN, then larger values, then lower indices."""
    odd_a, odd_b = a != a, b != b
    return (odd_a & ~odd_b) | (a > b) | (((a == b) | (odd_a & odd_b)) & (i < j))


@triton.jit
def row_best(s, index):
    """The best of each row: (value, index), [BM] each. Candidates of index NONE are none."""
    odd = (s != s) & (index != NONE)
    s = tl.where((s != s) | (index == NONE), float("-inf"), s)
    top = tl.max(s, axis=1)
    some = tl.max(odd.to(tl.int32), axis=1) > 0
    hit = tl.where(some[:, None], odd, s == top[:, None])
    at = tl.min(tl.where(hit, index, NONE), axis=1)
    return tl.where(some, float("nan"), top), at


@triton.jit
def row_best_tame(s, column, BN: tl.constexpr):
    """The same where no value is NaN and those of no candidate are -inf: five operations a pair."""
    top = tl.max(s, axis=1)
    local = tl.arange(0, BN)[None, :]
    at = column + tl.min(tl.where(s == top[:, None], local, BN), axis=1)
    return top, tl.where(top == float("-inf"), NONE, at)
