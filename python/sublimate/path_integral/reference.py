"""Path-integral kernels in plain PyTorch: the truth that every backend is held to.

Everything is flat: a sample is a row of E numbers, a chunk of a path is [K, B, E] for K points of
B samples. ``x``, ``base``, weights and sums are float32 (float64 for float64 data); points may be
written in, and gradients may come in, the 16-bit type of the model. All functions are linear in
what they differentiate and differentiable any number of times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _normal


def gather_rows(base: Tensor, index: Tensor | None) -> Tensor:
    """base [R, E] as it meets [K, B, E]: [1, R, E] (R is B or 1) or gathered to [K, B, E]."""
    return base.unsqueeze(0) if index is None else base[index]


def _spread(weight: Tensor) -> Tensor:
    """[K] or [K, B] as [K, 1 or B, 1]."""
    return weight[:, None, None] if weight.dim() == 1 else weight[:, :, None]


def noise(seed: Tensor, row: Tensor, count: int, step: int, size: int) -> Tensor:
    """Normal numbers of ``count`` points: element e of point k of sample b is word
    ``row[b] + k * step + e`` of the normal stream under ``seed``.

    Args:
        seed: 0-dim int64.
        row: int64 (B,).

    Returns:
        (count, B, size) float32.
    """
    k = torch.arange(count, device=row.device)[:, None, None] * step
    e = torch.arange(size, device=row.device)
    return _normal.normal(seed, row[None, :, None] + k + e)


def points(
    x: Tensor,
    base: Tensor,
    index: Tensor | None,
    alpha: Tensor,
    stdev: Tensor | None,
    seed: Tensor | None,
    row: Tensor | None,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """Points of straight paths, with noise: base + alpha (x - base) + stdev * normal.

    Args:
        x: [B, E] float32 or float64.
        base: [R, E], dtype of x. R is B (row b belongs to sample b) or 1, or any with ``index``.
        index: int64 [K, B], row of base for each point; or None.
        alpha: [K] or [K, B], dtype of x.
        stdev, seed, row, step: noise of ``noise``; stdev is [B] of dtype of x. All None / 0: none.
        dtype: of the result.

    Returns:
        [K, B, E].
    """
    start = gather_rows(base, index)
    z = start + _spread(alpha) * (x - start)
    if stdev is not None:
        assert seed is not None and row is not None
        z = z + stdev[:, None] * noise(seed, row, alpha.shape[0], step, x.shape[1]).to(x.dtype)
    return z.to(dtype)


def _sums(
    terms: Tensor, weight: Tensor, acc: Tensor | None, square: Tensor | None, second: bool
) -> tuple[Tensor, Tensor]:
    w = _spread(weight)
    first = (w * terms).sum(0)
    if acc is not None:
        first = acc + first
    if not second:
        return first, first.new_empty(0)
    squares = (w * terms.square()).sum(0)
    return first, squares if square is None else square + squares


def accumulate(
    grads: Tensor, weight: Tensor, acc: Tensor | None, square: Tensor | None, second: bool
) -> tuple[Tensor, Tensor]:
    """acc + sum_k w_k g_k, and with ``second`` also square + sum_k w_k g_k^2.

    Args:
        grads: [K, B, E], any floating dtype.
        weight: [K] or [K, B], the dtype of the sums: float32, or float64.
        acc, square: [B, E], None for zero.

    Returns:
        [B, E] each; the second is empty (0,) without ``second``.
    """
    return _sums(grads.to(weight.dtype), weight, acc, square, second)


def accumulate_difference(
    grads: Tensor,
    weight: Tensor,
    x: Tensor,
    base: Tensor,
    index: Tensor | None,
    acc: Tensor | None,
    square: Tensor | None,
    second: bool,
) -> tuple[Tensor, Tensor]:
    """As ``accumulate``, of the terms g_kb (x_b - base[index_kb]): expected gradients."""
    return _sums(grads.to(weight.dtype) * (x - gather_rows(base, index)), weight, acc, square,
                 second)  # fmt: skip


def difference(
    up: Tensor, weight: Tensor, x: Tensor, base: Tensor, index: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """w_kb up_b (x_b - base[index_kb]): transpose of ``accumulate_difference`` in its gradients.

    Args:
        up: [B, E]; the others as in ``accumulate_difference``.

    Returns:
        [K, B, E] of ``dtype``.
    """
    return (_spread(weight) * (up * (x - gather_rows(base, index)))).to(dtype)


def scale(acc: Tensor, x: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Attributions (x - base) acc [B, E] and their sum of each row [B]; base [B, E] or [1, E]."""
    out = (x - base) * acc
    return out, out.sum(1)


