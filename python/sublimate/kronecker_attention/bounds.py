"""How far the polynomial method can be off, and how far it is: hard bound, and sampled estimate.

The logits of a row lie within +-R by Hoelder's inequality with as many factors as there are:
|sum_a q_a k1_a k2_a| <= |q|_3 |k1|_3 |k2|_3 (order k: k-norms). On [-R, R] the ratio
p(x) exp(-x) is extreme at the ends and where its derivative -exp(-x) (p_g - p_{g-1})(x) vanishes,
at the zeros of p's last term: all known, so that e is the exact extreme over [-R, R].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import arguments, reference
from . import coefficients as polynomials
from .sampling import Sample

Masks = Sequence[Tensor | None]
#: Relative rounding error of the ratio p(x) exp(-x) in float64, generously.
_ROUNDING = 32 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Certificate:
    """What is certain about the polynomial method on given queries and keys.

    Attributes:
        radius: (B, Hq, N) float64: no logit of the row is larger in magnitude.
        relative: (B, Hq, N) float64: e, such that each weight p(X) is within a factor 1 +- e of
            exp(X), after a factor common to the row, which cancels in the softmax; 1 or more where
            a weight may be 0 or negative.
        positive: (B, Hq, N) bool: whether all weights are > 0, so that the denominator is too.
        masks: of the key sets, a mask or None for each.
    """

    radius: Tensor
    relative: Tensor
    positive: Tensor
    masks: tuple[Tensor | None, ...] = field(repr=False)

    def _check(self, values: Any) -> None:
        """One (B, Hkv, M, Dv) for each key set, as far as the certificate knows them."""
        if not isinstance(values, (list, tuple)):
            raise _checks.fail_type("values", "a list of tensors, one for each key set", values)
        if len(values) != len(self.masks):
            expected = f"one for each of {len(self.masks)} key sets"
            raise _checks.fail_value("values", expected, len(values))
        batch, heads, _ = self.relative.shape
        for i, v in enumerate(values):
            name = f"values[{i}]"
            _checks.floating_tensor(name, v)
            if v.device != self.relative.device:
                raise _checks.fail_value(name, f"a tensor on {self.relative.device}", v.device)
            shared = v.shape[1] if v.dim() == 4 else 0
            if not shared or heads % shared or v.shape[0] != batch or v.shape[3] == 0:
                expected = f"shape ({batch}, heads that divide {heads}, length, dimension)"
                raise _checks.fail_value(name, expected, tuple(v.shape))
            if (v.shape[1], v.shape[3]) != (values[0].shape[1], values[0].shape[3]):
                expected = "the heads and dimension of values[0]"
                raise _checks.fail_value(name, expected, tuple(v.shape))
            mask = self.masks[i]
            if mask is not None and mask.shape[1] != v.shape[2]:
                expected = f"the length of masks[{i}], {mask.shape[1]}"
                raise _checks.fail_value(name, expected, v.shape[2])

    def output(self, values: Sequence[Tensor]) -> Tensor:
        """(B, Hq, N): no element of the row's output is off by more; infinite where e >= 1.

        min(2 e / (1 - e), 2) times the largest product of magnitudes of values, in exact
        arithmetic: rounding comes on top.
        """
        self._check(values)
        size = values[0].new_ones((), dtype=torch.float64)
        for v, mask in zip(values, self.masks, strict=True):
            if v.shape[2] == 0:
                return torch.zeros_like(self.relative)
            read = v.detach().double().abs()
            if mask is not None:
                read = torch.where(mask[:, None, :, None], read, torch.zeros_like(read))
            size = size * read.amax(2)  # [B, Hkv, Dv]
        size = size.amax(-1)
        size = size.repeat_interleave(self.relative.shape[1] // size.shape[1], 1).unsqueeze(-1)
        e = self.relative
        # Positive weights average the values: 2 sizes apart at most, however wrong they are.
        bound = (2 * e / (1 - e)).clamp_max(2) * size
        return torch.where(e < 1, bound, torch.full_like(bound, math.inf))


def row_radius(
    q: Tensor,
    keys: Sequence[Tensor],
    scale: float,
    *,
    masks: Masks | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> Tensor:
    """(B, Hq, N) float64: |scale| |q_i|_k times the largest k-norms of the keys a row may read.

    O(N D). Causal and windowed sets take running maxima; where a window begins is not looked at.
    """
    order = len(keys) + 1
    radius = _norms(q, order) * abs(scale)
    groups = q.shape[1] // keys[0].shape[1]
    widths = reference.window_widths(window, len(keys))
    for k, mask, w in zip(keys, masks or [None] * len(keys), widths, strict=True):
        norms = _norms(k, order)
        if mask is not None:
            norms = torch.where(mask[:, None], norms, torch.zeros_like(norms))
        if norms.shape[2] == 0:
            return torch.zeros_like(radius)
        if causal or w:
            running = norms.cummax(2).values
            at = torch.arange(q.shape[2], device=q.device).clamp_max(norms.shape[2] - 1)
            largest = running[:, :, at]
        else:
            largest = norms.amax(2, keepdim=True)
        radius = radius * largest.repeat_interleave(groups, 1)
    return radius * (1 + _ROUNDING * q.shape[-1])


def _norms(x: Tensor, order: int) -> Tensor:
    return x.detach().double().abs().pow(order).sum(-1).pow(1 / order)


def _extremes(radius: Tensor, c: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest p(x) exp(-x) on [-R, R]; zeros (..., g) are where it may turn."""
    r = radius.unsqueeze(-1)
    x = torch.cat((-r, r, torch.maximum(torch.minimum(zeros, r), -r)), -1)
    p = torch.zeros_like(x)
    for j in reversed(range(c.shape[-1])):
        p = p * x + c[..., j : j + 1]
    ratio = p * torch.exp(-x)
    return ratio.amin(-1), ratio.amax(-1)


