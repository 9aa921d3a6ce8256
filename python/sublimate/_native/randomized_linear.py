"""Wrappers of the randomized linear kernels; their arguments are those of
csrc/randomized_linear/kernels.h."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dtypes import accumulator
from . import DTYPES, NativeError, guard, library

#: Sketches as csrc/randomized_linear/randomized_linear_math.h numbers them.
SKETCHES = {
    name: number
    for number, name in enumerate(
        ("gaussian", "rademacher", "srht", "dct", "countsketch", "rows", "crs", "wta")
    )
}
#: Those that ``project`` computes; the others are made of ``gather``.
PROJECTIONS = ("gaussian", "rademacher", "srht", "countsketch", "rows")


def _matrix(op: str, argument: str, t: Tensor, device: str) -> tuple[int, int, int, int]:
    """Address, rows, columns and row stride of a matrix whose rows are consecutive."""
    if t.dim() != 2:
        raise NativeError(f"{op}: {argument} has {t.dim()} dimensions, the kernel needs 2")
    address = guard(op, argument, t, device, tuple(DTYPES))
    rows, columns = t.shape
    if columns > 1 and t.stride(1) != 1:
        raise NativeError(
            f"{op}: {argument} has strides {t.stride()}, the kernel needs consecutive columns"
        )
    return address, rows, columns, t.stride(0)


def _result(op: str, out: Tensor, like: Tensor, rows: int, columns: int) -> int:
    address = guard(op, "out", out, like.device.type, (like.dtype,))
    if out.shape != (rows, columns) or not out.is_contiguous():
        raise NativeError(
            f"{op}: out has shape {tuple(out.shape)} and strides {out.stride()}, "
            f"the kernel needs a contiguous ({rows}, {columns})"
        )
    return address


def project(
    backend: str, x: Tensor, out: Tensor, seed: Tensor, sketch: str, normal_table: Tensor | None
) -> None:
    """out = S^T x; see csrc/randomized_linear/kernels.h ``Project``.

    normal_table is what ``_normal.table`` gives for the device; only "gaussian" reads it.
    """
    lib, op = library(backend), "randomized_linear_project"
    if sketch not in PROJECTIONS:
        raise NativeError(f"{op}: no kernel of sketch {sketch!r}, there are {PROJECTIONS}")
    px, rows, columns, stride = _matrix(op, "x", x, lib.device)
    k = out.shape[0]
    po = _result(op, out, x, k, columns)
    ps = guard(op, "seed", seed, lib.device, (torch.int64,), 1)
    pt = guard(op, "normal_table", normal_table, lib.device, (torch.float32,), 2 * 768)
    if normal_table is not None and not normal_table.is_contiguous():
        raise NativeError(f"{op}: normal_table is not contiguous")
    if sketch == "gaussian" and normal_table is None:
        raise NativeError(f"{op}: sketch 'gaussian' needs normal_table")
    kind = SKETCHES[sketch]
    lib.call(op, x, DTYPES[x.dtype], kind, px, rows, columns, stride, po, k, ps, pt)


def gather(backend: str, x: Tensor, index: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """out[j] = scale[j] * x[index[j]]; see csrc/randomized_linear/kernels.h ``Gather``.

    The values of index must lie in [0, len(x)): they are not read on the host.
    """
    lib, op = library(backend), "randomized_linear_gather"
    px, rows, columns, stride = _matrix(op, "x", x, lib.device)
    k = index.numel()
    po = _result(op, out, x, k, columns)
    pi = guard(op, "index", index, lib.device, (torch.int32,))
    ps = guard(op, "scale", scale, lib.device, (accumulator(x.dtype),), k)
    for argument, t in (("index", index), ("scale", scale)):
        if t is not None and (t.dim() != 1 or not t.is_contiguous()):
            raise NativeError(f"{op}: {argument} is not a contiguous vector")
    lib.call(op, x, DTYPES[x.dtype], px, rows, columns, stride, pi, ps, po, k)


def hadamard(backend: str, x: Tensor, out: Tensor, scale: float) -> None:
    """out = scale * H x along rows; see csrc/randomized_linear/kernels.h ``Hadamard``.

    Rows of x are padded with zeros to those of out, whose length is a power of two.
    """
    lib, op = library(backend), "randomized_linear_hadamard"
    px, rows, length, stride = _matrix(op, "x", x, lib.device)
    padded = out.shape[-1]
    po = _result(op, out, x, rows, padded)
    if padded < length or padded & (padded - 1) or padded == 0:
        raise NativeError(f"{op}: rows of {length} do not fit out's {padded}, a power of two")
    lib.call(op, x, DTYPES[x.dtype], px, rows, length, stride, po, padded, scale)
