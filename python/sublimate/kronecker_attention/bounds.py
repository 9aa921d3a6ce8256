"""How far the polynomial method can be off, and how far it is: hard bound, and sampled estimate.

The logits of a row lie within +-R by Hoelder's inequality with as many factors as there are:
|sum_a q_a k1_a k2_a| <= |q|_3 |k1|_3 |k2|_3 (order k: k-norms). On [-R, R] the ratio
p(x) exp(-x) is extreme at the ends and where its derivative -exp(-x) (p_g - p_{g-1})(x) vanishes,
at the zeros of p's last term: all known, so that e is the exact extreme over [-R, R].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import arguments, reference
from . import coefficients as polynomials

Masks = Sequence[Tensor | None]
#: Relative rounding error of the ratio p(x) exp(-x) in float64, generously.
_ROUNDING = 32 * torch.finfo(torch.float64).eps
#: Logits of one piece of a sampled row.
CHUNK = 2**22


@dataclass(frozen=True)
class Certificate:
    """What is certain about the polynomial method on given queries and keys.

    Attributes:
        radius: (B, Hq, N) float64: no logit of the row is larger in magnitude.
        relative: (B, Hq, N) float64: e, such that each weight p(X) is within a factor 1 +- e of
            exp(X), after a factor common to the row, which cancels in the softmax; 1 or more where
            a weight may be 0 or negative.
        positive: (B, Hq, N) bool: whether all weights are > 0, so that the denominator is too.
    """

    radius: Tensor
    relative: Tensor
    positive: Tensor

    def _check(self, values: Any) -> None:
        """One (B, Hkv, M, Dv) for each key set, as far as the certificate knows them."""
        if not isinstance(values, (list, tuple)) or not values:
            raise _checks.fail_type("values", "a list of tensors, one for each key set", values)
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

    def output(self, values: Sequence[Tensor]) -> Tensor:
        """(B, Hq, N): no element of the row's output is off by more; infinite where e >= 1.

        min(2 e / (1 - e), 2) times the largest product of magnitudes of values, in exact
        arithmetic: rounding comes on top.
        """
        self._check(values)
        size = values[0].new_ones((), dtype=torch.float64)
        for v in values:
            if v.shape[2] == 0:
                return torch.zeros_like(self.relative)
            size = size * v.detach().double().abs().amax(2)  # [B, Hkv, Dv]
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


def bound(radius: Tensor, c: Tensor, sigma: Tensor | None) -> Certificate:
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
    return Certificate(radius, e, good)


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
    if masks is not None:
        arguments.check_masks(masks, keys, listed=True)
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
    if kind == "taylor":
        c = polynomials.make(kind, degree, q, keys, masks, scale, torch.float64)
        return bound(radius, c, None)
    sigma = polynomials.logit_deviation(q, keys, masks, scale)
    sigma = sigma.clamp_max(polynomials.widest_sigma(degree))
    return bound(radius, polynomials.hermite(degree, sigma), sigma)


@dataclass(frozen=True)
class Estimate:
    """Error of the polynomial method on sampled rows.

    Attributes:
        relative: norm of the error by the norm of the output, over the rows.
        size: root mean square of the exact output's elements.
    """

    relative: float
    size: float


@torch.no_grad()
def sample_error(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Masks | None,
    c: Tensor,
    *,
    scale: float,
    causal: bool,
    window: Sequence[int],
    rows: int,
) -> Estimate:
    """Exact and polynomial output of evenly spaced rows, from the same logits, chunk by chunk."""
    n = q.shape[2]
    count = min(rows, n)
    grouped, key_sets, value_sets, masks = reference.prepare(q.double(), keys, values, masks)
    b, hkv, g = grouped.shape[:3]
    c = c.double().reshape(b, hkv, g, 1, *(1,) * len(keys), c.shape[-1])
    widths = reference.window_widths(window, len(keys))
    rest = math.prod(k.shape[2] for k in keys[1:])
    step = max(1, CHUNK // max(1, b * hkv * g * rest))
    error = total = grouped.new_zeros(())
    for at in range(count):
        i = ((2 * at + 1) * n) // (2 * count)
        allow = [
            reference.allowed((i, i + 1), (0, k.shape[2]), m, causal, w, q.device)
            for k, m, w in zip(keys, masks, widths, strict=True)
        ]
        row = grouped[:, :, :, i : i + 1] * scale
        exact, near = _Sums(row, value_sets[0]), _Sums(row, value_sets[0])
        for start in range(0, keys[0].shape[2], step):
            piece = slice(start, start + step)
            some = [key_sets[0][:, :, piece], *key_sets[1:]]
            first = allow[0]
            seen = [None if first is None else first[..., piece], *allow[1:]]
            plain = reference.fold(row, some)
            logits = reference.mask_logits(plain, seen)
            weight = torch.zeros_like(plain)
            for j in reversed(range(c.shape[-1])):
                weight = weight * plain + c[..., j]
            weight = torch.where(logits == -math.inf, torch.zeros_like(weight), weight)
            parts = [value_sets[0][:, :, piece], *value_sets[1:]]
            exact.add(*_exponentials(logits), parts)
            near.add(weight, torch.zeros_like(exact.top), parts)
        truth = exact.output()
        error = error + (near.output() - truth).square().sum()
        total = total + truth.square().sum()
    elements = max(1, b * hkv * g * count * values[0].shape[-1])
    relative = float((error / total).sqrt()) if float(total) > 0 else 0.0
    return Estimate(relative, math.sqrt(float(total) / elements))


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - top), and top: the largest logit of each row, 0 where there is none."""
    if logits.numel() == 0:  # no key to read: no row has a largest logit
        return logits, logits.new_full(logits.shape[:4], -1e300)
    top = logits.flatten(4).amax(-1)
    top = torch.where(top == -math.inf, torch.full_like(top, -1e300), top)
    return torch.exp(logits - top.reshape(*top.shape, *(1,) * (logits.dim() - 4))), top


