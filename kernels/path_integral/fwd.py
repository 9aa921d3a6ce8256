"""Points on paths, weighted sums along them, and the completeness epilogue, in Triton.

A program owns BLOCK numbers of one sample and goes through the points, so that x, the start and the
sums stay in registers and memory sees each point once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..common.launch import accumulator, device_of
from ..common.normal import normal
from ..common.philox import GAUSSIAN, word
from . import configs

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def normals(seed, index, table):
    """float32 normal of each word of the stream: int64 ``index`` >= 0."""
    return normal(word(seed, index, GAUSSIAN), table)


@triton.jit
def piece(size, BLOCK: tl.constexpr):
    """Sample and numbers of this program. All lie along one axis of the grid: the others of CUDA
    end at 65535, which a table has more rows than."""
    across = tl.cdiv(size, BLOCK)
    program = tl.program_id(0)
    return program // across, (program % across).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def start_row(index_ptr, k, b, samples, GATHER: tl.constexpr, SHARED: tl.constexpr):
    """Row of base at which point k of sample b starts, int64."""
    row = b.to(tl.int64)
    if SHARED:
        row = row * 0
    if GATHER:
        row = tl.load(index_ptr + k.to(tl.int64) * samples + b)
    return row


@triton.jit
def points_kernel(
    x_ptr, base_ptr, index_ptr, alpha_ptr, stdev_ptr, seed_ptr, row_ptr, table_ptr, out_ptr,
    step, points, samples, size,
    EACH: tl.constexpr, GATHER: tl.constexpr, NOISY: tl.constexpr, SHARED: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, e = piece(size, BLOCK)
    inside = e < size
    at = b.to(tl.int64) * size + e
    x = tl.load(x_ptr + at, inside, other=0.0).to(ACC)
    if NOISY:
        stdev = tl.load(stdev_ptr + b).to(ACC)
        seed = tl.load(seed_ptr)
        first = tl.load(row_ptr + b)
    for k in range(points):
        row = start_row(index_ptr, tl.to_tensor(k), b, samples, GATHER, SHARED)
        start = tl.load(base_ptr + row * size + e, inside, other=0.0).to(ACC)
        alpha = tl.load(alpha_ptr + (k * samples + b if EACH else k)).to(ACC)
        z = start + alpha * (x - start)
        if NOISY:
            index = first + tl.to_tensor(k).to(tl.int64) * step + e
            z += stdev * normals(seed, index, table_ptr).to(ACC)
        place = (tl.to_tensor(k).to(tl.int64) * samples + b) * size + e
        tl.store(out_ptr + place, z.to(out_ptr.dtype.element_ty), inside)


def points(x: Tensor, base: Tensor, index: Tensor | None, alpha: Tensor, stdev: Tensor | None,
           seed: Tensor | None, row: Tensor | None, step: int, table: Tensor | None,
           out: Tensor) -> None:  # fmt: skip
    """out = start + alpha (x - start) + stdev normal; ``reference.points`` on dense tensors."""
    k, samples, size = out.shape
    if out.numel() == 0:
        return
    with device_of(out):
        points_kernel[(triton.cdiv(size, configs.BLOCK) * samples,)](
            x, base, index, alpha, stdev, seed, row, table, out, step, k, samples, size,
            EACH=alpha.dim() == 2, GATHER=index is not None, NOISY=stdev is not None,
            SHARED=base.shape[0] == 1, ACC=accumulator(out), BLOCK=configs.BLOCK,
            **configs.options(),
        )  # fmt: skip


@triton.jit
def accumulate_kernel(
    grads_ptr, weight_ptr, x_ptr, base_ptr, index_ptr, acc_ptr, square_ptr, first_ptr, second_ptr,
    points, samples, size,
    EACH: tl.constexpr, GATHER: tl.constexpr, DIFFERS: tl.constexpr, SECOND: tl.constexpr,
    SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, e = piece(size, BLOCK)
    inside = e < size
    at = b.to(tl.int64) * size + e
    total = tl.zeros([BLOCK], ACC)
    squares = tl.zeros([BLOCK], ACC)
    if DIFFERS:
        x = tl.load(x_ptr + at, inside, other=0.0).to(ACC)
    for k in range(points):
        place = (tl.to_tensor(k).to(tl.int64) * samples + b) * size + e
        t = tl.load(grads_ptr + place, inside, other=0.0).to(ACC)
        if DIFFERS:
            row = start_row(index_ptr, tl.to_tensor(k), b, samples, GATHER, SHARED)
            t = t * (x - tl.load(base_ptr + row * size + e, inside, other=0.0).to(ACC))
        w = tl.load(weight_ptr + (k * samples + b if EACH else k)).to(ACC)
        total += w * t
        if SECOND:
            squares += w * (t * t)
    if acc_ptr is not None:
        total = tl.load(acc_ptr + at, inside, other=0.0).to(ACC) + total
    tl.store(first_ptr + at, total, inside)
    if SECOND:
        if square_ptr is not None:
            squares = tl.load(square_ptr + at, inside, other=0.0).to(ACC) + squares
        tl.store(second_ptr + at, squares, inside)


def accumulate(grads: Tensor, weight: Tensor, x: Tensor | None, base: Tensor | None,
               index: Tensor | None, acc: Tensor | None, square: Tensor | None, first: Tensor,
               second: Tensor | None) -> None:  # fmt: skip
    """Weighted sums over points; ``reference.accumulate`` and, with x, ``..._difference``."""
    k, samples, size = grads.shape
    if first.numel() == 0:
        return
    with device_of(grads):
        accumulate_kernel[(triton.cdiv(size, configs.BLOCK) * samples,)](
            grads, weight, x, base, index, acc, square if second is not None else None, first,
            second, k, samples, size,
            EACH=weight.dim() == 2, GATHER=index is not None, DIFFERS=x is not None,
            SECOND=second is not None, SHARED=base is not None and base.shape[0] == 1,
            ACC=accumulator(grads), BLOCK=configs.BLOCK, **configs.options(),
        )  # fmt: skip


@triton.jit
def scale_kernel(
    acc_ptr, x_ptr, base_ptr, out_ptr, sums_ptr, size,
    SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    start = 0 if SHARED else b * size
    total = tl.zeros([BLOCK], tl.float64)
    for e0 in range(0, size, BLOCK):
        e = tl.to_tensor(e0).to(tl.int64) + tl.arange(0, BLOCK)
        inside = e < size
        x = tl.load(x_ptr + b * size + e, inside, other=0.0).to(ACC)
        base = tl.load(base_ptr + start + e, inside, other=0.0).to(ACC)
        y = (x - base) * tl.load(acc_ptr + b * size + e, inside, other=0.0).to(ACC)
        tl.store(out_ptr + b * size + e, y, inside)
        total += y.to(tl.float64)
    tl.store(sums_ptr + b, tl.sum(total, 0).to(ACC))


def scale(acc: Tensor, x: Tensor, base: Tensor, out: Tensor, sums: Tensor) -> None:
    """out = (x - base) acc and its row sums, in double; ``reference.scale``."""
    samples, size = x.shape
    if samples == 0:
        return
    with device_of(x):
        scale_kernel[(samples,)](
            acc, x, base, out, sums, size, SHARED=base.shape[0] == 1, ACC=accumulator(x),
            BLOCK=configs.BLOCK, **configs.options(),
        )  # fmt: skip


# ------------------------------------------------------------------------------------ mask paths


@triton.jit
def between(i, large, small, ACC: tl.constexpr):
    """Corners on corners: positions below and above large position i, and how far between."""
    # In 64 bits; with one position on either side everything reads position 0.
    n = tl.maximum(large - 1, 1).to(tl.int64)
    whole = i.to(tl.int64) * tl.where(large > 1, small - 1, 0).to(tl.int64)
    low = whole // n
    part = (whole - low * n).to(ACC) / n.to(ACC)
    return low, tl.minimum(low + 1, small.to(tl.int64) - 1), part


@triton.jit
def pixels_of(area, BLOCK: tl.constexpr):
    """Image and pixels of this program; one axis of the grid, as in ``piece``."""
    across = tl.cdiv(area, BLOCK)
    program = tl.program_id(0)
    return (program // across).to(tl.int64), program % across * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def mask_points_kernel(
    image_ptr, base_ptr, mask_ptr, alpha_ptr, stdev_ptr, seed_ptr, row_ptr, table_ptr, out_ptr,
    step, points, images, channels, height, width, mask_height, mask_width,
    NOISY: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    area = height * width
    n, pixel = pixels_of(area, BLOCK)
    inside = pixel < area
    y, x = pixel // width, pixel % width
    mask_height, mask_width = tl.to_tensor(mask_height), tl.to_tensor(mask_width)
    top, bottom, down = between(y, tl.to_tensor(height), mask_height, ACC)
    left, right, across = between(x, tl.to_tensor(width), mask_width, ACC)
    cells = mask_ptr + n * mask_height * mask_width
    top_left = tl.load(cells + top * mask_width + left, inside, other=0.0).to(ACC)
    top_right = tl.load(cells + top * mask_width + right, inside, other=0.0).to(ACC)
    bottom_left = tl.load(cells + bottom * mask_width + left, inside, other=0.0).to(ACC)
    bottom_right = tl.load(cells + bottom * mask_width + right, inside, other=0.0).to(ACC)
    above = top_left + across * (top_right - top_left)
    below = bottom_left + across * (bottom_right - bottom_left)
    up = above + down * (below - above)
    if NOISY:
        stdev = tl.load(stdev_ptr + n).to(ACC)
        seed = tl.load(seed_ptr)
        first = tl.load(row_ptr + n)
    for c in range(channels):
        at = tl.to_tensor(c).to(tl.int64) * area + pixel
        size = tl.to_tensor(channels).to(tl.int64) * area
        image = tl.load(image_ptr + n * size + at, inside, other=0.0).to(ACC)
        start = 0 if SHARED else n * size
        base = tl.load(base_ptr + start + at, inside, other=0.0).to(ACC)
        for k in range(points):
            z = base + tl.load(alpha_ptr + k).to(ACC) * up * (image - base)
            if NOISY:
                index = first + tl.to_tensor(k).to(tl.int64) * step + at
                z += stdev * normals(seed, index, table_ptr).to(ACC)
            place = (tl.to_tensor(k).to(tl.int64) * images + n) * size + at
            tl.store(out_ptr + place, z.to(out_ptr.dtype.element_ty), inside)


def mask_points(image: Tensor, base: Tensor, mask: Tensor, alpha: Tensor, stdev: Tensor | None,
                seed: Tensor | None, row: Tensor | None, step: int, table: Tensor | None,
                out: Tensor) -> None:  # fmt: skip
    """``reference.mask_points`` on dense tensors; fewer than 2**31 pixels."""
    k, n, c, h, w = out.shape
    if out.numel() == 0:
        return
    with device_of(out):
        mask_points_kernel[(triton.cdiv(h * w, configs.BLOCK) * n,)](
            image, base, mask, alpha, stdev, seed, row, table, out, step, k, n, c, h, w,
            *mask.shape[2:], NOISY=stdev is not None, SHARED=base.shape[0] == 1,
            ACC=accumulator(out), BLOCK=configs.BLOCK, **configs.options(),
        )  # fmt: skip


@triton.jit
def mask_penalty_kernel(
    mask_ptr, variation_ptr, area_ptr, height, width, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    count = height * width
    rows, columns = (height - 1) * width, height * (width - 1)
    vertical = tl.zeros([BLOCK], tl.float64)
    horizontal = tl.zeros([BLOCK], tl.float64)
    away = tl.zeros([BLOCK], tl.float64)
    cells = mask_ptr + n * count
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        inside = i < count
        m = tl.load(cells + i, inside, other=1.0).to(tl.float64)
        above = inside & (i >= width)
        before = inside & (i % width > 0)
        down = tl.where(above, m - tl.load(cells + i - width, above, other=0.0).to(tl.float64), 0.0)
        right = tl.where(before, m - tl.load(cells + i - 1, before, other=0.0).to(tl.float64), 0.0)
        vertical += down * down
        horizontal += right * right
        away += tl.where(m > 1.0, m - 1.0, 1.0 - m)
    total = tl.sum(vertical, 0) / tl.maximum(rows, 1).to(tl.float64)
    total += tl.sum(horizontal, 0) / tl.maximum(columns, 1).to(tl.float64)
    tl.store(variation_ptr + n, total.to(ACC))
    tl.store(area_ptr + n, (tl.sum(away, 0) / tl.to_tensor(count).to(tl.float64)).to(ACC))


def mask_penalty(mask: Tensor, variation: Tensor, area: Tensor) -> None:
    """Total variation and area of each mask, summed in double; ``reference.mask_penalty``."""
    n, _, h, w = mask.shape
    if n == 0:
        return
    with device_of(mask):
        mask_penalty_kernel[(n,)](
            mask, variation, area, h, w, ACC=accumulator(mask), BLOCK=configs.BLOCK,
            **configs.options(),
        )  # fmt: skip
