"""Wrappers of the Kronecker attention kernels, by csrc/kronecker_attention/kernels.h.

Tensors have their last stride 1 (or a last dimension of at most 1); all other strides are free.
Masks are contiguous (B, M) bool. ``window`` is empty or has one entry for each key set, 0 for none.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import NativeError

#: What the polynomial kernels do: orders (key sets + 1), and the highest degree.
POLYNOMIAL_ORDERS = (3,)
HIGHEST_DEGREE = 6


def attention(
    backend: str, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, mask1: Tensor | None,
    mask2: Tensor | None, out: Tensor, lse: Tensor, scale: float, causal: bool,
    window: Sequence[int],
) -> None:  # fmt: skip
    """out (B, Hq, N, Dv) and lse (B, Hq, N) of exact attention of order 3."""
    raise NativeError("kronecker_attention_fwd: not compiled yet")


def attention_bwd(
    backend: str, dout: Tensor, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor,
    lse: Tensor, delta: Tensor, mask1: Tensor | None, mask2: Tensor | None, dq: Tensor,
    dk1: Tensor, dk2: Tensor, dv1: Tensor, dv2: Tensor, scale: float, causal: bool,
    window: Sequence[int],
) -> None:  # fmt: skip
    """All five gradients; see ``reference.attention_gradients``."""
    raise NativeError("kronecker_attention_bwd: not compiled yet")


def polynomial(
    backend: str, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
    masks: Sequence[Tensor], coefficients: Tensor, numerator: Tensor, denominator: Tensor,
    scale: float, causal: bool, window: Sequence[int],
) -> None:  # fmt: skip
    """numerator (B, Hq, N, Dv) and denominator (B, Hq, N); see ``reference.polynomial``."""
    raise NativeError("kronecker_polynomial_fwd: not compiled yet")


def polynomial_bwd(
    backend: str, dnumerator: Tensor, ddenominator: Tensor, q: Tensor, keys: Sequence[Tensor],
    values: Sequence[Tensor], masks: Sequence[Tensor], coefficients: Tensor, dq: Tensor,
    dkeys: Sequence[Tensor], dvalues: Sequence[Tensor], scale: float, causal: bool,
    window: Sequence[int],
) -> None:  # fmt: skip
    """Gradients of q, keys and values; coefficients are constants."""
    raise NativeError("kronecker_polynomial_bwd: not compiled yet")