class _Sums:
    """Running numerator and denominator of one row, relative to exp(top)."""

    def __init__(self, row: Tensor, values: Tensor) -> None:
        self.numerator = row.new_zeros(*row.shape[:4], values.shape[-1])
        self.denominator = row.new_zeros(row.shape[:4])
        self.top = row.new_full(row.shape[:4], -1e300)

    def add(self, weight: Tensor, top: Tensor, values: Sequence[Tensor]) -> None:
        higher = torch.maximum(self.top, top)
        old, new = torch.exp(self.top - higher), torch.exp(top - higher)
        part = reference.contract(weight, values)
        self.numerator = self.numerator * old.unsqueeze(-1) + part * new.unsqueeze(-1)
        self.denominator = self.denominator * old + weight.flatten(4).sum(-1) * new
        self.top = higher

    def output(self) -> Tensor:
        return reference.divide(self.numerator, self.denominator, torch.float64)


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
        rows: how many rows, evenly spaced: O(rows M^2 D) time a head.

    Returns:
        ||O~ - O|| / ||O|| over these rows, in exact arithmetic. Reads the result on the host.

    Raises:
        TypeError, ValueError: a bad argument.
    """
    arguments.check_lists(keys, values)
    arguments.check_tensors(q, keys, values, listed=True)
    _checks.integer_between("degree", degree, 1, arguments.HIGHEST_DEGREE)
    _checks.flags(causal=causal)
    _checks.one_of("coefficients", coefficients, arguments.COEFFICIENTS)
    _checks.integer_between("rows", rows, 1, 2**20)
    if masks is not None:
        arguments.check_masks(masks, keys, listed=True)
    scale = arguments.check_scale(scale, q.shape[-1])
    widths = arguments.check_window(window, len(keys))
    c = polynomials.make(coefficients, degree, q, keys, masks, scale, torch.float64)
    return sample_error(
        q, keys, values, masks, c, scale=scale, causal=causal, window=widths, rows=rows
    ).relative
