"""Registered operators of the path-integral family: schema, fake, one implementation a backend.

``torch.ops.sublimate.path_*`` are private and not differentiable; ``autograd.py`` gives them their
gradients. What each computes is said by its namesake in ``reference.py``. The reference backend is
plain PyTorch and is not an op.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _native, _normal
from .._dtypes import accumulator
from .._modes import ordinary
from .._native import path_integral as native

_library = torch.library.Library("sublimate", "FRAGMENT")

_library.define(
    "path_points(Tensor x, Tensor base, Tensor? index, Tensor alpha, Tensor? stdev, Tensor? seed,"
    " Tensor? row, SymInt step, ScalarType dtype, str backend) -> Tensor"
)
_library.define(
    "path_accumulate(Tensor grads, Tensor weight, Tensor? acc, Tensor? square, bool second,"
    " str backend) -> (Tensor, Tensor)"
)
_library.define(
    "path_accumulate_difference(Tensor grads, Tensor weight, Tensor x, Tensor base, Tensor? index,"
    " Tensor? acc, Tensor? square, bool second, str backend) -> (Tensor, Tensor)"
)
_library.define(
    "path_difference(Tensor up, Tensor weight, Tensor x, Tensor base, Tensor? index,"
    " ScalarType dtype, str backend) -> Tensor"
)
_library.define("path_scale(Tensor acc, Tensor x, Tensor base, str backend) -> (Tensor, Tensor)")
_library.define(
    "path_mask_points(Tensor image, Tensor base, Tensor mask, Tensor alpha, Tensor? stdev,"
    " Tensor? seed, Tensor? row, SymInt step, ScalarType dtype, str backend) -> Tensor"
)
_library.define(
    "path_mask_grad(Tensor grads, Tensor image, Tensor base, Tensor alpha, SymInt height,"
    " SymInt width, str backend) -> Tensor"
)
_library.define("path_mask_penalty(Tensor mask, str backend) -> (Tensor, Tensor)")
_library.define(
    "path_mask_penalty_grad(Tensor mask, Tensor variation, Tensor area, str backend) -> Tensor"
)


# ----------------------------------------------------------------------------------- allocation


def _alloc_points(x: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty((alpha.shape[0], *x.shape), dtype=dtype)


def _alloc_sums(grads: Tensor, weight: Tensor, second: bool) -> tuple[Tensor, Tensor]:
    acc = weight.new_empty(grads.shape[1:])
    return acc, torch.empty_like(acc) if second else weight.new_empty(0)


def _alloc_scale(acc: Tensor) -> tuple[Tensor, Tensor]:
    return acc.new_empty(acc.shape), acc.new_empty(acc.shape[0])


# ------------------------------------------------------------------------------- implementations


def _dense(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple([t if t is None or t.is_contiguous() else t.contiguous() for t in tensors])


def _table(stdev: Tensor | None) -> Tensor | None:
    return None if stdev is None else _normal.table(stdev.device)


def _written(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype a kernel writes: ``dtype`` if it computes in x's, else x's, converted after."""
    return dtype if accumulator(dtype) == x.dtype else x.dtype


