"""Differentiable forms of the path-integral ops, and the choice between them, on every backend.

Points and weighted sums are linear maps and one another's transposes, so each ``autograd.Function``
is differentiated by the others, as often as wanted. Where nothing records, the op is called
directly. Second moments under ``create_graph`` and gradients of ``scale`` are plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import keep_signature
from . import ops as registered
from . import reference

_ops = torch.ops.sublimate  # registered by importing .ops above
__all__ = ["accumulate", "accumulate_difference", "difference", "points", "registered", "scale"]


def _records(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def points(
    x: Tensor,
    base: Tensor,
    index: Tensor | None,
    alpha: Tensor,
    stdev: Tensor | None = None,
    seed: Tensor | None = None,
    row: Tensor | None = None,
    step: int = 0,
    dtype: torch.dtype | None = None,
    backend: str = "reference",
) -> Tensor:
    """``reference.points``; gradients with respect to x and base."""
    arguments = (x, base, index, alpha, stdev, seed, row, step, dtype or x.dtype)
    if backend == "reference":
        return reference.points(*arguments)
    if _records(x, base):
        return _Points.apply(*arguments, backend)
    return registered.points(*arguments, backend)


def accumulate(
    grads: Tensor,
    weight: Tensor,
    acc: Tensor | None = None,
    square: Tensor | None = None,
    second: bool = False,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """``reference.accumulate``; gradients with respect to grads, acc and square."""
    if backend == "reference":
        return reference.accumulate(grads, weight, acc, square, second)
    if _records(grads, acc, square):
        if second:
            return reference.accumulate(grads, weight, acc, square, second)
        first = _Accumulate.apply(grads, weight, backend)
        return first if acc is None else acc + first, first.new_empty(0)
    return registered.accumulate(grads, weight, acc, square, second, backend)


def accumulate_difference(
    grads: Tensor,
    weight: Tensor,
    x: Tensor,
    base: Tensor,
    index: Tensor | None,
    acc: Tensor | None = None,
    square: Tensor | None = None,
    second: bool = False,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """``reference.accumulate_difference``; gradients with respect to all but weight and index."""
    if backend == "reference":
        return reference.accumulate_difference(grads, weight, x, base, index, acc, square, second)
    if _records(grads, x, base, acc, square):
        if second:
            return reference.accumulate_difference(
                grads, weight, x, base, index, acc, square, second
            )
        first = _AccumulateDifference.apply(grads, weight, x, base, index, backend)
        return first if acc is None else acc + first, first.new_empty(0)
    return registered.accumulate_difference(
        grads, weight, x, base, index, acc, square, second, backend
    )


def difference(
    up: Tensor,
    weight: Tensor,
    x: Tensor,
    base: Tensor,
    index: Tensor | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """``reference.difference``; gradients with respect to up, x and base."""
    if backend == "reference":
        return reference.difference(up, weight, x, base, index, dtype)
    if _records(up, x, base):
        return _Difference.apply(up, weight, x, base, index, dtype, backend)
    return _ops.path_difference(up, weight, x, base, index, dtype, backend)


def scale(acc: Tensor, x: Tensor, base: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """``reference.scale``."""
    if backend == "reference" or _records(acc, x, base):
        return reference.scale(acc, x, base)
    return registered.scale(acc, x, base, backend)


# ---------------------------------------------------------------------------------- linear maps


def _to_rows(terms: Tensor, weight: Tensor, index: Tensor | None, rows: int) -> Tensor:
    """Weighted terms [K, B, E] summed into the rows of base they belong to: [rows, E].

    With an index this is one matrix product, so no order of additions is left to chance.
    """
    if index is None:
        raise AssertionError("without an index the sum over k comes first")
    spread = weight[:, None].expand(index.shape) if weight.dim() == 1 else weight
    matrix = terms.new_zeros((rows, index.numel()), dtype=weight.dtype)
    matrix[index.reshape(-1), torch.arange(index.numel(), device=index.device)] = spread.reshape(-1)
    return matrix @ terms.reshape(index.numel(), -1).to(weight.dtype)


def _fold(summed: Tensor, rows: int) -> Tensor:
    """[B, E] for rows that are B, or their sum [1, E] where one row serves all samples."""
    return summed if summed.shape[0] == rows else summed.sum(0, keepdim=True)


@keep_signature
class _Points(torch.autograd.Function):
    """Points of paths; backward sums over points with alpha (x) and 1 - alpha (base)."""

    @staticmethod
    def forward(
        x: Tensor,
        base: Tensor,
        index: Tensor | None,
        alpha: Tensor,
        stdev: Tensor | None,
        seed: Tensor | None,
        row: Tensor | None,
        step: int,
        dtype: torch.dtype,
        backend: str,
    ) -> Tensor:
        return _ops.path_points(x, base, index, alpha, stdev, seed, row, step, dtype, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, base, index, alpha = inputs[:4]
        ctx.backend, ctx.rows = inputs[-1], base.shape[0]
        ctx.save_for_backward(index, alpha)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:
        index, alpha = ctx.saved_tensors
        dx = dbase = None
        if ctx.needs_input_grad[0]:
            dx = accumulate(up, alpha, backend=ctx.backend)[0]
        if ctx.needs_input_grad[1]:
            if index is None:
                dbase = _fold(accumulate(up, 1 - alpha, backend=ctx.backend)[0], ctx.rows)
            else:
                dbase = _to_rows(up, 1 - alpha, index, ctx.rows)
        return dx, dbase, *(None,) * 8


@keep_signature
class _Accumulate(torch.autograd.Function):
    """sum_k w_k g_k; backward writes w_k up: a path from zero."""

    @staticmethod
    def forward(grads: Tensor, weight: Tensor, backend: str) -> Tensor:
        return _ops.path_accumulate(grads, weight, None, None, False, backend)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grads, weight, ctx.backend = inputs
        ctx.dtype = grads.dtype
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        zero = up.new_zeros((1, up.shape[1]))
        up = up.contiguous()
        return points(up, zero, None, weight, dtype=ctx.dtype, backend=ctx.backend), None, None


@keep_signature
class _AccumulateDifference(torch.autograd.Function):
    """sum_k w_kb g_kb (x_b - r_kb)."""

    @staticmethod
    def forward(
        grads: Tensor,
        weight: Tensor,
        x: Tensor,
        base: Tensor,
        index: Tensor | None,
        backend: str,
    ) -> Tensor:
        return _ops.path_accumulate_difference(
            grads, weight, x, base, index, None, None, False, backend
        )[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backend = inputs[-1]
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:
        grads, weight, x, base, index = ctx.saved_tensors
        dgrads = None
        if ctx.needs_input_grad[0]:
            dgrads = difference(up, weight, x, base, index, grads.dtype, ctx.backend)
        dx, dbase = _endpoints(ctx.needs_input_grad[2:4], grads, up, weight, base, index,
                               ctx.backend)  # fmt: skip
        return dgrads, None, dx, dbase, None, None


@keep_signature
class _Difference(torch.autograd.Function):
    """w_kb up_b (x_b - r_kb)."""

    @staticmethod
    def forward(
        up: Tensor,
        weight: Tensor,
        x: Tensor,
        base: Tensor,
        index: Tensor | None,
        dtype: torch.dtype,
        backend: str,
    ) -> Tensor:
        return _ops.path_difference(up, weight, x, base, index, dtype, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backend = inputs[-1]
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        up, weight, x, base, index = ctx.saved_tensors
        dup = None
        if ctx.needs_input_grad[0]:
            dup = accumulate_difference(dz, weight, x, base, index, backend=ctx.backend)[0]
        dx, dbase = _endpoints(ctx.needs_input_grad[2:4], dz, up, weight, base, index,
                               ctx.backend)  # fmt: skip
        return dup, None, dx, dbase, None, None, None


def _endpoints(
    needed: tuple[bool, bool],
    terms: Tensor,
    up: Tensor,
    weight: Tensor,
    base: Tensor,
    index: Tensor | None,
    backend: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of sum_kb w_kb <terms_kb, up_b (x_b - r_kb)> with respect to x and base."""
    dx = dbase = None
    if needed[0] or (needed[1] and index is None):
        dx = accumulate(terms, weight, backend=backend)[0] * up
    if needed[1]:
        if dx is not None and index is None:
            dbase = -_fold(dx, base.shape[0])
        else:
            dbase = -_to_rows(terms.to(weight.dtype) * up, weight, index, base.shape[0])
    return dx if needed[0] else None, dbase


