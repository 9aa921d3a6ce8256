"""Registered operators of the randomized linear family: schema, fake, one implementation a backend.

``torch.ops.sublimate.randomized_linear_*`` are private and not differentiable; ``autograd.py``
gives them their gradients. The reference backend is plain PyTorch and is not an op.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _backends, _native, _normal
from .._dtypes import accumulator
from .._native import randomized_linear as native
from . import reference

_library = torch.library.Library("sublimate", "FRAGMENT")

_library.define(
    "randomized_linear_project(Tensor x, Tensor seed, str sketch, SymInt k, str backend) -> Tensor"
)
_library.define(
    "randomized_linear_gather(Tensor x, Tensor index, Tensor? scale, str backend) -> Tensor"
)
_library.define("randomized_linear_seed(Tensor key, Tensor count, int step, int term) -> Tensor")
_library.define("hadamard_transform(Tensor x, float scale, str backend) -> Tensor")


# ----------------------------------------------------------------------------------- allocation


def _alloc_rows(x: Tensor, k: int) -> Tensor:
    return x.new_empty((k, x.shape[1]))


def _alloc_hadamard(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], reference.power_of_two(x.shape[-1])))


def _rows(x: Tensor) -> Tensor:
    """x with consecutive elements in each row, copied only if they are not; rows may lie apart."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


# ------------------------------------------------------------------------------- implementations


def _run_project(backend: str, x: Tensor, out: Tensor, seed: Tensor, sketch: str) -> None:
    table = _normal.table(x.device) if sketch == "gaussian" else None
    if backend == "triton":
        from ..kernels.randomized_linear import fwd

        fwd.project(x, out, seed, sketch, table)
    else:
        native.project(backend, x, out, seed, sketch, table)


#: Elements that one piece of the cosine transform holds: what it needs beside its input.
_DCT_ELEMENTS = 2**18


def _dct(x: Tensor, chunk: int) -> Tensor:
    """Orthonormal DCT-II of (nb, chunk, c) along dim 1, by one real FFT (Makhoul, 1980)."""
    mirrored = torch.cat((x[:, ::2], x[:, 1::2].flip(1)), dim=1)
    spectrum = torch.fft.rfft(mirrored, dim=1)
    angle = torch.arange(chunk // 2 + 1, device=x.device, dtype=torch.float64)
    angle = angle * (-math.pi / (2 * chunk))
    turn = torch.polar(torch.full_like(angle, math.sqrt(2 / chunk)), angle).to(spectrum.dtype)
    turn[0] *= math.sqrt(0.5)
    turned = spectrum * turn.unsqueeze(-1)
    # Frequency chunk - r is minus the imaginary part of frequency r.
    upper = turned.imag[:, 1 : (chunk + 1) // 2].neg().flip(1)
    return torch.cat((turned.real, upper), dim=1)


def _project_dct(backend: str, x: Tensor, out: Tensor, seed: Tensor) -> None:
    """The transform by torch.fft, some columns at a time, then the kernel of sketch "rows"."""
    n, columns = x.shape
    nb, chunk = reference.blocks(n)
    padded = nb * chunk
    acc = accumulator(x.dtype)
    sign = reference.signs(seed, n, out.new_empty(0, dtype=acc)).unsqueeze(-1)
    width = min(columns, max(16, _DCT_ELEMENTS // padded))
    for start in range(0, columns, width):
        part = x[:, start : start + width].to(acc) * sign
        part = torch.nn.functional.pad(part, (0, 0, 0, padded - n))
        mixed = _dct(part.reshape(nb, chunk, -1), chunk).reshape(padded, -1).contiguous()
        chosen = mixed.new_empty((out.shape[0], mixed.shape[1]))
        _run_project(backend, mixed, chosen, seed, "rows")
        out[:, start : start + width].copy_(chosen)


def _project(x: Tensor, seed: Tensor, sketch: str, k: int, backend: str) -> Tensor:
    out = _alloc_rows(x, k)
    if out.numel() == 0:
        return out
    if x.shape[0] == 0:
        return out.zero_()
    x = _rows(x)
    if sketch == "dct":
        _project_dct(backend, x, out, seed)
    else:
        _run_project(backend, x, out, seed, sketch)
    return out


def _gather(x: Tensor, index: Tensor, scale: Tensor | None, backend: str) -> Tensor:
    out = _alloc_rows(x, index.shape[0])
    if out.numel() == 0:
        return out
    x, index = _rows(x), index.contiguous()
    scale = None if scale is None else scale.contiguous()
    if backend == "triton":
        from ..kernels.randomized_linear import fwd

        fwd.gather(x, index, scale, out)
    else:
        native.gather(backend, x, index, scale, out)
    return out


def _hadamard(x: Tensor, scale: float, backend: str) -> Tensor:
    out = _alloc_hadamard(x)
    if out.numel() == 0:
        return out
    if x.numel() == 0:
        return out.zero_()
    flat = _rows(reference.as_rows(x))
    rows = out.view(-1, out.shape[-1])
    if backend == "triton":
        from ..kernels.randomized_linear import fwd

        fwd.hadamard(flat, rows, scale)
    else:
        native.hadamard(backend, flat, rows, scale)
    return out


def _seed(key: Tensor, count: Tensor, step: int, term: int) -> Tensor:
    """(key + step count + term) mod 2**63.

    An op and not three of torch's, so that torch.compile keeps its result for backward: what it
    can recompute it does recompute, from the count that the layer has advanced in the meantime.
    """
    return torch.add(key, count, alpha=step).add_(term).bitwise_and_(2**63 - 1)


_KEY = "CompositeExplicitAutograd"  # every device; the backend argument says which kernel
_library.impl("randomized_linear_project", _project, _KEY)
_library.impl("randomized_linear_gather", _gather, _KEY)
_library.impl("randomized_linear_seed", _seed, _KEY)
_library.impl("hadamard_transform", _hadamard, _KEY)


def _fake(name: str):  # type: ignore[no-untyped-def]
    return torch.library.register_fake(f"sublimate::{name}", lib=_library)


@_fake("randomized_linear_project")
def _(x, seed, sketch, k, backend):  # type: ignore[no-untyped-def]
    return _alloc_rows(x, k)


@_fake("randomized_linear_gather")
def _(x, index, scale, backend):  # type: ignore[no-untyped-def]
    return _alloc_rows(x, index.shape[0])


@_fake("randomized_linear_seed")
def _(key, count, step, term):  # type: ignore[no-untyped-def]
    return torch.empty_like(key)


@_fake("hadamard_transform")
def _(x, scale, backend):  # type: ignore[no-untyped-def]
    return _alloc_hadamard(x)


NO_VMAP = (
    "sublimate.randomized_linear: vmap is not supported by compiled backends (one sketch mixes the "
    "rows of one matrix). Put the batch into the rows, call in a loop, or pass "
    'backend="reference".'
)


def _refuse_vmap(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    raise RuntimeError(NO_VMAP)


for _op in ("randomized_linear_project", "randomized_linear_gather"):
    torch.library.register_vmap(f"sublimate::{_op}", _refuse_vmap, lib=_library)


def _vmap_hadamard(info, in_dims, x, scale, backend):  # type: ignore[no-untyped-def]
    batched = x.movedim(in_dims[0], 0)
    return torch.ops.sublimate.hadamard_transform(batched, scale, backend), 0


torch.library.register_vmap("sublimate::hadamard_transform", _vmap_hadamard, lib=_library)

_backends.register_family("randomized_linear", tuple(_native.DTYPES))
