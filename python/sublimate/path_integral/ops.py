"""Registered operators of the path-integral family: schema, fake, one implementation a backend.

``torch.ops.sublimate.path_*`` are private and not differentiable; ``autograd.py`` gives them their
gradients. What each computes is said by its namesake in ``reference.py``. The reference backend is
plain PyTorch and is not an op.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backends

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


_KEY = "CompositeExplicitAutograd"  # every device; the backend argument says which kernel


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
    return image.new_empty((image.shape[0], 1, height, width))


@_fake("path_mask_penalty")
def _(mask, backend):  # type: ignore[no-untyped-def]
    return mask.new_empty(mask.shape[0]), mask.new_empty(mask.shape[0])


@_fake("path_mask_penalty_grad")
def _(mask, variation, area, backend):  # type: ignore[no-untyped-def]
    return mask.new_empty(mask.shape)


_backends.register(
    _backends.Backend("path_integral", "reference", lambda: None, lambda device, dtype: [])
)
