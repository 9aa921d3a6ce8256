"""Sketches that only move rows: a given index, random rows, and signed sums of buckets of rows."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common import permutation, philox


@triton.jit(do_not_specialize=["rows", "k", "members", "half"])
def select_kernel(
    x_ptr,  # (rows, columns), row_stride
    out_ptr,  # (k, columns), contiguous
    index_ptr,  # (k,) int32, or None unless KIND is "index"
    scale_ptr,  # (k,) fp32, fp64, or None
    seed_ptr,  # () int64, or None if KIND is "index"
    rows,
    columns,
    row_stride,
    k,
    members,  # most rows that meet in one output
    half,  # permutation.half_bits(rows)
    KIND: tl.constexpr,  # "index", "rows" or "countsketch"
    ACC: tl.constexpr,
    OUTPUTS: tl.constexpr,  # tile of out: OUTPUTS rows x COLUMNS
    COLUMNS: tl.constexpr,
):
    DT: tl.constexpr = x_ptr.dtype.element_ty
    across = tl.cdiv(columns, COLUMNS)
    group = tl.program_id(0) // across
    tile = tl.program_id(0) - group * across
    j = group.to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    c = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    here = c < columns
    target = out_ptr + j[:, None] * columns + c
    written = (j < k)[:, None] & here
    if KIND == "index":
        n = tl.load(index_ptr + j, mask=j < k, other=0).to(tl.int64)
        x = tl.load(x_ptr + n[:, None] * row_stride + c, mask=written, other=0.0)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + j, mask=j < k, other=0.0).to(ACC)
            x = (x.to(ACC) * scale[:, None]).to(DT)
        tl.store(target, x, mask=written)
    else:
        seed = tl.load(seed_ptr)
        keys = permutation.keys(seed)
        if KIND == "rows":
            inside = j < tl.minimum(k, rows)
            i = tl.where(inside, j, 0).to(tl.uint32)
            n = permutation.permuted(i, rows, half, keys).to(tl.int64)
            whole = rows.to(tl.float64)
            scale = tl.sqrt(whole / tl.minimum(k.to(tl.float64), whole)).to(ACC)
            read = inside[:, None] & here
            x = tl.load(x_ptr + n[:, None] * row_stride + c, mask=read, other=0.0)
            tl.store(target, (x.to(ACC) * scale).to(DT), mask=written)
        else:
            acc = tl.zeros([OUTPUTS, COLUMNS], ACC)
            for t in range(members):
                # Bucket j holds n with PERM(n) mod k = j.
                h = j + tl.cast(t, tl.int64) * k
                inside = (j < k) & (h < rows)
                i = tl.where(inside, h, 0).to(tl.uint32)
                n = permutation.permuted_back(i, rows, half, keys).to(tl.int64)
                read = inside[:, None] & here
                x = tl.load(x_ptr + n[:, None] * row_stride + c, mask=read, other=0.0)
                acc += x.to(ACC) * philox.signs(seed, n).to(ACC)[:, None]
            tl.store(target, acc.to(DT), mask=written)
