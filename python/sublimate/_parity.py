"""Holding a kernel to the truth: errors, limits and verdicts shared by check, bench and demo.

The truth is computed in float64 from the inputs as they are, already rounded to their dtype. A
result passes if its largest error is at most 2 (forward) or 3 (gradient) times that of plain
PyTorch in the same dtype, plus a floor of two units in the last place of float32 at the largest
value, and if its relative RMS error is under ``RMS_LIMITS``. For a float64 result the truth has
rounding errors of its own size, so the floor is sixteen units. Codes and labels must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: dtype -> (forward, gradient): largest relative RMS error.
RMS_LIMITS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-6, 3e-6),
    torch.float16: (2e-3, 4e-3),
    torch.bfloat16: (8e-3, 1.6e-2),
}


@dataclass(frozen=True)
class Measurement:
    """One quantity of one call, and what it may be.

    Attributes:
        variant: the options of the call, e.g. "3 bits".
        quantity: "forward", "gradient", "codes", "kept bytes", "mean gradient".
        max_error, max_limit: largest error (or the count, or the statistic) and its limit.
        rms_error, rms_limit: relative RMS error and its limit; 0 and inf where it means nothing.
    """

    variant: str
    quantity: str
    max_error: float
    max_limit: float
    rms_error: float = 0.0
    rms_limit: float = math.inf

    @property
    def passed(self) -> bool:
        """Whether both errors are within their limits; NaN is not."""
        return self.max_error <= self.max_limit and self.rms_error <= self.rms_limit

    @property
    def strain(self) -> float:
        """How much of the limit is used: 1 is at the limit, inf is far over it or NaN."""
        if math.isnan(self.max_error) or math.isnan(self.rms_error):
            return math.inf
        parts = [self.rms_error / self.rms_limit]
        if self.max_limit > 0:
            parts.append(self.max_error / self.max_limit)
        elif self.max_error > 0:
            parts.append(math.inf)
        return max(parts)


@dataclass(frozen=True)
class Case:
    """One op on one backend in one dtype; ``run`` measures all its variants."""

    family: str
    op: str
    backend: str
    device: str
    dtype: torch.dtype
    run: Callable[[], list[Measurement]]


def compare(
    variant: str, quantity: str, got: Tensor, eager: Tensor, truth: Tensor, *, backward: bool
) -> Measurement:
    """Error of ``got`` against ``truth``, limited by that of ``eager``.

    Args:
        got: the result of the kernel, any dtype and device.
        eager: plain PyTorch's result in the same dtype.
        truth: float64, same shape. Where it is NaN or infinite, ``got`` must be the same.
    """
    rms_limit = RMS_LIMITS[got.dtype][backward]
    result, plain, truth = (t.detach().cpu().double() for t in (got, eager, truth))
    if result.shape != truth.shape:
        return Measurement(variant, quantity, math.inf, 0.0, math.inf, rms_limit)
    finite = truth.isfinite()
    odd = (result == truth) | (result.isnan() & truth.isnan())
    if not bool(odd[~finite].all()):
        return Measurement(variant, quantity, math.inf, 0.0, math.inf, rms_limit)
    if not bool(finite.any()):
        return Measurement(variant, quantity, 0.0, 0.0, 0.0, rms_limit)
    result, plain, truth = result[finite], plain[finite], truth[finite]
    error = (result - truth).abs()
    wide = got.dtype == torch.float64
    unit = torch.finfo(torch.float64 if wide else torch.float32).eps
    floor = (16 if wide else 2) * unit * float(truth.abs().max())
    limit = (3 if backward else 2) * float((plain - truth).abs().max()) + floor
    size = float(truth.square().mean().sqrt())
    rms = float(error.square().mean().sqrt())
    # max() of a tensor with NaN is NaN, which passes no limit.
    return Measurement(
        variant, quantity, float(error.max()), limit, rms / size if size else rms, rms_limit
    )


def equal(variant: str, quantity: str, wrong: Tensor | int) -> Measurement:
    """Verdict on things that must agree exactly: the number that do not (or a mask of them)."""
    count = int(wrong.sum()) if isinstance(wrong, Tensor) else wrong
    return Measurement(variant, quantity, float(count), 0.0)
