"""Gaussian and Rademacher sketches: tiles of S are drawn in registers and multiplied by tl.dot."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common import philox
from ..common.normal import normal


@triton.jit
def _gaussian(seed, table, n, first, per_row, ROWS: tl.constexpr, SKETCH: tl.constexpr):
    """[ROWS, SKETCH]: rows n (int64) of S from column ``first`` on (a multiple of 4), unscaled."""
    quad = first // 4 + tl.arange(0, SKETCH // 4)[None, :]
    w0, w1, w2, w3 = philox.words(seed, n[:, None] * per_row + quad, philox.GAUSSIAN)
    return normal(philox.interleave(w0, w1, w2, w3, ROWS, SKETCH), table)


@triton.jit
def _rademacher(seed, n, first, per_row, SKETCH: tl.constexpr):
    """[ROWS, SKETCH], first a multiple of SKETCH, which divides 128: one counter for a row."""
    w0, w1, w2, w3 = philox.words(seed, n * per_row + first // 128, philox.RADEMACHER)
    j = first + tl.arange(0, SKETCH)[None, :]
    lane = ((j >> 5) & 3).to(tl.int32)
    word = philox.choose(w0[:, None], w1[:, None], w2[:, None], w3[:, None], lane)
    return 1.0 - 2.0 * ((word >> (j & 31).to(tl.uint32)) & 1).to(tl.int32).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "k"])
def project_dense_kernel(
    x_ptr,  # (rows, columns), row_stride
    out_ptr,  # (k, columns), contiguous
    seed_ptr,  # () int64
    table_ptr,  # (2, 768) fp32, or None for rademacher
    rows,
    columns,
    row_stride,
    k,
    KIND: tl.constexpr,  # "gaussian" or "rademacher"
    PRECISION: tl.constexpr,  # of the products: see configs.precision
    ACC: tl.constexpr,
    SKETCH: tl.constexpr,  # tile of out: SKETCH rows x COLUMNS
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,  # rows of x at a time
):
    # Programs beside one another read the same columns: x is the larger operand.
    up = tl.cdiv(k, SKETCH)
    tile = tl.program_id(0) // up
    first = (tl.program_id(0) - tile * up).to(tl.int64) * SKETCH
    c = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    seed = tl.load(seed_ptr)
    acc = tl.zeros([SKETCH, COLUMNS], ACC)
    for start in range(0, rows, ROWS):
        n = tl.cast(start, tl.int64) + tl.arange(0, ROWS)
        if KIND == "gaussian":
            s = _gaussian(seed, table_ptr, n, first, (k.to(tl.int64) + 3) // 4, ROWS, SKETCH)
        else:
            s = _rademacher(seed, n, first, (k.to(tl.int64) + 127) // 128, SKETCH)
        inside = (n < rows)[:, None] & (c < columns)
        x = tl.load(x_ptr + n[:, None] * row_stride + c, mask=inside, other=0.0)
        if ACC == tl.float64:
            # Not tl.dot: its fp64 form does not compile for every target.
            acc += tl.sum(s.to(ACC)[:, :, None] * x[:, None, :], axis=0)
        else:
            acc = tl.dot(tl.trans(s), x.to(ACC), acc, input_precision=PRECISION)
    acc *= (1.0 / tl.sqrt(k.to(tl.float64))).to(ACC)
    j = first + tl.arange(0, SKETCH)[:, None]
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + j * columns + c, out, mask=(j < k) & (c < columns))
