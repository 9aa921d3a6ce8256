"""Wrappers of the path-integral kernels, by csrc/path_integral/kernels.h."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dtypes import accumulator
from . import DTYPES, NativeError, guard, library

_INT = (torch.int64,)


def _dense(
    op: str,
    argument: str,
    t: Tensor | None,
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> int:
    """Address of a contiguous tensor of that dtype and shape; 0 for None."""
    address = guard(op, argument, t, device, (dtype,))
    if t is not None and (tuple(t.shape) != shape or not t.is_contiguous()):
        raise NativeError(
            f"{op}: {argument} has shape {tuple(t.shape)} and strides {t.stride()}, "
            f"the kernel needs a contiguous {shape}"
        )
    return address


def _weight(
    op: str, t: Tensor, device: str, acc: torch.dtype, points: int, samples: int
) -> tuple[int, bool]:
    each = t.dim() == 2
    return _dense(op, "weight", t, device, acc, (points, samples) if each else (points,)), each


def _starts(
    op: str, base: Tensor, index: Tensor | None, device: str, acc: torch.dtype, points: int,
    samples: int, size: int,
) -> tuple[int, int, int]:  # fmt: skip
    rows = base.shape[0]
    if index is None and rows not in (1, samples):
        raise NativeError(f"{op}: base has {rows} rows, the kernel needs 1 or {samples}")
    return (
        _dense(op, "base", base, device, acc, (rows, size)),
        rows,
        _dense(op, "index", index, device, torch.int64, (points, samples)),
    )


def _noise(
    op: str, device: str, acc: torch.dtype, samples: int, stdev: Tensor | None,
    seed: Tensor | None, row: Tensor | None, step: int, table: Tensor | None,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    if stdev is None:
        return 0, 0, 0, 0, 0
    if seed is None or row is None or table is None:
        raise NativeError(f"{op}: noise needs seed, row and normal_table")
    return (
        _dense(op, "stdev", stdev, device, acc, (samples,)),
        guard(op, "seed", seed, device, _INT, 1),
        _dense(op, "row", row, device, torch.int64, (samples,)),
        step,
        guard(op, "normal_table", table, device, (torch.float32,), 2 * 768),
    )


def points(
    backend: str, x: Tensor, base: Tensor, index: Tensor | None, alpha: Tensor,
    stdev: Tensor | None, seed: Tensor | None, row: Tensor | None, step: int,
    table: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    """out = start + alpha (x - start) + stdev normal; see ``Points``."""
    lib, op, acc = library(backend), "path_points", accumulator(out.dtype)
    k, samples, size = out.shape
    px = _dense(op, "x", x, lib.device, acc, (samples, size))
    starts = _starts(op, base, index, lib.device, acc, k, samples, size)
    weight = _weight(op, alpha, lib.device, acc, k, samples)
    noise = _noise(op, lib.device, acc, samples, stdev, seed, row, step, table)
    po = _dense(op, "out", out, lib.device, out.dtype, (k, samples, size))
    lib.call(op, out, DTYPES[out.dtype], px, *starts, *weight, *noise, po, k, samples, size)


def accumulate(
    backend: str, grads: Tensor, weight: Tensor, x: Tensor | None, base: Tensor | None,
    index: Tensor | None, acc: Tensor | None, square: Tensor | None, first: Tensor,
    second: Tensor | None,
) -> None:  # fmt: skip
    """Weighted sums over points, of grads or of grads (x - start); see ``Accumulate``."""
    lib, op, wide = library(backend), "path_accumulate", accumulator(grads.dtype)
    k, samples, size = grads.shape
    pg = _dense(op, "grads", grads, lib.device, grads.dtype, (k, samples, size))
    w = _weight(op, weight, lib.device, wide, k, samples)
    px = _dense(op, "x", x, lib.device, wide, (samples, size))
    starts = (0, 1, 0)
    if x is not None:
        if base is None:
            raise NativeError(f"{op}: x without base")
        starts = _starts(op, base, index, lib.device, wide, k, samples, size)
    sums = [
        _dense(op, name, t, lib.device, wide, (samples, size))
        for name, t in (("acc", acc), ("square", square), ("first", first), ("second", second))
    ]
    lib.call(op, grads, DTYPES[grads.dtype], pg, *w, px, *starts, *sums, k, samples, size)


def difference(
    backend: str, up: Tensor, weight: Tensor, x: Tensor, base: Tensor, index: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    """out = weight (up (x - start)); see ``Difference``."""
    lib, op, acc = library(backend), "path_difference", accumulator(out.dtype)
    k, samples, size = out.shape
    pu = _dense(op, "up", up, lib.device, acc, (samples, size))
    w = _weight(op, weight, lib.device, acc, k, samples)
    px = _dense(op, "x", x, lib.device, acc, (samples, size))
    starts = _starts(op, base, index, lib.device, acc, k, samples, size)
    po = _dense(op, "out", out, lib.device, out.dtype, (k, samples, size))
    lib.call(op, out, DTYPES[out.dtype], pu, *w, px, *starts, po, k, samples, size)


def scale(backend: str, acc: Tensor, x: Tensor, base: Tensor, out: Tensor, sums: Tensor) -> None:
    """out = (x - base) acc and its row sums; see ``Scale``."""
    lib, op, dtype = library(backend), "path_scale", x.dtype
    samples, size = x.shape
    rows = base.shape[0]
    if rows not in (1, samples):
        raise NativeError(f"{op}: base has {rows} rows, the kernel needs 1 or {samples}")
    addresses = [
        _dense(op, name, t, lib.device, dtype, shape)
        for name, t, shape in (
            ("acc", acc, (samples, size)),
            ("x", x, (samples, size)),
            ("base", base, (rows, size)),
            ("out", out, (samples, size)),
            ("sums", sums, (samples,)),
        )
    ]
    lib.call(op, x, DTYPES[dtype], *addresses[:3], rows, *addresses[3:], samples, size)


def mask_points(
    backend: str, image: Tensor, base: Tensor, mask: Tensor, alpha: Tensor,
    stdev: Tensor | None, seed: Tensor | None, row: Tensor | None, step: int,
    table: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    """out = base + alpha U (image - base) + stdev normal; see ``MaskPoints``."""
    lib, op, acc = library(backend), "path_mask_points", accumulator(out.dtype)
    k, n, c, h, w = out.shape
    addresses = (
        _dense(op, "image", image, lib.device, acc, (n, c, h, w)),
        _base_images(op, base, lib.device, acc, (n, c, h, w)),
        _dense(op, "mask", mask, lib.device, acc, (n, 1, *mask.shape[2:])),
        _dense(op, "alpha", alpha, lib.device, acc, (k,)),
    )
    noise = _noise(op, lib.device, acc, n, stdev, seed, row, step, table)
    po = _dense(op, "out", out, lib.device, out.dtype, (k, n, c, h, w))
    sizes = (k, n, c, h, w, *mask.shape[2:])
    lib.call(op, out, DTYPES[out.dtype], *addresses, base.shape[0], *noise, po, *sizes)


def _base_images(
    op: str, base: Tensor, device: str, acc: torch.dtype, shape: tuple[int, ...]
) -> int:
    if base.shape[0] not in (1, shape[0]):
        raise NativeError(
            f"{op}: base has {base.shape[0]} images, the kernel needs 1 or {shape[0]}"
        )
    return _dense(op, "base", base, device, acc, (base.shape[0], *shape[1:]))


def mask_grad(
    backend: str, grads: Tensor, image: Tensor, base: Tensor, alpha: Tensor, pixels: Tensor,
    out: Tensor,
) -> None:  # fmt: skip
    """Gradient of the mask; pixels is scratch. See ``MaskGrad``."""
    lib, op, acc = library(backend), "path_mask_grad", accumulator(grads.dtype)
    k, n, c, h, w = grads.shape
    addresses = (
        _dense(op, "grads", grads, lib.device, grads.dtype, (k, n, c, h, w)),
        _dense(op, "image", image, lib.device, acc, (n, c, h, w)),
        _base_images(op, base, lib.device, acc, (n, c, h, w)),
        _dense(op, "alpha", alpha, lib.device, acc, (k,)),
    )
    pp = _dense(op, "pixels", pixels, lib.device, acc, (n, h, w))
    po = _dense(op, "out", out, lib.device, acc, (n, 1, *out.shape[2:]))
    sizes = (k, n, c, h, w, *out.shape[2:])
    lib.call(op, grads, DTYPES[grads.dtype], *addresses, base.shape[0], pp, po, *sizes)


def mask_penalty(
    backend: str, mask: Tensor, variation: Tensor, area: Tensor, grad: Tensor | None
) -> None:
    """Total variation and area of each mask, or their gradient into ``grad``; ``MaskPenalty``."""
    lib, op = library(backend), "path_mask_penalty"
    n, _, h, w = mask.shape
    addresses = [
        _dense(op, name, t, lib.device, mask.dtype, shape)
        for name, t, shape in (
            ("mask", mask, (n, 1, h, w)),
            ("variation", variation, (n,)),
            ("area", area, (n,)),
            ("grad", grad, (n, 1, h, w)),
        )
    ]
    lib.call(op, mask, DTYPES[mask.dtype], *addresses, n, h, w)