# ------------------------------------------------------------------------------------ mask paths


def upsample(mask: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corners on corners: [N, 1, h, w] -> [N, 1, H, W]."""
    return F.interpolate(mask, (height, width), mode="bilinear", align_corners=True)


def mask_points(
    image: Tensor,
    base: Tensor,
    mask: Tensor,
    alpha: Tensor,
    stdev: Tensor | None,
    seed: Tensor | None,
    row: Tensor | None,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """image a_k U + base (1 - a_k U) + stdev * normal, with U the upsampled mask.

    Args:
        image, base: [N, C, H, W]; base may have N = 1.
        mask: [N, 1, h, w].
        alpha: [K].
        stdev, seed, row, step: as in ``points``, a sample being C * H * W numbers.

    Returns:
        [K, N, C, H, W] of ``dtype``.
    """
    n, c, h, w = image.shape
    up = alpha[:, None, None, None, None] * upsample(mask, h, w)
    z = base + up * (image - base)
    if stdev is not None:
        assert seed is not None and row is not None
        normal = noise(seed, row, alpha.shape[0], step, c * h * w).to(image.dtype)
        z = z + stdev[:, None, None, None] * normal.reshape(-1, n, c, h, w)
    return z.to(dtype)


def mask_grad(
    grads: Tensor, image: Tensor, base: Tensor, alpha: Tensor, height: int, width: int
) -> Tensor:
    """Gradient of ``mask_points`` with respect to its mask [N, 1, height, width].

    Args:
        grads: [K, N, C, H, W], any floating dtype.
    """
    weighted = (alpha[:, None, None, None, None] * grads.to(image.dtype)).sum(0)
    pixel = (weighted * (image - base)).sum(1, keepdim=True)  # [N, 1, H, W]
    h, w = image.shape[-2:]
    rows, columns = _weights(height, h, pixel), _weights(width, w, pixel)
    return rows.t() @ pixel @ columns


def _weights(small: int, large: int, like: Tensor) -> Tensor:
    """Matrix of linear interpolation with corners on corners, [large, small]."""
    eye = torch.eye(small, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(eye, large, mode="linear", align_corners=True)[0].t()


def mask_penalty(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each mask [N, 1, h, w]: total variation (mean of squared vertical plus mean of squared
    horizontal differences) and area (mean |1 - mask|), both [N]."""
    vertical, horizontal = (mask.diff(dim=d).square().flatten(1) for d in (2, 3))
    mean = [t.mean(1) if t.shape[1] else t.sum(1) for t in (vertical, horizontal)]
    return mean[0] + mean[1], (1 - mask).abs().flatten(1).mean(1)


def mask_penalty_grad(mask: Tensor, variation: Tensor, area: Tensor) -> Tensor:
    """Gradient of sum(variation * TV + area * A) with respect to the mask, with both as
    ``mask_penalty`` has them.

    Args:
        mask: [N, 1, h, w].
        variation, area: [N], what comes back to the two results.
    """
    grad = torch.zeros_like(mask)
    for dim in (2, 3):
        d = mask.diff(dim=dim)
        count = max(1, d[0].numel()) if d.shape[0] else 1
        d = d * (2 / count) * variation[:, None, None, None]
        grad = grad + F.pad(d, (0, 0, 1, 0) if dim == 2 else (1, 0))
        grad = grad - F.pad(d, (0, 0, 0, 1) if dim == 2 else (0, 1))
    size = max(1, mask.shape[2] * mask.shape[3])
    return grad + (mask - 1).sign() * (area / size)[:, None, None, None]
