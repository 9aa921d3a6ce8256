"""Registered operators of the few-bit family: schema, fake, and one implementation per backend.

``torch.ops.sublimate.fewbit_*`` are private and not differentiable; ``autograd.py`` gives them
their gradients. Fake and real kernels allocate through the same ``_alloc_*`` functions, so their
strides agree. The reference backend is plain PyTorch and is not an op.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _native
from .._native import fewbit as native
from .reference import FUNCTIONS, row_scale

#: Ids of csrc/fewbit/fewbit_math.h; "given" means that the input itself is coded.
FUNCTION_IDS = {name: i for i, name in enumerate((*FUNCTIONS, "given"))}

_library = torch.library.Library("sublimate", "FRAGMENT")

_library.define(
    "fewbit_fwd(Tensor x, Tensor borders, Tensor codes, Tensor levels, Tensor? seed, str fn,"
    " float a, float b, int bits, str backend) -> (Tensor, Tensor)"
)
_library.define(
    "fewbit_encode(Tensor x, Tensor borders, Tensor codes, Tensor levels, Tensor? seed, int bits,"
    " str backend) -> Tensor"
)
_library.define(
    "fewbit_bwd(Tensor grad, Tensor packed, Tensor levels, SymInt[] stride, int bits, str backend)"
    " -> Tensor"
)
_library.define(
    "fewbit_gated_fwd(Tensor gate, Tensor up, Tensor borders, Tensor codes, str fn, int bits,"
    " str keep, str backend) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "fewbit_gated_bwd(Tensor dy, Tensor kept, Tensor packed, Tensor scale, Tensor levels,"
    " Tensor values, str fn, int bits, str keep, bool need_gate, bool need_up, str backend)"
    " -> (Tensor, Tensor)"
)


# ----------------------------------------------------------------------------------- allocation


def _alloc_packed(x: Tensor, bits: int) -> Tensor:
    """Words for the codes of x: ceil(n / 32) * bits int32."""
    return x.new_empty(native.words(x.numel(), bits), dtype=torch.int32)


def _alloc_fwd(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _alloc_packed(x, bits)


def _alloc_bwd(grad: Tensor, stride: Any) -> Tensor:
    return torch.empty_strided(grad.shape, stride, dtype=grad.dtype, device=grad.device)


def _alloc_gated_fwd(gate: Tensor, bits: int, keep: str) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    rows = 1
    for size in gate.shape[:-1]:
        rows = rows * size
    # No product with a bool: a symbolic size refuses it in torch 2.9.
    scales = rows if bits > 0 and keep == "gate" else 0
    return y, _alloc_packed(gate, bits), gate.new_empty(scales, dtype=torch.float32)


def _alloc_gated_bwd(dy: Tensor, need_gate: bool, need_up: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; one that is not needed is an empty tensor."""
    full = torch.contiguous_format
    dgate = torch.empty_like(dy, memory_format=full) if need_gate else dy.new_empty(0)
    dup = torch.empty_like(dy, memory_format=full) if need_up else dy.new_empty(0)
    return dgate, dup


def _like(x: Tensor, target: Tensor) -> Tensor:
    """x in the layout of target, copied only if it has another one."""
    return x if x.stride() == target.stride() else torch.empty_like(target).copy_(x)


# ------------------------------------------------------------------------------- implementations


def _run_fwd(
    backend: str,
    x: Tensor,
    y: Tensor | None,
    packed: Tensor,
    borders: Tensor,
    codes: Tensor,
    levels: Tensor,
    seed: Tensor | None,
    fn: str,
    a: float,
    b: float,
    bits: int,
) -> None:
    if backend == "triton":
        from ..kernels.fewbit import fwd

        fwd.activation_fwd(
            x, y, packed, borders, codes, levels, fn, a, b, bits, seed is not None, seed
        )
    else:
        native.fwd(
            backend, x, y, packed, borders, codes, levels, FUNCTION_IDS[fn], a, b, bits, seed
        )


