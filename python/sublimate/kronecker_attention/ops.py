"""Registered operators of Kronecker attention: schema, fake, and one implementation per backend.

``torch.ops.sublimate.kronecker_*`` are private and not differentiable; ``autograd.py`` gives them
their gradients. Fake and real kernels allocate through the same ``_alloc_*`` functions, so their
strides agree. The reference backend is plain PyTorch and is not an op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _backends, _native
from .._dtypes import accumulator
from .._native import kronecker_attention as native

#: Largest head dimension of a compiled kernel.
LONGEST_HEAD = 128

_library = torch.library.Library("sublimate", "FRAGMENT")

_library.define(
    "kronecker_attention_fwd(Tensor q, Tensor k1, Tensor k2, Tensor v1, Tensor v2, Tensor? mask1,"
    " Tensor? mask2, float scale, bool causal, int[] window, str backend) -> (Tensor, Tensor)"
)
_library.define(
    "kronecker_attention_bwd(Tensor dout, Tensor q, Tensor k1, Tensor k2, Tensor v1, Tensor v2,"
    " Tensor lse, Tensor delta, Tensor? mask1, Tensor? mask2, float scale, bool causal,"
    " int[] window, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "kronecker_strassen_fwd(Tensor q, Tensor k1, Tensor k2, Tensor v1, Tensor v2, Tensor? mask1,"
    " Tensor? mask2, float scale, bool causal, int[] window, str backend) -> (Tensor, Tensor)"
)
_library.define(
    "kronecker_strassen_bwd(Tensor dout, Tensor q, Tensor k1, Tensor k2, Tensor v1, Tensor v2,"
    " Tensor lse, Tensor delta, Tensor? mask1, Tensor? mask2, float scale, bool causal,"
    " int[] window, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "kronecker_polynomial_fwd(Tensor q, Tensor[] keys, Tensor[] values, Tensor[] masks,"
    " Tensor coefficients, float scale, bool causal, int[] window, str backend)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "kronecker_polynomial_bwd(Tensor dnumerator, Tensor ddenominator, Tensor q, Tensor[] keys,"
    " Tensor[] values, Tensor[] masks, Tensor coefficients, float scale, bool causal,"
    " int[] window, str backend) -> Tensor[]"
)


# ----------------------------------------------------------------------------------- allocation


def _alloc_like(x: Tensor, last: int) -> Tensor:
    """(B, H, N, last), dense, the first three dimensions in the memory order of x's."""
    order = sorted(range(3), key=lambda dim: x.stride()[dim], reverse=True)
    return torch.empty_permuted((*x.shape[:3], last), (*order, 3), dtype=x.dtype, device=x.device)


def _alloc_rows(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))


def _alloc_attention(q: Tensor, v1: Tensor) -> tuple[Tensor, Tensor]:
    return _alloc_like(q, v1.shape[-1]), _alloc_rows(q)


def _alloc_polynomial(q: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:3], values[0].shape[-1])
    return q.new_empty(shape, dtype=accumulator(q.dtype)), _alloc_rows(q)


def _alloc_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_alloc_like(x, x.shape[-1]) for x in inputs)