def bound(
    radius: Tensor, c: Tensor, sigma: Tensor | None, masks: tuple[Tensor | None, ...]
) -> Certificate:
    """The certificate of rows (B, Hq, N) of this radius, for coefficients (B, Hq, g + 1).

    Args:
        sigma: (B, Hq) of Hermite's coefficients; None for Taylor's.
    """
    degree = c.shape[-1] - 1
    c = c.double().unsqueeze(2)
    # The last term of p is x^g / g! (Taylor) or sigma^g / g! He_g(x / sigma).
    zeros = torch.zeros_like(radius).unsqueeze(-1).repeat(1, 1, 1, degree)
    if sigma is not None:
        unit = radius.new_tensor(_hermite_zeros(degree))
        zeros = zeros + sigma.double()[:, :, None, None] * unit
    lowest, highest = _extremes(radius, c, zeros)
    e = (highest - lowest) / (highest + lowest) + _ROUNDING
    good = lowest > 0
    e = torch.where(good, e, torch.full_like(e, math.inf))
    # exp(-R) below the smallest number: nothing is known.
    e = torch.where(e.isnan(), torch.full_like(e, math.inf), e)
    return Certificate(radius, e, good, masks)


def _hermite_zeros(degree: int) -> list[float]:
    """Zeros of He_g, the eigenvalues of its Jacobi matrix."""
    beside = torch.arange(1, degree, dtype=torch.float64).sqrt()
    matrix = torch.diag(beside, 1) + torch.diag(beside, -1)
    found: list[float] = torch.linalg.eigvalsh(matrix).tolist()
    return found


@torch.no_grad()
def certificate(
    q: Tensor,
    keys: Sequence[Tensor],
    scale: float | None = None,
    degree: int = 2,
    *,
    coefficients: str = "taylor",
    masks: Masks | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> Certificate:
    """Bounds the error of the polynomial method of a degree, before it runs.

    Args:
        q: (B, Hq, N, D). keys: a list of (B, Hkv, M, D).
        scale: of the logits; None for 1 / sqrt(D).
        degree: of the polynomial. coefficients: "taylor" or "hermite".
        masks: a list of (B, M) bool or None. causal, window: as in ``kronecker_attention``.

    Returns:
        A ``Certificate`` with the radius of each row, the relative error of its weights, and
        ``output(values)``. O(N D) time; float64 throughout.

    Raises:
        TypeError, ValueError: a bad argument.
    """
    arguments.check_lists(keys, keys)
    arguments.check_tensors(q, keys, keys, listed=True)
    _checks.integer_between("degree", degree, 1, arguments.HIGHEST_DEGREE)
    _checks.flags(causal=causal)
    _checks.one_of("coefficients", coefficients, arguments.COEFFICIENTS)
    masks = arguments.check_mask_list(masks, keys)
    scale = arguments.check_scale(scale, q.shape[-1])
    widths = arguments.check_window(window, len(keys))
    radius = row_radius(q, keys, scale, masks=masks, causal=causal, window=widths)
    return with_coefficients(q, keys, masks, scale, degree, coefficients, radius)


def with_coefficients(
    q: Tensor,
    keys: Sequence[Tensor],
    masks: Masks | None,
    scale: float,
    degree: int,
    kind: str,
    radius: Tensor,
) -> Certificate:
    every = tuple(masks) if masks else (None,) * len(keys)
    if kind == "taylor":
        c = polynomials.make(kind, degree, q, keys, masks, scale, torch.float64)
        return bound(radius, c, None, every)
    sigma = polynomials.logit_deviation(q, keys, masks, scale)
    sigma = sigma.clamp_max(polynomials.widest_sigma(degree))
    return bound(radius, polynomials.hermite(degree, sigma), sigma, every)


@torch.no_grad()
def estimated_error(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float | None = None,
    degree: int = 2,
    *,
    coefficients: str = "taylor",
    masks: Masks | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    rows: int = 16,
) -> float:
    """Relative error of the polynomial method's output, from rows evaluated exactly.

    Args:
        q, keys, values: as in ``polynomial_attention``; the rest as in ``certificate``.
        rows: how many rows of each head: O(rows M^2 D) time.

    Returns:
        ||O~ - O|| / ||O|| from these rows, in exact arithmetic. Reads the result on the host.

    Raises:
        TypeError, ValueError: a bad argument.
    """
    arguments.check_lists(keys, values)
    arguments.check_tensors(q, keys, values, listed=True)
    _checks.readable("q", q)
    _checks.integer_between("degree", degree, 1, arguments.HIGHEST_DEGREE)
    _checks.flags(causal=causal)
    _checks.one_of("coefficients", coefficients, arguments.COEFFICIENTS)
    _checks.integer_between("rows", rows, 1, 2**20)
    masks = arguments.check_mask_list(masks, keys)
    scale = arguments.check_scale(scale, q.shape[-1])
    widths = arguments.check_window(window, len(keys))
    c = polynomials.make(coefficients, degree, q, keys, masks, scale, torch.float64)
    sample = Sample(q, keys, values, masks, scale=scale, causal=causal, window=widths, rows=rows)
    return sample.error(c)
