"""Wrappers of the Kronecker attention kernels, by csrc/kronecker_attention/kernels.h.

Tensors have their last stride 1 (or a last dimension of at most 1); all other strides are free.
Masks are contiguous (B, M) bool. ``window`` is empty or has one entry for each key set, 0 for none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._dtypes import accumulator
from . import DTYPES, Library, NativeError, guard, library

#: How logits are made of the three rows, as csrc/kronecker_attention/kernels.h numbers them.
FORMS = {"kronecker": 0, "strassen": 1}
#: Limits of the compiled kernels: head dimensions, key sets and degree of a polynomial.
MAX_CHANNELS, MAX_SETS, MAX_DEGREE = 128, 7, 12


def _operand(
    op: str, lib: Library, argument: str, t: Tensor, dtype: torch.dtype, shape: Sequence[int]
) -> tuple[int, ...]:
    """A row of the table of operands: address, three strides and the length."""
    address = guard(op, argument, t, lib.device, (dtype,))
    if tuple(t.shape) != tuple(shape):
        raise NativeError(f"{op}: {argument} has shape {tuple(t.shape)}, expected {tuple(shape)}")
    if t.shape[-1] > 1 and t.stride(-1) != 1:
        raise NativeError(
            f"{op}: {argument} has strides {t.stride()}, the kernel needs consecutive channels"
        )
    return (address, *t.stride()[:3], t.shape[2])


def _flat(
    op: str, lib: Library, argument: str, t: Tensor | None, dtype: torch.dtype, shape: Sequence[int]
) -> int:
    """Address of a contiguous tensor, 0 for None."""
    if t is None:
        return 0
    address = guard(op, argument, t, lib.device, (dtype,))
    if tuple(t.shape) != tuple(shape) or not t.is_contiguous():
        raise NativeError(
            f"{op}: {argument} has shape {tuple(t.shape)} and strides {t.stride()}, "
            f"the kernel needs a contiguous {tuple(shape)}"
        )
    return address


def _sizes(op: str, q: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int, int]:
    """Batch, query heads, key heads, channels and value channels."""
    for argument, t in (("q", q), ("keys", key), ("values", value)):
        if t.dim() != 4:
            raise NativeError(f"{op}: {argument} has {t.dim()} dimensions, the kernel needs 4")
    sizes = (*q.shape[:2], key.shape[1], q.shape[3], value.shape[3])
    if not all(1 <= channels <= MAX_CHANNELS for channels in sizes[3:]):
        raise NativeError(f"{op}: head dimensions {sizes[3:]}, the kernel has 1 to {MAX_CHANNELS}")
    return sizes


def _windows(op: str, window: Sequence[int], sets: int) -> list[int]:
    if len(window) not in (0, sets):
        raise NativeError(f"{op}: {len(window)} windows for {sets} key sets")
    return list(window) or [0] * sets


def _attention_table(
    op: str, lib: Library, q: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]
) -> tuple[tuple[int, int, int, int, int], list[tuple[int, ...]]]:
    guard(op, "q", q, lib.device, tuple(DTYPES))
    b, hq, hkv, d, dv = sizes = _sizes(op, q, keys[0], values[0])
    rows = [_operand(op, lib, "q", q, q.dtype, (b, hq, q.shape[2], d))]
    for name, tensors, channels in (("k", keys, d), ("v", values, dv)):
        for i, (t, k) in enumerate(zip(tensors, keys, strict=True), 1):
            shape = (b, hkv, k.shape[2], channels)
            rows.append(_operand(op, lib, f"{name}{i}", t, q.dtype, shape))
    return sizes, rows


def attention(
    backend: str, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, mask1: Tensor | None,
    mask2: Tensor | None, out: Tensor, lse: Tensor, scale: float, causal: bool,
    window: Sequence[int], form: str = "kronecker",
) -> None:  # fmt: skip
    """out (B, Hq, N, Dv) and lse (B, Hq, N) of exact attention of order 3."""
    lib, op = library(backend), "kronecker_attention"
    sizes, rows = _attention_table(op, lib, q, (k1, k2), (v1, v2))
    batch, heads, n, dv = *q.shape[:3], v1.shape[3]
    rows.append(_operand(op, lib, "out", out, q.dtype, (batch, heads, n, dv)))
    table = torch.tensor(rows)
    masks = (
        _flat(op, lib, "mask1", mask1, torch.bool, (batch, k1.shape[2])),
        _flat(op, lib, "mask2", mask2, torch.bool, (batch, k2.shape[2])),
    )
    result = _flat(op, lib, "lse", lse, accumulator(q.dtype), (batch, heads, n))
    windows = _windows(op, window, 2)
    lib.call(
        op, q, DTYPES[q.dtype], *sizes, scale, causal, FORMS[form], table.data_ptr(), *masks,
        *windows, result,
    )  # fmt: skip


def attention_bwd(
    backend: str, dout: Tensor, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor,
    lse: Tensor, delta: Tensor, mask1: Tensor | None, mask2: Tensor | None, dq: Tensor,
    dk1: Tensor, dk2: Tensor, dv1: Tensor, dv2: Tensor, scale: float, causal: bool,
    window: Sequence[int], form: str = "kronecker",
) -> None:  # fmt: skip
    """All five gradients; see ``reference.attention_gradients``."""
    lib, op = library(backend), "kronecker_attention_backward"
    sizes, rows = _attention_table(op, lib, q, (k1, k2), (v1, v2))
    batch, heads, n, dv = *q.shape[:3], v1.shape[3]
    rows.append(_operand(op, lib, "dout", dout, q.dtype, (batch, heads, n, dv)))
    gradients = {"dq": dq, "dk1": dk1, "dk2": dk2, "dv1": dv1, "dv2": dv2}
    for (name, t), like in zip(gradients.items(), (q, k1, k2, v1, v2), strict=True):
        rows.append(_operand(op, lib, name, t, q.dtype, like.shape))
    table = torch.tensor(rows)
    addresses = (
        _flat(op, lib, "lse", lse, accumulator(q.dtype), (batch, heads, n)),
        _flat(op, lib, "delta", delta, accumulator(q.dtype), (batch, heads, n)),
    )
    masks = (
        _flat(op, lib, "mask1", mask1, torch.bool, (batch, k1.shape[2])),
        _flat(op, lib, "mask2", mask2, torch.bool, (batch, k2.shape[2])),
    )
    windows = _windows(op, window, 2)
    lib.call(
        op, q, DTYPES[q.dtype], *sizes, scale, causal, FORMS[form], table.data_ptr(), *masks,
        *windows, *addresses,
    )  # fmt: skip


class _PolynomialTables:
    """Tables of the operands, masks and windows of a polynomial kernel, kept alive together."""

    def __init__(
        self, op: str, lib: Library, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
        masks: Sequence[Tensor], window: Sequence[int], gradients: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        sets = len(keys)
        if not 1 <= sets <= MAX_SETS or len(values) != sets or len(masks) not in (0, sets):
            raise NativeError(
                f"{op}: {sets} key sets, {len(values)} value sets and {len(masks)} masks; the "
                f"kernel takes 1 to {MAX_SETS} of each"
            )
        guard(op, "q", q, lib.device, tuple(DTYPES))
        b, hq, hkv, d, dv = self.sizes = _sizes(op, q, keys[0], values[0])
        rows = [_operand(op, lib, "q", q, q.dtype, (b, hq, q.shape[2], d))]
        for name, tensors, channels in (("keys", keys, d), ("values", values, dv)):
            for i, (t, k) in enumerate(zip(tensors, keys, strict=True)):
                shape = (b, hkv, k.shape[2], channels)
                rows.append(_operand(op, lib, f"{name}[{i}]", t, q.dtype, shape))
        likes = (q, *keys, *values) if gradients else ()
        for i, (t, like) in enumerate(zip(gradients, likes, strict=True)):
            rows.append(_operand(op, lib, f"gradients[{i}]", t, q.dtype, like.shape))
        addresses = [
            _flat(op, lib, f"masks[{i}]", m, torch.bool, (b, k.shape[2]))
            for i, (m, k) in enumerate(zip(masks, keys, strict=bool(masks)))
        ]
        self.operands = torch.tensor(rows)
        self.masks = torch.tensor(addresses, dtype=torch.int64)
        self.windows = torch.tensor(_windows(op, window, sets))

    def addresses(self) -> tuple[int, int, int]:
        masks = self.masks.data_ptr() if self.masks.numel() else 0
        return self.operands.data_ptr(), masks, self.windows.data_ptr()


def _degree(op: str, lib: Library, coefficients: Tensor, q: Tensor) -> tuple[int, int]:
    degree = coefficients.shape[-1] - 1
    if not 0 <= degree <= MAX_DEGREE:
        raise NativeError(f"{op}: degree {degree}, the kernel has 0 to {MAX_DEGREE}")
    shape = (*q.shape[:2], degree + 1)
    return degree, _flat(op, lib, "coefficients", coefficients, accumulator(q.dtype), shape)


def polynomial(
    backend: str, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
    masks: Sequence[Tensor], coefficients: Tensor, numerator: Tensor, denominator: Tensor,
    scale: float, causal: bool, window: Sequence[int],
) -> None:  # fmt: skip
    """numerator (B, Hq, N, Dv) and denominator (B, Hq, N); see ``reference.polynomial``."""
    lib, op = library(backend), "kronecker_polynomial"
    tables = _PolynomialTables(op, lib, q, keys, values, masks, window)
    degree, weights = _degree(op, lib, coefficients, q)
    kind, rows = accumulator(q.dtype), tuple(q.shape[:3])
    results = (
        _flat(op, lib, "numerator", numerator, kind, (*rows, values[0].shape[3])),
        _flat(op, lib, "denominator", denominator, kind, rows),
    )
    lib.call(
        op, q, DTYPES[q.dtype], *tables.sizes, scale, causal, len(keys), degree,
        *tables.addresses(), weights, *results,
    )  # fmt: skip


def polynomial_bwd(
    backend: str, dnumerator: Tensor, ddenominator: Tensor, q: Tensor, keys: Sequence[Tensor],
    values: Sequence[Tensor], masks: Sequence[Tensor], coefficients: Tensor, dq: Tensor,
    dkeys: Sequence[Tensor], dvalues: Sequence[Tensor], scale: float, causal: bool,
    window: Sequence[int],
) -> None:  # fmt: skip
    """Gradients of q, keys and values; coefficients are constants."""
    lib, op = library(backend), "kronecker_polynomial_backward"
    gradients = (dq, *dkeys, *dvalues)
    tables = _PolynomialTables(op, lib, q, keys, values, masks, window, gradients)
    degree, weights = _degree(op, lib, coefficients, q)
    kind, rows = accumulator(q.dtype), tuple(q.shape[:3])
    upstream = (
        _flat(op, lib, "dnumerator", dnumerator, kind, (*rows, values[0].shape[3])),
        _flat(op, lib, "ddenominator", ddenominator, kind, rows),
    )
    lib.call(
        op, q, DTYPES[q.dtype], *tables.sizes, scale, causal, len(keys), degree,
        *tables.addresses(), weights, *upstream,
    )  # fmt: skip
