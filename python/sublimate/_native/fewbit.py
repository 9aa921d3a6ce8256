"""Wrappers of the few-bit kernels; their arguments are those of csrc/fewbit/kernels.h."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dtypes import accumulator
from . import DTYPES, NativeError, guard, library, same_layout


def words(n: int, bits: int) -> int:
    return (n + 31) // 32 * bits


def _table(
    op: str, device: str, acc: torch.dtype, borders: Tensor, codes: Tensor, bits: int
) -> tuple[int, int, int]:
    m = borders.numel()
    if m > 255 or not borders.is_contiguous() or not codes.is_contiguous():
        raise NativeError(f"{op}: expected at most 255 contiguous borders, got {m}")
    return (
        guard(op, "borders", borders, device, (acc,)),
        guard(op, "codes", codes, device, (torch.uint8,), m + 1),
        m,
    )


def fwd(
    backend: str,
    x: Tensor,
    y: Tensor | None,
    packed: Tensor | None,
    borders: Tensor,
    codes: Tensor,
    levels: Tensor,
    fn: int,
    a: float,
    b: float,
    bits: int,
    seed: Tensor | None,
) -> None:
    """y = f(x) and the packed codes; see csrc/fewbit/kernels.h ``Forward``."""
    lib, op, n = library(backend), "fewbit_fwd", x.numel()
    acc = accumulator(x.dtype)
    same_layout(op, x, ("y", y))
    px = guard(op, "x", x, lib.device, tuple(DTYPES))
    py = guard(op, "y", y, lib.device, (x.dtype,), n)
    pp = guard(op, "packed", packed, lib.device, (torch.int32,), words(n, bits))
    table = _table(op, lib.device, acc, borders, codes, bits)
    pl = guard(op, "levels", levels, lib.device, (acc,), 2**bits if bits else None)
    ps = guard(op, "seed", seed, lib.device, (torch.int64,), 1)
    if bits and packed is None:
        raise NativeError(f"{op}: bits={bits} but no packed tensor")
    lib.call(op, x, DTYPES[x.dtype], fn, a, b, px, py, pp if bits else 0, n, *table, pl, bits, ps)


def bwd(backend: str, grad: Tensor, packed: Tensor, levels: Tensor, dx: Tensor, bits: int) -> None:
    """dx = levels[code] * grad; see csrc/fewbit/kernels.h ``Backward``."""
    lib, op, n = library(backend), "fewbit_bwd", grad.numel()
    acc = accumulator(grad.dtype)
    same_layout(op, grad, ("dx", dx))
    pg = guard(op, "grad", grad, lib.device, tuple(DTYPES))
    pp = guard(op, "packed", packed, lib.device, (torch.int32,), words(n, bits))
    pl = guard(op, "levels", levels, lib.device, (acc,), 2**bits)
    pd = guard(op, "dx", dx, lib.device, (grad.dtype,), n)
    lib.call(op, grad, DTYPES[grad.dtype], pg, pp, pl, pd, n, bits)


def gated_fwd(
    backend: str,
    gate: Tensor,
    up: Tensor,
    y: Tensor,
    packed: Tensor | None,
    borders: Tensor,
    codes: Tensor,
    fn: int,
    bits: int,
    scale: Tensor | None,
    inner: int,
) -> None:
    """y = f(gate) * up and codes; see csrc/fewbit/kernels.h ``GatedForward``."""
    lib, op, n = library(backend), "fewbit_gated_fwd", gate.numel()
    acc = accumulator(gate.dtype)
    same_layout(op, gate, ("up", up), ("y", y))
    pg = guard(op, "gate", gate, lib.device, tuple(DTYPES))
    pu = guard(op, "up", up, lib.device, (gate.dtype,), n)
    py = guard(op, "y", y, lib.device, (gate.dtype,), n)
    pp = guard(op, "packed", packed, lib.device, (torch.int32,), words(n, bits))
    table = _table(op, lib.device, acc, borders, codes, bits)
    rows = n // inner if inner else None  # rows of no elements have a scale that nobody reads
    ps = guard(op, "scale", scale, lib.device, (torch.float32,), rows)
    lib.call(
        op, gate, DTYPES[gate.dtype], fn, pg, pu, py, pp if bits else 0, n, *table, bits, ps, inner
    )


def gated_bwd(
    backend: str,
    dy: Tensor,
    kept: Tensor,
    packed: Tensor,
    levels: Tensor,
    values: Tensor,
    scale: Tensor | None,
    inner: int,
    fn: int,
    dgate: Tensor | None,
    dup: Tensor | None,
    bits: int,
) -> None:
    """Gradients of gate and up; see csrc/fewbit/kernels.h ``GatedBackward``."""
    lib, op, n = library(backend), "fewbit_gated_bwd", dy.numel()
    acc = accumulator(dy.dtype)
    same_layout(op, dy, ("kept", kept), ("dgate", dgate), ("dup", dup))
    pg = guard(op, "dy", dy, lib.device, tuple(DTYPES))
    pk = guard(op, "kept", kept, lib.device, (dy.dtype,), n)
    pp = guard(op, "packed", packed, lib.device, (torch.int32,), words(n, bits))
    pl = guard(op, "levels", levels, lib.device, (acc,), 2**bits)
    pv = guard(op, "values", values, lib.device, (acc,), 2**bits)
    rows = n // inner if inner else None  # rows of no elements have a scale that nobody reads
    ps = guard(op, "scale", scale, lib.device, (torch.float32,), rows)
    p1 = guard(op, "dgate", dgate, lib.device, (dy.dtype,), n)
    p2 = guard(op, "dup", dup, lib.device, (dy.dtype,), n)
    lib.call(op, dy, DTYPES[dy.dtype], fn, pg, pk, pp, pl, pv, ps, inner, p1, p2, n, bits)
