"""Transposes of the path-integral kernels in Triton: written points' terms, and mask gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..common.launch import accumulator, device_of
from . import configs
from .fwd import between, piece, pixels_of, start_row

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def difference_kernel(
    up_ptr, weight_ptr, x_ptr, base_ptr, index_ptr, out_ptr, points, samples, size,
    EACH: tl.constexpr, GATHER: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b, e = piece(size, BLOCK)
    inside = e < size
    at = b.to(tl.int64) * size + e
    x = tl.load(x_ptr + at, inside, other=0.0).to(ACC)
    up = tl.load(up_ptr + at, inside, other=0.0).to(ACC)
    for k in range(points):
        row = start_row(index_ptr, tl.to_tensor(k), b, samples, GATHER, SHARED)
        start = tl.load(base_ptr + row * size + e, inside, other=0.0).to(ACC)
        w = tl.load(weight_ptr + (k * samples + b if EACH else k)).to(ACC)
        place = (tl.to_tensor(k).to(tl.int64) * samples + b) * size + e
        z = w * (up * (x - start))
        tl.store(out_ptr + place, z.to(out_ptr.dtype.element_ty), inside)


def difference(up: Tensor, weight: Tensor, x: Tensor, base: Tensor, index: Tensor | None,
               out: Tensor) -> None:  # fmt: skip
    """out = weight (up (x - start)); ``reference.difference`` on dense tensors."""
    k, samples, size = out.shape
    if out.numel() == 0:
        return
    with device_of(out):
        difference_kernel[(triton.cdiv(size, configs.BLOCK) * samples,)](
            up, weight, x, base, index, out, k, samples, size,
            EACH=weight.dim() == 2, GATHER=index is not None, SHARED=base.shape[0] == 1,
            ACC=accumulator(out), BLOCK=configs.BLOCK, **configs.options(),
        )  # fmt: skip


@triton.jit
def mask_pixels_kernel(
    grads_ptr, image_ptr, base_ptr, alpha_ptr, pixels_ptr, points, images, channels, area,
    SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, pixel = pixels_of(area, BLOCK)
    inside = pixel < area
    size = tl.to_tensor(channels).to(tl.int64) * area
    total = tl.zeros([BLOCK], ACC)
    for c in range(channels):
        at = tl.to_tensor(c).to(tl.int64) * area + pixel
        partial = tl.zeros([BLOCK], ACC)
        for k in range(points):
            place = (tl.to_tensor(k).to(tl.int64) * images + n) * size + at
            g = tl.load(grads_ptr + place, inside, other=0.0).to(ACC)
            partial += tl.load(alpha_ptr + k).to(ACC) * g
        image = tl.load(image_ptr + n * size + at, inside, other=0.0).to(ACC)
        start = 0 if SHARED else n * size
        total += partial * (image - tl.load(base_ptr + start + at, inside, other=0.0).to(ACC))
    tl.store(pixels_ptr + n * area + pixel, total, inside)


@triton.jit
def share(j, low, high, part):
    """Weight of position j in an interpolation between low and high."""
    return tl.where(low == j, 1.0 - part, 0.0) + tl.where(high == j, part, 0.0)


@triton.jit
def mask_cells_kernel(
    pixels_ptr, out_ptr, height, width, mask_height, mask_width, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program, cells = tl.program_id(0), mask_height * mask_width
    n, cell = (program // cells).to(tl.int64), program % cells
    i, j = cell // mask_width, cell % mask_width
    # Rows and columns of pixels that read this cell: those between its neighbours.
    below = tl.maximum(mask_height - 1, 1)
    beside = tl.maximum(mask_width - 1, 1)
    top = tl.maximum((i - 1) * (height - 1) // below, 0)
    left = tl.maximum((j - 1) * (width - 1) // beside, 0)
    bottom = tl.minimum(((i + 1) * (height - 1) + below - 1) // below + 1, height)
    right = tl.minimum(((j + 1) * (width - 1) + beside - 1) // beside + 1, width)
    if mask_height == 1:
        top, bottom = top * 0, bottom * 0 + height
    if mask_width == 1:
        left, right = left * 0, right * 0 + width
    wide = right - left
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, (bottom - top) * wide, BLOCK):
        p = first + tl.arange(0, BLOCK)
        inside = p < (bottom - top) * wide
        y, x = top + p // wide, left + p % wide
        low, high, part = between(y, tl.to_tensor(height), tl.to_tensor(mask_height), ACC)
        w = share(i, low, high, part)
        low, high, part = between(x, tl.to_tensor(width), tl.to_tensor(mask_width), ACC)
        w = w * share(j, low, high, part)
        place = (n * height + y) * width + x
        pixel = tl.load(pixels_ptr + place, inside, other=0.0).to(tl.float64)
        total += tl.where(inside, w.to(tl.float64) * pixel, 0.0)
    out = tl.sum(total, 0).to(ACC)
    tl.store(out_ptr + n * mask_height * mask_width + cell, out)


def mask_grad(grads: Tensor, image: Tensor, base: Tensor, alpha: Tensor, pixels: Tensor,
              out: Tensor) -> None:  # fmt: skip
    """``reference.mask_grad``: what arrives at each pixel into ``pixels``, then cell by cell."""
    k, n, c, h, w = grads.shape
    if out.numel() == 0:
        return
    with device_of(grads):
        if h * w:
            mask_pixels_kernel[(triton.cdiv(h * w, configs.BLOCK) * n,)](
                grads, image, base, alpha, pixels, k, n, c, h * w, SHARED=base.shape[0] == 1,
                ACC=accumulator(grads), BLOCK=configs.BLOCK, **configs.options(),
            )  # fmt: skip
        mask_cells_kernel[(out.shape[2] * out.shape[3] * n,)](
            pixels, out, h, w, *out.shape[2:], ACC=accumulator(out), BLOCK=configs.BLOCK,
            **configs.options(),
        )  # fmt: skip


@triton.jit
def mask_penalty_kernel(
    mask_ptr, variation_ptr, area_ptr, grad_ptr, height, width, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    count = height * width
    variation = tl.load(variation_ptr + n).to(ACC)
    area = tl.load(area_ptr + n).to(ACC)
    down = 2.0 * variation / tl.maximum((height - 1) * width, 1).to(ACC)
    across = 2.0 * variation / tl.maximum(height * (width - 1), 1).to(ACC)
    cells = mask_ptr + n * count
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        inside = i < count
        m = tl.load(cells + i, inside, other=0.0).to(ACC)
        above, under = inside & (i >= width), inside & (i < count - width)
        before, after = inside & (i % width > 0), inside & (i % width < width - 1)
        vertical = tl.where(above, m - tl.load(cells + i - width, above, other=0.0).to(ACC), 0.0)
        vertical -= tl.where(under, tl.load(cells + i + width, under, other=0.0).to(ACC) - m, 0.0)
        horizontal = tl.where(before, m - tl.load(cells + i - 1, before, other=0.0).to(ACC), 0.0)
        horizontal -= tl.where(after, tl.load(cells + i + 1, after, other=0.0).to(ACC) - m, 0.0)
        side = tl.where(m > 1.0, 1.0, tl.where(m < 1.0, -1.0, tl.where(m == 1.0, 0.0, m)))
        slope = down * vertical + across * horizontal
        slope += area * side.to(ACC) / tl.to_tensor(count).to(ACC)
        tl.store(grad_ptr + n * count + i, slope, inside)


def mask_penalty_grad(mask: Tensor, variation: Tensor, area: Tensor, grad: Tensor) -> None:
    """Gradient of ``reference.mask_penalty`` for what arrives at variation and area."""
    n, _, h, w = mask.shape
    if mask.numel() == 0:
        return
    with device_of(mask):
        mask_penalty_kernel[(n,)](
            mask, variation, area, grad, h, w, ACC=accumulator(mask), BLOCK=configs.BLOCK,
            **configs.options(),
        )  # fmt: skip
