"""What the kernels share: addresses of tiles, products, and the function of a logit.

Rows. The G query heads that read one key head are packed with the positions: row r of a key head is
position r // G of its query head r % G. So a tile of rows is dense whatever G is, gradients of keys
sum over the group in the order of the rows, and multi-query attention has a narrow window of few
positions in a tile of many rows.

Kinds of logit: "trilinear", sum_a q k1 k2, and "strassen", q.k1 + k1.k2 + k2.q. In both, one of
two tiles is folded with a row of k1 (times it, or plus it) in the accumulator's dtype, rounded
once, and multiplied by the other; strassen adds what the fold leaves out, one number a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Position of a key that is not there: after every row.
ABSENT = tl.constexpr(2**31 - 1)


@triton.jit
def wide(high, low, ACC: tl.constexpr):
    """A scalar that came as two fp32 numbers: Triton passes a Python float as fp32."""
    return tl.to_tensor(high).to(ACC) + tl.to_tensor(low).to(ACC)


@triton.jit
def load_vector(ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """SIZE elements of a row, zeros up to BLOCK: [BLOCK] in ACC."""
    at = tl.arange(0, BLOCK)
    return tl.load(ptr + at, mask=at < SIZE, other=0.0).to(ACC)


@triton.jit
def load_tile(ptr, offset, inside, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Rows that begin at ``offset`` [ROWS] int64, zeros where not ``inside``: [ROWS, BLOCK]."""
    at = tl.arange(0, BLOCK)
    mask = inside[:, None] & (at < SIZE)[None, :]
    return tl.load(ptr + offset[:, None] + at[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(ptr, offset, inside, x, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    mask = inside[:, None] & (at < SIZE)[None, :]
    tl.store(ptr + offset[:, None] + at[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """a b. Operands of 16 bits: tensor cores, exact products; wider: as PRECISION says."""
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def product_plus(a, b, total, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b."""
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def fold(x, row, KIND: tl.constexpr, ACC: tl.constexpr):
    """Tile x [ROWS, BLOCK] folded with a row of the other key set [BLOCK]: in ACC, not rounded."""
    return x.to(ACC) * row[None, :] if KIND == "trilinear" else x.to(ACC) + row[None, :]


@triton.jit
def rest(x, row, ACC: tl.constexpr):
    """What strassen's fold leaves out of the logit: x . row, [ROWS]."""
    return tl.sum(x.to(ACC) * row[None, :], axis=1)


@triton.jit
def polynomial(x, coefficients_ptr, at, inside, AXIS: tl.constexpr, DEGREE: tl.constexpr,
               ACC: tl.constexpr):  # fmt: skip
    """p(x) with the coefficients of each row, which begin at ``at``; rows along AXIS of x."""
    value = tl.zeros_like(x)
    for t in tl.static_range(DEGREE, -1, -1):
        c = tl.load(coefficients_ptr + at + t, mask=inside, other=0.0).to(ACC)
        value = value * x + tl.expand_dims(c, 1 - AXIS)
    return value


@triton.jit
def slope(x, coefficients_ptr, at, inside, AXIS: tl.constexpr, DEGREE: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """p'(x), as ``polynomial``."""
    value = tl.zeros_like(x)
    for t in tl.static_range(DEGREE, 0, -1):
        c = tl.load(coefficients_ptr + at + t, mask=inside, other=0.0).to(ACC) * t
        value = value * x + tl.expand_dims(c, 1 - AXIS)
    return value


@triton.jit
def load_columns(mask2_ptr, at, k, m2):
    """Whether key k [BN] of the second set exists and is not masked, and k, or ABSENT if not."""
    found = k < m2
    if mask2_ptr is not None:
        found = found & (tl.load(mask2_ptr + at + k, mask=found, other=0) != 0)
    return found, tl.where(found, k, ABSENT)


@triton.jit
def seen_rows(mask1_ptr, at, j, i, window1, LIMIT1: tl.constexpr):
    """Whether the positions i [BM] may read key j of the first set."""
    found = i == i
    if LIMIT1:
        found = (j <= i) & (j > i - window1)
    if mask1_ptr is not None:
        found = found & (tl.load(mask1_ptr + at + j) != 0)
    return found


@triton.jit
def both_allowed(seen, i, k, window2, LIMIT2: tl.constexpr):
    """[BM, BN]: which keys k of ``load_columns`` the positions i may read, none where not seen.

    seen, i: [BM, 1]. k: [1, BN]; or all of them turned, for the transpose. The comparisons depend
    on j, so that they are not kept in registers for a whole sweep.
    """
    found = k <= tl.where(seen, i if LIMIT2 else ABSENT - 1, -1)
    if LIMIT2:
        found = found & (k > i - window2)
    return found