def _inner(x: Tensor) -> Tensor:
    """x with consecutive elements in its last dimension, copied only if they are not."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


# ------------------------------------------------------------------------------- implementations


def _attention_fwd(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    mask1: Tensor | None,
    mask2: Tensor | None,
    scale: float,
    causal: bool,
    window: list[int],
    backend: str,
    form: str = "kronecker",
) -> tuple[Tensor, Tensor]:
    out, lse = _alloc_attention(q, v1)
    if out.numel() == 0:
        return out, lse
    if k1.shape[2] == 0 or k2.shape[2] == 0:
        return out.zero_(), lse.fill_(-math.inf)
    arguments: tuple[Any, ...] = (
        *(_inner(t) for t in (q, k1, k2, v1, v2)),
        _mask(mask1),
        _mask(mask2),
        out,
        lse,
        scale,
        causal,
        window,
    )
    if backend == "triton":
        from ..kernels.kronecker_attention import fwd

        (fwd.strassen if form == "strassen" else fwd.attention)(*arguments)
    else:
        native.attention(backend, *(*arguments, form))
    return out, lse


def _attention_bwd(
    dout: Tensor,
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    lse: Tensor,
    delta: Tensor,
    mask1: Tensor | None,
    mask2: Tensor | None,
    scale: float,
    causal: bool,
    window: list[int],
    backend: str,
    form: str = "kronecker",
) -> tuple[Tensor, ...]:
    grads = _alloc_gradients(q, k1, k2, v1, v2)
    if dout.numel() == 0 or k1.shape[2] == 0 or k2.shape[2] == 0:
        return tuple(g.zero_() for g in grads)
    arguments: tuple[Any, ...] = (
        *(_inner(t) for t in (dout, q, k1, k2, v1, v2)),
        lse.contiguous(), delta.contiguous(), _mask(mask1), _mask(mask2), *grads,
        scale, causal, window,
    )  # fmt: skip
    if backend == "triton":
        from ..kernels.kronecker_attention import bwd

        (bwd.strassen if form == "strassen" else bwd.attention)(*arguments)
    else:
        native.attention_bwd(backend, *(*arguments, form))
    return grads


def _polynomial_fwd(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    masks: list[Tensor],
    coefficients: Tensor,
    scale: float,
    causal: bool,
    window: list[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    numerator, denominator = _alloc_polynomial(q, values)
    if numerator.numel() == 0:
        return numerator, denominator
    if any(k.shape[2] == 0 for k in keys):
        return numerator.zero_(), denominator.zero_()
    arguments = (
        _inner(q), [_inner(k) for k in keys], [_inner(v) for v in values],
        [m.contiguous() for m in masks], coefficients.contiguous(), numerator, denominator, scale,
        causal, window,
    )  # fmt: skip
    if backend == "triton":
        from ..kernels.kronecker_attention import fwd

        fwd.polynomial(*arguments)
    else:
        native.polynomial(backend, *arguments)
    return numerator, denominator


def _polynomial_bwd(
    dnumerator: Tensor,
    ddenominator: Tensor,
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    masks: list[Tensor],
    coefficients: Tensor,
    scale: float,
    causal: bool,
    window: list[int],
    backend: str,
) -> list[Tensor]:
    grads = list(_alloc_gradients(q, *keys, *values))
    if dnumerator.numel() == 0 or any(k.shape[2] == 0 for k in keys):
        return [g.zero_() for g in grads]
    sets = len(keys)
    arguments = (
        dnumerator.contiguous(), ddenominator.contiguous(), _inner(q), [_inner(k) for k in keys],
        [_inner(v) for v in values], [m.contiguous() for m in masks], coefficients.contiguous(),
        grads[0], grads[1 : 1 + sets], grads[1 + sets :], scale, causal, window,
    )  # fmt: skip
    if backend == "triton":
        from ..kernels.kronecker_attention import bwd

        bwd.polynomial(*arguments)
    else:
        native.polynomial_bwd(backend, *arguments)
    return grads


_KEY = "CompositeExplicitAutograd"  # every device; the backend argument says which kernel
_library.impl("kronecker_attention_fwd", _attention_fwd, _KEY)
_library.impl("kronecker_attention_bwd", _attention_bwd, _KEY)
_library.impl("kronecker_strassen_fwd", partial(_attention_fwd, form="strassen"), _KEY)
_library.impl("kronecker_strassen_bwd", partial(_attention_bwd, form="strassen"), _KEY)
_library.impl("kronecker_polynomial_fwd", _polynomial_fwd, _KEY)
_library.impl("kronecker_polynomial_bwd", _polynomial_bwd, _KEY)


def _fake(name: str):  # type: ignore[no-untyped-def]
    return torch.library.register_fake(f"sublimate::{name}", lib=_library)


@_fake("kronecker_attention_fwd")
@_fake("kronecker_strassen_fwd")
def _(q, k1, k2, v1, v2, mask1, mask2, scale, causal, window, backend):  # type: ignore[no-untyped-def]
    return _alloc_attention(q, v1)


@_fake("kronecker_attention_bwd")
@_fake("kronecker_strassen_bwd")
def _(  # type: ignore[no-untyped-def]
    dout, q, k1, k2, v1, v2, lse, delta, mask1, mask2, scale, causal, window, backend
):
    return _alloc_gradients(q, k1, k2, v1, v2)


@_fake("kronecker_polynomial_fwd")
def _(q, keys, values, masks, coefficients, scale, causal, window, backend):  # type: ignore[no-untyped-def]
    return _alloc_polynomial(q, values)


@_fake("kronecker_polynomial_bwd")
def _(  # type: ignore[no-untyped-def]
    dnumerator, ddenominator, q, keys, values, masks, coefficients, scale, causal, window, backend
):
    return list(_alloc_gradients(q, *keys, *values))


NO_VMAP = (
    "sublimate.kronecker_attention: vmap is not supported by compiled backends. Put the batch into "
    'the first dimension (batch, heads, length, head dimension), or pass backend="reference".'
)


def _refuse_vmap(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    raise RuntimeError(NO_VMAP)


for _op in (
    "kronecker_attention_fwd",
    "kronecker_attention_bwd",
    "kronecker_strassen_fwd",
    "kronecker_strassen_bwd",
    "kronecker_polynomial_fwd",
    "kronecker_polynomial_bwd",
):
    torch.library.register_vmap(f"sublimate::{_op}", _refuse_vmap, lib=_library)


def polynomial_orders(backend: str, ordered: bool = False) -> range:
    """Orders (key sets + 1) of a backend's polynomial; ``ordered``: as of ``limits``."""
    if backend == "reference":
        return range(3, 2**20)
    bound = 4 if ordered and backend == "triton" else native.MAX_SETS + 2
    return range(3, bound)


def highest_degree(backend: str) -> int:
    """The highest degree of a backend's polynomial."""
    return {"cpu": native.MAX_DEGREE, "triton": 6}.get(backend, 16)


def limits(
    backend: str,
    dims: tuple[int, int],
    order: int = 3,
    degree: int = 0,
    ordered: bool = False,
) -> list[str]:
    """Why a backend has no kernel for these head dimensions, this order or this degree; else [].

    Args:
        degree: of the polynomial, 0 for exact attention. ordered: whether rows differ in the keys
            that they may read, by causality or a window.
    """
    if backend == "reference":
        return []
    found = [
        f"head dimensions of at most {LONGEST_HEAD}, got {d}" for d in dims if d > LONGEST_HEAD
    ]
    orders = polynomial_orders(backend, ordered)
    if order not in orders:
        where = " with causality or a window" if ordered else ""
        found.append(f"orders {orders.start} to {orders.stop - 1}{where}, got {order}")
    if degree > highest_degree(backend):
        found.append(f"degrees up to {highest_degree(backend)}, got {degree}")
    return found


_backends.register_family("kronecker_attention", tuple(_native.DTYPES))
_backends.register(
    _backends.Backend(
        "kronecker_attention",
        "cuda",
        lambda: "kronecker_attention has no CUDA kernel of its own; triton runs on these devices",
        lambda device, dtype: [],
    )
)