def _fwd(
    x: Tensor,
    borders: Tensor,
    codes: Tensor,
    levels: Tensor,
    seed: Tensor | None,
    fn: str,
    a: float,
    b: float,
    bits: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, packed = _alloc_fwd(x, bits)
    x = _like(x, y)
    _run_fwd(backend, x, y, packed, borders, codes, levels, seed, fn, a, b, bits)
    return y, packed


def _encode(
    x: Tensor,
    borders: Tensor,
    codes: Tensor,
    levels: Tensor,
    seed: Tensor | None,
    bits: int,
    backend: str,
) -> Tensor:
    packed = _alloc_packed(x, bits)
    if not _native.dense(x):
        x = x.clone()
    _run_fwd(backend, x, None, packed, borders, codes, levels, seed, "given", 0.0, 0.0, bits)
    return packed


def run_bwd(
    grad: Tensor, packed: Tensor, levels: Tensor, stride: Any, bits: int, backend: str
) -> Tensor:
    """fewbit_bwd without the dispatcher, for ordinary tensors."""
    dx = _alloc_bwd(grad, stride)
    grad = _like(grad, dx)
    if backend == "triton":
        from ..kernels.fewbit import bwd

        bwd.activation_bwd(grad, packed, levels, dx, bits)
    else:
        native.bwd(backend, grad, packed, levels, dx, bits)
    return dx


def _gated_fwd(
    gate: Tensor,
    up: Tensor,
    borders: Tensor,
    codes: Tensor,
    fn: str,
    bits: int,
    keep: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = gate.contiguous(), up.contiguous()
    y, packed, scale = _alloc_gated_fwd(gate, bits, keep)
    if scale.numel():
        scale.copy_(row_scale(up))
    used = scale if keep == "gate" and bits else None
    inner = gate.shape[-1] if gate.dim() else 1
    if backend == "triton":
        from ..kernels.fewbit import fwd

        fwd.gated_fwd(gate, up, y, packed, borders, codes, fn, bits, keep, used, inner)
    else:
        native.gated_fwd(
            backend, gate, up, y, packed, borders, codes, FUNCTION_IDS[fn], bits, used, inner
        )
    return y, packed, scale


def _gated_bwd(
    dy: Tensor,
    kept: Tensor,
    packed: Tensor,
    scale: Tensor,
    levels: Tensor,
    values: Tensor,
    fn: str,
    bits: int,
    keep: str,
    need_gate: bool,
    need_up: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dy, kept = dy.contiguous(), kept.contiguous()
    dgate, dup = _alloc_gated_bwd(dy, need_gate, need_up)
    used = scale if keep == "gate" else None
    inner = dy.shape[-1] if dy.dim() else 1
    out = (dgate if need_gate else None, dup if need_up else None)
    if backend == "triton":
        from ..kernels.fewbit import bwd

        bwd.gated_bwd(dy, kept, packed, levels, values, used, inner, fn, bits, keep, *out)
    else:
        fn_id = FUNCTION_IDS[fn]
        native.gated_bwd(backend, dy, kept, packed, levels, values, used, inner, fn_id, *out, bits)
    return dgate, dup


_KEY = "CompositeExplicitAutograd"  # every device; the backend argument says which kernel
_library.impl("fewbit_fwd", _fwd, _KEY)
_library.impl("fewbit_encode", _encode, _KEY)
_library.impl("fewbit_bwd", run_bwd, _KEY)
_library.impl("fewbit_gated_fwd", _gated_fwd, _KEY)
_library.impl("fewbit_gated_bwd", _gated_bwd, _KEY)


def _fake(name: str):  # type: ignore[no-untyped-def]
    return torch.library.register_fake(f"sublimate::{name}", lib=_library)


@_fake("fewbit_fwd")
def _(x, borders, codes, levels, seed, fn, a, b, bits, backend):  # type: ignore[no-untyped-def]
    return _alloc_fwd(x, bits)


@_fake("fewbit_encode")
def _(x, borders, codes, levels, seed, bits, backend):  # type: ignore[no-untyped-def]
    return _alloc_packed(x, bits)


@_fake("fewbit_bwd")
def _(grad, packed, levels, stride, bits, backend):  # type: ignore[no-untyped-def]
    return _alloc_bwd(grad, stride)


@_fake("fewbit_gated_fwd")
def _(gate, up, borders, codes, fn, bits, keep, backend):  # type: ignore[no-untyped-def]
    return _alloc_gated_fwd(gate, bits, keep)


@_fake("fewbit_gated_bwd")
def _(  # type: ignore[no-untyped-def]
    dy, kept, packed, scale, levels, values, fn, bits, keep, need_gate, need_up, backend
):
    return _alloc_gated_bwd(dy, need_gate, need_up)


NO_VMAP = (
    "sublimate.fewbit: vmap is not supported by compiled backends (one packed code stream has no "
    "batch dimension). The functions are elementwise: call them on the whole batch, or pass "
    'backend="reference".'
)


def _refuse_vmap(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    raise RuntimeError(NO_VMAP)


for _op in ("fewbit_fwd", "fewbit_encode", "fewbit_bwd", "fewbit_gated_fwd", "fewbit_gated_bwd"):
    torch.library.register_vmap(f"sublimate::{_op}", _refuse_vmap, lib=_library)


_backends.register_family("fewbit", tuple(_native.DTYPES))
