"""Launchers: S^T x, a gather of scaled rows, and the Walsh-Hadamard transform."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import triton

from ..common import permutation
from ..common.launch import accumulator, device_of
from . import configs
from .dense import project_dense_kernel
from .hadamard import hadamard_columns_kernel, hadamard_kernel
from .select import select_kernel
from .srht import ROWS, project_srht_kernel

if TYPE_CHECKING:
    from torch import Tensor

#: Sketches that ``project`` computes.
PROJECTIONS = ("gaussian", "rademacher", "srht", "countsketch", "rows")


def project(x: Tensor, out: Tensor, seed: Tensor, sketch: str, table: Tensor | None) -> None:
    """Writes ``out = S^T x``, S a function of (seed, rows, k, sketch) that is never stored.

    Args:
        x: (rows, columns), rows <= 2**31, columns consecutive; fp32, fp16, bf16 or fp64.
        out: (k, columns), contiguous, x's dtype.
        seed: () or (1,) int64 on x's device.
        sketch: one of ``PROJECTIONS``.
        table: (2, 768) fp32 on x's device (``sublimate._normal.table``); read by "gaussian".

    O(rows k columns) for the dense sketches, O(rows columns) reads of x for "srht" (10 additions
    each) and "countsketch", O(k columns) for "rows".
    """
    if sketch not in PROJECTIONS:
        raise ValueError(f"sketch: expected one of {PROJECTIONS}, got {sketch!r}")
    if sketch == "gaussian" and table is None:
        raise ValueError("table: expected the table of normal numbers for 'gaussian', got None")
    rows, k = x.shape[0], out.shape[0]
    if out.numel() == 0:
        return
    if rows == 0:
        out.zero_()
    elif sketch in ("gaussian", "rademacher"):
        _dense(x, out, seed, sketch, table if sketch == "gaussian" else None)
    elif sketch == "srht":
        _srht(x, out, seed)
    else:
        members = triton.cdiv(rows, k) if sketch == "countsketch" else 1
        _select(x, out, None, None, seed, sketch, members)


def gather(x: Tensor, index: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """Writes ``out[j] = scale[j] * x[index[j]]``.

    Args:
        x: (rows, columns), columns consecutive; fp32, fp16, bf16 or fp64.
        index: (k,) int32, each in [0, rows): not checked.
        scale: (k,) fp32 (fp64 for fp64), or None for 1.
        out: (k, columns), contiguous, x's dtype.

    O(k columns).
    """
    if out.numel():
        _select(x, out, index, scale, None, "index", 1)


def hadamard(x: Tensor, out: Tensor, scale: float) -> None:
    """Writes ``out = scale * H x`` along rows, Sylvester order, rows padded with zeros.

    Args:
        x: (rows, length), consecutive within a row; fp32, fp16, bf16 or fp64.
        out: (rows, padded), contiguous, x's dtype; padded >= length is a power of two.

    O(rows padded log padded). One pass over memory up to ``configs.hadamard`` elements to a row,
    two beyond, 16-bit elements then through an fp32 copy, so that they too are rounded once.
    """
    rows, length = x.shape
    padded = out.shape[1]
    if padded < length or padded & (padded - 1) or padded == 0:
        raise ValueError(f"out: expected a power of two >= {length} to a row, got {padded}")
    if out.numel() == 0:
        return
    config = configs.hadamard(x.element_size())
    points = min(padded, config.block)
    middle = out
    if padded > points and x.element_size() == 2:
        middle = out.new_empty(out.shape, dtype=_float32())
    last = _halves(scale)
    with device_of(x):
        hadamard_kernel[(triton.cdiv(out.numel(), config.block),)](
            x,
            middle,
            rows,
            length,
            x.stride(0),
            (padded // points).bit_length() - 1,
            *(last if padded == points else (1.0, 0.0)),
            POINTS=points,
            ACC=accumulator(x),
            INDEX=configs.index(x.stride(0) * (config.block // points)),
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )
        if padded > points:
            hadamard_columns_kernel[(out.numel() // config.block,)](
                middle,
                out,
                points,
                *last,
                POINTS=padded // points,
                ACC=accumulator(x),
                BLOCK=config.block,
                num_warps=config.warps,
                enable_fp_fusion=configs.FP_FUSION,
            )


def _float32():  # type: ignore[no-untyped-def]
    import torch

    return torch.float32


def _halves(value: float) -> tuple[float, float]:
    """value as the sum of two fp32 numbers, exact to 2**-48."""
    high = ctypes.c_float(value).value
    return high, value - high


def _dense(x: Tensor, out: Tensor, seed: Tensor, sketch: str, table: Tensor | None) -> None:
    rows, columns = x.shape
    k = out.shape[0]
    config = configs.dense(columns, k, x.element_size())
    grid = triton.cdiv(k, config.sketch) * triton.cdiv(columns, config.columns)
    with device_of(x):
        project_dense_kernel[(grid,)](
            x,
            out,
            seed,
            table,
            rows,
            columns,
            x.stride(0),
            k,
            KIND=sketch,
            PRECISION=configs.precision(x.element_size()),
            ACC=accumulator(x),
            SKETCH=config.sketch,
            COLUMNS=config.columns,
            ROWS=config.rows,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )


def _srht(x: Tensor, out: Tensor, seed: Tensor) -> None:
    rows, columns = x.shape
    k = out.shape[0]
    blocks = triton.cdiv(rows, ROWS.value)
    chunk = triton.cdiv(rows, blocks)
    size = triton.next_power_of_2(chunk)
    if k > blocks * size:
        out[blocks * size :].zero_()
    config = configs.srht(x.element_size())
    across = triton.cdiv(columns, config.columns)
    tiles = configs.srht_tiles(blocks, across)
    groups = triton.cdiv(across, tiles)
    with device_of(x):
        project_srht_kernel[(blocks * groups,)](
            x,
            out,
            seed,
            rows,
            columns,
            x.stride(0),
            k,
            blocks,
            chunk,
            size,
            permutation.half_bits(blocks * size),
            tiles,
            groups,
            ACC=accumulator(x),
            INDEX=configs.index(max(x.stride(0) * ROWS.value, out.numel())),
            COLUMNS=config.columns,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )


def _select(
    x: Tensor,
    out: Tensor,
    index: Tensor | None,
    scale: Tensor | None,
    seed: Tensor | None,
    kind: str,
    members: int,
) -> None:
    rows, columns = x.shape
    k = out.shape[0]
    config = configs.select(x.element_size())
    grid = triton.cdiv(k, config.outputs) * triton.cdiv(columns, config.columns)
    with device_of(x):
        select_kernel[(grid,)](
            x,
            out,
            index,
            scale,
            seed,
            rows,
            columns,
            x.stride(0),
            k,
            members,
            permutation.half_bits(rows),
            KIND=kind,
            ACC=accumulator(x),
            OUTPUTS=config.outputs,
            COLUMNS=config.columns,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )
