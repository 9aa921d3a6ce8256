"""Launchers of the backward passes. Deterministic: no atomics, every sum in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..common.launch import device_of
from . import launch
from . import polynomial as method

if TYPE_CHECKING:
    from torch import Tensor


def _backward(dout: Tensor, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, lse: Tensor,
              delta: Tensor, mask1: Tensor | None, mask2: Tensor | None, dq: Tensor,
              dk1: Tensor, dk2: Tensor, dv1: Tensor, dv2: Tensor, scale: float, causal: bool,
              window: Sequence[int], kind: str) -> None:  # fmt: skip
    launch.check_sizes(q, (k1, k2))
    pairs = launch.Pairs.of((k1, k2), (v1, v2), (mask1, mask2), causal, window)
    with device_of(q):
        launch.backward(dout, q, pairs, lse, delta, None, dq, (dk1, dk2, dv1, dv2), scale, kind)


def attention(dout: Tensor, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, lse: Tensor,
              delta: Tensor, mask1: Tensor | None, mask2: Tensor | None, dq: Tensor,
              dk1: Tensor, dk2: Tensor, dv1: Tensor, dv2: Tensor, scale: float, causal: bool,
              window: Sequence[int]) -> None:  # fmt: skip
    """``reference.attention_gradients`` into dq, dk1, dk2, dv1, dv2.

    14 D FLOPs a triple: 6 for dq, 8 for the other four. Memory beside inputs and outputs: copies of
    the key gradients in fp32, as many as fill the GPU where batch and heads do not (at most 17).
    """
    _backward(dout, q, k1, k2, v1, v2, lse, delta, mask1, mask2, dq, dk1, dk2, dv1, dv2, scale,
              causal, window, "trilinear")  # fmt: skip


def strassen(dout: Tensor, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, lse: Tensor,
             delta: Tensor, mask1: Tensor | None, mask2: Tensor | None, dq: Tensor,
             dk1: Tensor, dk2: Tensor, dv1: Tensor, dv2: Tensor, scale: float, causal: bool,
             window: Sequence[int]) -> None:  # fmt: skip
    """Gradients of ``reference.strassen``, as ``attention``."""
    _backward(dout, q, k1, k2, v1, v2, lse, delta, mask1, mask2, dq, dk1, dk2, dv1, dv2, scale,
              causal, window, "strassen")  # fmt: skip


def polynomial(dn: Tensor, dz: Tensor, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
               masks: Sequence[Tensor], coefficients: Tensor, dq: Tensor, dkeys: Sequence[Tensor],
               dvalues: Sequence[Tensor], scale: float, causal: bool,
               window: Sequence[int]) -> None:  # fmt: skip
    """Gradients of ``reference.polynomial``; dn (B, Hq, N, Dv) and dz (B, Hq, N) are contiguous.

    Raises:
        ValueError: causal or windowed of order above 3.
    """
    launch.check_sizes(q, keys)
    with device_of(q):
        method.polynomial_gradients(dn, dz, q, keys, values, masks, coefficients, dq, dkeys,
                                    dvalues, scale, causal, window)  # fmt: skip
