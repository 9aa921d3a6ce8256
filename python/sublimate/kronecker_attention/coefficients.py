"""Coefficients of the polynomial that stands for the exponential. Imports torch alone.

Taylor: sum_j x^j / j!, even degrees positive everywhere. Hermite: the least-squares fit of exp
under logits ~ N(0, sigma^2), sum_j sigma^j / j! He_j(x / sigma) up to a factor that cancels in the
softmax; sigma per head from second moments. Both have the derivative p_g' = p_{g-1}.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Masks = Sequence[Tensor | None]

#: Part of the largest sigma with a positive polynomial that is used: there, p would touch 0.
_MARGIN = 0.97


def taylor(degree: int) -> list[float]:
    return [1 / math.factorial(j) for j in range(degree + 1)]


def hermite(degree: int, sigma: Tensor) -> Tensor:
    """(..., g + 1): coefficients of x^j, c_j = 1/j! sum_i (-sigma^2 / 2)^i / i!, j + 2i <= g."""
    half = sigma.square() * -0.5
    columns = []
    for j in range(degree + 1):
        term, total = torch.ones_like(half), torch.zeros_like(half)
        for i in range((degree - j) // 2 + 1):
            total = total + term
            term = term * half / (i + 1)
        columns.append(total / math.factorial(j))
    return torch.stack(columns, -1)


@torch.compiler.assume_constant_result
def widest_sigma(degree: int) -> float:
    """The sigma up to which the Hermite polynomial of an even degree has no real root.

    Odd degrees rise everywhere under the limit of the degree below. Degree 2: 0.97, 4: 0.88.
    """
    return _widest_sigma(degree - degree % 2)


@functools.cache
def _widest_sigma(even: int) -> float:
    """By bisection: the minimum of p, at a root of p' = p_{g-1}, falls as sigma grows."""
    import numpy as np

    if even == 0:
        return math.inf

    def lowest(sigma: float) -> float:
        c = hermite(even, torch.tensor(sigma, dtype=torch.float64)).tolist()
        p = np.polynomial.Polynomial(c)
        roots = p.deriv().roots()
        return min(float(p(r.real)) for r in roots if abs(r.imag) < 1e-6 * (1 + abs(r)))

    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lowest(middle) > 0 else (low, middle)
    return low * _MARGIN


def moments(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, D, D): mean of x x^T over the rows (B, H, N, D), over allowed ones if masked."""
    x = x.double()
    if mask is None:
        return x.transpose(-1, -2) @ x / max(1, x.shape[2])
    weight = mask[:, None, :, None].to(x.dtype)
    x = torch.where(mask[:, None, :, None], x, torch.zeros_like(x))
    return x.transpose(-1, -2) @ x / weight.sum(2, keepdim=True).clamp_min(1)


def logit_deviation(q: Tensor, keys: Sequence[Tensor], masks: Masks | None, scale: float) -> Tensor:
    """(B, Hq), float64: root mean square of the logits over all tuples, in O(N D^2).

    mean X^2 = scale^2 sum_ab Mq[a, b] M1[a, b] M2[a, b] ..., M the second moments of each factor.
    Causality and windows are not looked at.
    """
    product = moments(q, None)
    groups = q.shape[1] // keys[0].shape[1]
    for k, mask in zip(keys, masks or [None] * len(keys), strict=True):
        product = product * moments(k, mask).repeat_interleave(groups, 1)
    return (product.sum((-1, -2)).clamp_min(0)).sqrt() * abs(scale)


@torch.no_grad()
def make(
    kind: str,
    degree: int,
    q: Tensor,
    keys: Sequence[Tensor],
    masks: Masks | None,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """(B, Hq, g + 1) coefficients of a named kind, constants for autograd."""
    if kind == "taylor":
        row = torch.tensor(taylor(degree), dtype=dtype, device=q.device)
        return row.expand(*q.shape[:2], degree + 1)
    sigma = logit_deviation(q, keys, masks, scale).clamp_max(widest_sigma(degree))
    return hermite(degree, sigma).to(dtype)