# ------------------------------------------------------------------ masks: not differentiated here


def mask_points(
    image: Tensor,
    base: Tensor,
    mask: Tensor,
    alpha: Tensor,
    stdev: Tensor | None = None,
    seed: Tensor | None = None,
    row: Tensor | None = None,
    step: int = 0,
    dtype: torch.dtype | None = None,
    backend: str = "reference",
) -> Tensor:
    """``reference.mask_points``."""
    arguments = (image, base, mask, alpha, stdev, seed, row, step, dtype or image.dtype)
    if backend == "reference":
        return reference.mask_points(*arguments)
    return _ops.path_mask_points(*arguments, backend)


def mask_grad(
    grads: Tensor,
    image: Tensor,
    base: Tensor,
    alpha: Tensor,
    height: int,
    width: int,
    backend: str,
) -> Tensor:
    """``reference.mask_grad``."""
    if backend == "reference":
        return reference.mask_grad(grads, image, base, alpha, height, width)
    return _ops.path_mask_grad(grads, image, base, alpha, height, width, backend)


def mask_penalty(mask: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """``reference.mask_penalty``."""
    if backend == "reference":
        return reference.mask_penalty(mask)
    return _ops.path_mask_penalty(mask, backend)


def mask_penalty_grad(mask: Tensor, variation: Tensor, area: Tensor, backend: str) -> Tensor:
    """``reference.mask_penalty_grad``."""
    if backend == "reference":
        return reference.mask_penalty_grad(mask, variation, area)
    return _ops.path_mask_penalty_grad(mask, variation, area, backend)
