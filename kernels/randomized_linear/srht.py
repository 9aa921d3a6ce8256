"""Signs, block transform and choice of rows in one pass: x is read once, S^T x written once."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common import permutation, philox
from .hadamard import transform

#: Most rows that one block transforms; a shorter block is a longer one whose last rows are zero,
#: since the leading part of a Sylvester matrix is the smaller one.
ROWS = tl.constexpr(1024)


@triton.jit(do_not_specialize=["rows", "k", "blocks", "chunk", "size", "half", "tiles", "groups"])
def project_srht_kernel(
    x_ptr,  # (rows, columns), row_stride
    out_ptr,  # (k, columns), contiguous; rows below min(k, blocks * size) are written
    seed_ptr,  # () int64
    rows,
    columns,
    row_stride,
    k,
    blocks,
    chunk,  # rows of a block; the last may have fewer
    size,  # transformed rows of a block: the power of two from chunk on, at most ROWS
    half,  # permutation.half_bits(blocks * size)
    tiles,  # of columns, for one program: signs and choice are found once for all of them
    groups,  # programs to a block
    ACC: tl.constexpr,
    INDEX: tl.constexpr,  # of an element of a block of x, and of out: int32, or int64
    COLUMNS: tl.constexpr,
):
    BLOCK: tl.constexpr = ROWS * COLUMNS
    b = tl.program_id(0) // groups
    group = tl.program_id(0) - b * groups
    seed = tl.load(seed_ptr)
    first = b.to(tl.int64) * chunk
    left = tl.minimum(rows - first, chunk).to(tl.int32)  # rows of this block

    r = tl.arange(0, ROWS)
    sign = philox.signs(seed, first + r).to(ACC)
    # Transform row t = b * size + r goes to output j = PERM^-1(t), if there is one.
    t = b.to(tl.int64) * size + tl.minimum(r, size - 1)
    keys = permutation.keys(seed)
    j = permutation.permuted_back(t.to(tl.uint32), blocks.to(tl.int64) * size, half, keys)
    kept = (r < size) & (j.to(tl.int64) < k)
    whole = blocks.to(tl.float64) * size.to(tl.float64)
    scale = tl.sqrt(whole / tl.minimum(k.to(tl.float64), whole)) / tl.sqrt(size.to(tl.float64))

    c = tl.arange(0, COLUMNS)[None, :]
    x_at = r.to(INDEX)[:, None] * row_stride.to(INDEX) + c
    out_at = tl.where(kept, j, 0).to(INDEX)[:, None] * columns.to(INDEX) + c
    x_ptr += first * row_stride
    for tile in range(group * tiles, group * tiles + tiles):
        start = tl.cast(tile, tl.int64) * COLUMNS
        here = start + c < columns
        x = tl.load(x_ptr + start + x_at, mask=(r < left)[:, None] & here, other=0.0)
        y = (x.to(ACC) * sign[:, None]).reshape([BLOCK])
        y = transform(y, BLOCK, COLUMNS, ROWS).reshape([ROWS, COLUMNS]) * scale.to(ACC)
        tl.store(
            out_ptr + start + out_at, y.to(out_ptr.dtype.element_ty), mask=kept[:, None] & here
        )