def _points(
    x: Tensor, base: Tensor, index: Tensor | None, alpha: Tensor, stdev: Tensor | None,
    seed: Tensor | None, row: Tensor | None, step: int, dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    out = _alloc_points(x, alpha, _written(x, dtype))
    if out.numel():
        x, base, index, alpha, stdev, row = _dense(x, base, index, alpha, stdev, row)
        if backend == "triton":
            from ..kernels.path_integral import fwd

            fwd.points(x, base, index, alpha, stdev, seed, row, step, _table(stdev), out)
        else:
            table = _table(stdev)
            native.points(backend, x, base, index, alpha, stdev, seed, row, step, table, out)
    return out if out.dtype == dtype else out.to(dtype)


def _run_sums(
    grads: Tensor, weight: Tensor, x: Tensor | None, base: Tensor | None, index: Tensor | None,
    acc: Tensor | None, square: Tensor | None, second: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if accumulator(grads.dtype) != weight.dtype:  # gradients of a model of another width
        grads = grads.to(weight.dtype)
    first, squares = _alloc_sums(grads, weight, second)
    if first.numel():
        grads, weight, x, base, index, acc = _dense(grads, weight, x, base, index, acc)
        into = squares if second else None
        before = square.contiguous() if second and square is not None else None
        if backend == "triton":
            from ..kernels.path_integral import fwd

            fwd.accumulate(grads, weight, x, base, index, acc, before, first, into)
        else:
            native.accumulate(backend, grads, weight, x, base, index, acc, before, first, into)
    return first, squares


def _accumulate(
    grads: Tensor, weight: Tensor, acc: Tensor | None, square: Tensor | None, second: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _run_sums(grads, weight, None, None, None, acc, square, second, backend)


def _accumulate_difference(
    grads: Tensor, weight: Tensor, x: Tensor, base: Tensor, index: Tensor | None,
    acc: Tensor | None, square: Tensor | None, second: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _run_sums(grads, weight, x, base, index, acc, square, second, backend)


def _difference(
    up: Tensor, weight: Tensor, x: Tensor, base: Tensor, index: Tensor | None,
    dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    out = _alloc_points(x, weight, _written(x, dtype))
    if out.numel():
        up, weight, x, base, index = _dense(up, weight, x, base, index)
        if backend == "triton":
            from ..kernels.path_integral import bwd

            bwd.difference(up, weight, x, base, index, out)
        else:
            native.difference(backend, up, weight, x, base, index, out)
    return out if out.dtype == dtype else out.to(dtype)


def _scale(acc: Tensor, x: Tensor, base: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    out, sums = _alloc_scale(acc)
    if sums.numel():
        acc, x, base = _dense(acc, x, base)
        if backend == "triton":
            from ..kernels.path_integral import fwd

            fwd.scale(acc, x, base, out, sums)
        else:
            native.scale(backend, acc, x, base, out, sums)
    return out, sums


def _mask_points(
    image: Tensor, base: Tensor, mask: Tensor, alpha: Tensor, stdev: Tensor | None,
    seed: Tensor | None, row: Tensor | None, step: int, dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    out = _alloc_points(image, alpha, _written(image, dtype))
    if out.numel():
        image, base, mask, alpha, stdev, row = _dense(image, base, mask, alpha, stdev, row)
        arguments = (image, base, mask, alpha, stdev, seed, row, step, _table(stdev), out)
        if backend == "triton":
            from ..kernels.path_integral import fwd

            fwd.mask_points(*arguments)
        else:
            native.mask_points(backend, *arguments)
    return out if out.dtype == dtype else out.to(dtype)


def _alloc_mask(image: Tensor, height: int, width: int) -> Tensor:
    return image.new_empty((image.shape[0], 1, height, width))


def _mask_grad(
    grads: Tensor, image: Tensor, base: Tensor, alpha: Tensor, height: int, width: int,
    backend: str,
) -> Tensor:  # fmt: skip
    out = _alloc_mask(image, height, width)
    if out.numel() == 0:
        return out
    if accumulator(grads.dtype) != image.dtype:
        grads = grads.to(image.dtype)
    grads, image, base, alpha = _dense(grads, image, base, alpha)
    pixels = image.new_empty((image.shape[0], *image.shape[2:]))
    if backend == "triton":
        from ..kernels.path_integral import bwd

        bwd.mask_grad(grads, image, base, alpha, pixels, out)
    else:
        native.mask_grad(backend, grads, image, base, alpha, pixels, out)
    return out


def _mask_penalty(mask: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    variation, area = mask.new_empty(mask.shape[0]), mask.new_empty(mask.shape[0])
    if mask.shape[0]:
        mask = mask.contiguous()
        if backend == "triton":
            from ..kernels.path_integral import fwd

            fwd.mask_penalty(mask, variation, area)
        else:
            native.mask_penalty(backend, mask, variation, area, None)
    return variation, area


def _mask_penalty_grad(mask: Tensor, variation: Tensor, area: Tensor, backend: str) -> Tensor:
    mask, variation, area = _dense(mask, variation, area)
    grad = torch.empty_like(mask)
    if mask.numel():
        if backend == "triton":
            from ..kernels.path_integral import bwd

            bwd.mask_penalty_grad(mask, variation, area, grad)
        else:
            native.mask_penalty(backend, mask, variation, area, grad)
    return grad


_KEY = "CompositeExplicitAutograd"  # every device; the backend argument says which kernel
for _name, _implementation in (
    ("points", _points),
    ("accumulate", _accumulate),
    ("accumulate_difference", _accumulate_difference),
    ("difference", _difference),
    ("scale", _scale),
    ("mask_points", _mask_points),
    ("mask_grad", _mask_grad),
    ("mask_penalty", _mask_penalty),
    ("mask_penalty_grad", _mask_penalty_grad),
):
    _library.impl(f"path_{_name}", _implementation, _KEY)


def _fake(name: str):  # type: ignore[no-untyped-def]
    return torch.library.register_fake(f"sublimate::{name}", lib=_library)


@_fake("path_points")
def _(x, base, index, alpha, stdev, seed, row, step, dtype, backend):  # type: ignore[no-untyped-def]
    return _alloc_points(x, alpha, dtype)


@_fake("path_accumulate")
def _(grads, weight, acc, square, second, backend):  # type: ignore[no-untyped-def]
    return _alloc_sums(grads, weight, second)


@_fake("path_accumulate_difference")
def _(grads, weight, x, base, index, acc, square, second, backend):  # type: ignore[no-untyped-def]
    return _alloc_sums(grads, weight, second)


@_fake("path_difference")
def _(up, weight, x, base, index, dtype, backend):  # type: ignore[no-untyped-def]
    return _alloc_points(x, weight, dtype)


@_fake("path_scale")
def _(acc, x, base, backend):  # type: ignore[no-untyped-def]
    return _alloc_scale(acc)


@_fake("path_mask_points")
def _(image, base, mask, alpha, stdev, seed, row, step, dtype, backend):  # type: ignore[no-untyped-def]
    return _alloc_points(image, alpha, dtype)


@_fake("path_mask_grad")
def _(grads, image, base, alpha, height, width, backend):  # type: ignore[no-untyped-def]
    return _alloc_mask(image, height, width)


@_fake("path_mask_penalty")
def _(mask, backend):  # type: ignore[no-untyped-def]
    return mask.new_empty(mask.shape[0]), mask.new_empty(mask.shape[0])


@_fake("path_mask_penalty_grad")
def _(mask, variation, area, backend):  # type: ignore[no-untyped-def]
    return mask.new_empty(mask.shape)


_backends.register_family("path_integral", tuple(_native.DTYPES))


# ---------------------------------------------------------------------------------- direct calls


def points(
    x: Tensor, base: Tensor, index: Tensor | None, alpha: Tensor, stdev: Tensor | None,
    seed: Tensor | None, row: Tensor | None, step: int, dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    """The op ``path_points``, without the dispatcher where that has nothing to do."""
    if ordinary(x, base, index, alpha, stdev, seed, row):
        return _points(x, base, index, alpha, stdev, seed, row, step, dtype, backend)
    found: Tensor = torch.ops.sublimate.path_points(
        x, base, index, alpha, stdev, seed, row, step, dtype, backend
    )
    return found


def accumulate(
    grads: Tensor, weight: Tensor, acc: Tensor | None, square: Tensor | None, second: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op ``path_accumulate``, likewise."""
    if ordinary(grads, weight, acc, square):
        return _accumulate(grads, weight, acc, square, second, backend)
    found: tuple[Tensor, Tensor] = torch.ops.sublimate.path_accumulate(
        grads, weight, acc, square, second, backend
    )
    return found


def accumulate_difference(
    grads: Tensor, weight: Tensor, x: Tensor, base: Tensor, index: Tensor | None,
    acc: Tensor | None, square: Tensor | None, second: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op ``path_accumulate_difference``, likewise."""
    if ordinary(grads, weight, x, base, index, acc, square):
        return _run_sums(grads, weight, x, base, index, acc, square, second, backend)
    found: tuple[Tensor, Tensor] = torch.ops.sublimate.path_accumulate_difference(
        grads, weight, x, base, index, acc, square, second, backend
    )
    return found


def scale(acc: Tensor, x: Tensor, base: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The op ``path_scale``, likewise."""
    if ordinary(acc, x, base):
        return _scale(acc, x, base, backend)
    found: tuple[Tensor, Tensor] = torch.ops.sublimate.path_scale(acc, x, base, backend)
    return found
