"""The fast Walsh-Hadamard transform on a tile in registers, and along rows of any length."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _level(x, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """(u, v) -> (u + v, u - v) for all pairs STRIDE apart of a flat tile."""
    u, v = x.reshape([SIZE // (2 * STRIDE), 2, STRIDE]).permute(0, 2, 1).split()
    return tl.join(u + v, u - v).permute(0, 2, 1).reshape([SIZE])


@triton.jit
def transform(x, SIZE: tl.constexpr, STRIDE: tl.constexpr, POINTS: tl.constexpr):
    """H x, Sylvester order, of flat tile x along POINTS places that lie STRIDE apart.

    log2(POINTS) levels; where the bits of a level are not a thread's own, the compiler moves the
    tile through shared memory.
    """
    for level in tl.static_range(20):
        if (1 << level) < POINTS:
            x = _level(x, SIZE, STRIDE << level)
    return x


@triton.jit(do_not_specialize=["rows", "length", "log_tiles"])
def hadamard_kernel(
    x_ptr,  # (rows, length), row_stride
    out_ptr,  # (rows, POINTS << log_tiles); its own dtype
    rows,
    length,
    row_stride,
    log_tiles,  # of the tiles that make a padded row; 0 unless POINTS is BLOCK
    scale_high,  # scale = scale_high + scale_low: a Python float arrives as fp32
    scale_low,
    POINTS: tl.constexpr,  # what one tile transforms of a row
    ACC: tl.constexpr,
    INDEX: tl.constexpr,  # of an element within a tile: int32, or int64 if its rows pass 2**31
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = (pid >> log_tiles).to(tl.int64) * (BLOCK // POINTS)  # first of the tile
    start = (pid & ((1 << log_tiles) - 1)) * BLOCK  # within the row
    i = tl.arange(0, BLOCK)
    inside = i // POINTS < tl.minimum(rows - row, BLOCK).to(tl.int32)
    read = inside & (i % POINTS < length - start)
    at = (i // POINTS).to(INDEX) * row_stride.to(INDEX) + i % POINTS
    x = tl.load(x_ptr + row * row_stride + start + at, mask=read, other=0.0)
    y = transform(x.to(ACC), BLOCK, 1, POINTS)
    y *= tl.cast(scale_high, ACC) + tl.cast(scale_low, ACC)
    out = out_ptr + pid.to(tl.int64) * BLOCK + i
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def hadamard_columns_kernel(
    x_ptr,  # (tiles, POINTS, stride), contiguous
    out_ptr,  # the same shape
    stride,  # a multiple of BLOCK / POINTS
    scale_high,
    scale_low,
    POINTS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The transform along the middle axis: the upper bits of rows longer than a tile."""
    COLUMNS: tl.constexpr = BLOCK // POINTS
    per_row = stride // COLUMNS
    row = tl.program_id(0) // per_row
    first = (tl.program_id(0) - row * per_row) * COLUMNS
    i = tl.arange(0, BLOCK)
    at = row.to(tl.int64) * POINTS * stride + first + (i // COLUMNS) * stride + i % COLUMNS
    y = transform(tl.load(x_ptr + at).to(ACC), BLOCK, COLUMNS, POINTS)
    y *= tl.cast(scale_high, ACC) + tl.cast(scale_low, ACC)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty))
