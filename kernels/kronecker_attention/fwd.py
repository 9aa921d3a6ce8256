"""Launchers of the forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..common.launch import device_of
from . import launch
from . import polynomial as method

if TYPE_CHECKING:
    from torch import Tensor


def _forward(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, mask1: Tensor | None,
             mask2: Tensor | None, out: Tensor, lse: Tensor, scale: float, causal: bool,
             window: Sequence[int], kind: str) -> None:  # fmt: skip
    launch.check_sizes(q, (k1, k2))
    pairs = launch.Pairs.of((k1, k2), (v1, v2), (mask1, mask2), causal, window)
    with device_of(q):
        launch.forward(q, pairs, None, out, lse, scale, kind)


def attention(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, mask1: Tensor | None,
              mask2: Tensor | None, out: Tensor, lse: Tensor, scale: float, causal: bool,
              window: Sequence[int]) -> None:  # fmt: skip
    """``reference.attention`` into out (B, Hq, N, Dv) and lse (B, Hq, N).

    The last dimension of every tensor is contiguous, masks and lse are contiguous; D, Dv <= 128.
    4 D FLOPs a triple on matrix units; memory beside inputs and outputs: O(n).
    """
    _forward(q, k1, k2, v1, v2, mask1, mask2, out, lse, scale, causal, window, "trilinear")


def strassen(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, mask1: Tensor | None,
             mask2: Tensor | None, out: Tensor, lse: Tensor, scale: float, causal: bool,
             window: Sequence[int]) -> None:  # fmt: skip
    """``reference.strassen``, as ``attention``."""
    _forward(q, k1, k2, v1, v2, mask1, mask2, out, lse, scale, causal, window, "strassen")


def polynomial(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
               masks: Sequence[Tensor], coefficients: Tensor, numerator: Tensor,
               denominator: Tensor, scale: float, causal: bool,
               window: Sequence[int]) -> None:  # fmt: skip
    """``reference.polynomial`` into numerator (B, Hq, N, Dv) and denominator (B, Hq, N).

    Raises:
        ValueError: causal or windowed of order above 3.
    """
    launch.check_sizes(q, keys)
    with device_of(q):
        method.polynomial(q, keys, values, masks, coefficients, numerator, denominator, scale,
                          causal, window)  # fmt: skip
