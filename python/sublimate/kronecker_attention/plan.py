"""Which method runs, and why: exact or polynomial, by cost, bound, estimate and tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import bounds, reference
from . import coefficients as polynomials

Masks = Sequence[Tensor | None]


@dataclass(frozen=True)
class Rates:
    """What else a forward costs, in FLOPs of the exact kernel that take as long.

    Attributes:
        exact_call, polynomial_call: a call. tuple: the exponential of one tuple.
        element: of q, a key or a value, in the polynomial method.
        sum: one of the r (Dv + 1) sums of a key head. flop: a FLOP of the polynomial kernels.
    """

    exact_call: float = 0.0
    polynomial_call: float = 0.0
    tuple: float = 0.0
    element: float = 0.0
    sum: float = 0.0
    flop: float = 1.0


#: FLOPs of the exact CPU kernel in a second, on the machine of the table below.
CPU_RATE = 213e9
#: cpu: fitted to bench/kronecker_attention/break_even.csv (two threads of an AMD EPYC, fp32).
#: The others count FLOPs alone: nothing has been measured on a GPU.
RATES = {
    "cpu": Rates(
        exact_call=0.2e-3 * CPU_RATE,
        polynomial_call=0.3e-3 * CPU_RATE,
        tuple=0.08e-9 * CPU_RATE,
        element=1.0e-9 * CPU_RATE,
        sum=1.6e-9 * CPU_RATE,
        flop=CPU_RATE / 174e9,
    ),
    "triton": Rates(),
    "reference": Rates(),
}
#: Degrees that are looked at for a tolerance.
DEGREES = (1, 2, 3, 4, 5, 6)
#: The estimate is within this factor of the true error in 95 % of cases.
ESTIMATE_FACTOR = 3.0
#: Largest rank that is looked at: beyond it, features of one key would fill a cache by themselves.
LARGEST_RANK = 2**17


@dataclass(frozen=True)
class Plan:
    """A choice of method.

    Attributes:
        method: "exact" or "polynomial". degree: of the polynomial, or None.
        predicted_cost: of a forward of all heads, in FLOPs of the backend's exact kernel that
            take as long (cpu: by measured times; others: counts of FLOPs).
        bound: largest possible error of an element of the output, infinite if unknown; 0 for exact.
        estimate: relative error of the output estimated from sampled rows, or None.
        reason: why, in words.
    """

    method: str
    degree: int | None
    predicted_cost: float
    bound: float
    estimate: float | None
    reason: str


def tuples(n: int, lengths: Sequence[int], causal: bool, window: Sequence[int]) -> float:
    """Number of tuples that are read, without regard to padding masks."""
    if not causal and not any(window):
        return float(n) * math.prod(lengths)
    end = torch.arange(1, n + 1, dtype=torch.float64)
    total = torch.ones(n, dtype=torch.float64)
    for m, w in zip(lengths, reference.window_widths(window, len(lengths)), strict=True):
        first = (end - w).clamp(0, m) if w else 0
        total *= end.clamp_max(m) - first
    return float(total.sum())


def exact_cost(
    q: Tensor, keys: Sequence[Tensor], width: int, causal: bool, window: Sequence[int], backend: str
) -> float:
    """Cost of the exact forward: 2 (D + Dv) FLOPs for each tuple, and its exponential."""
    b, h, n, d = q.shape
    count = b * h * tuples(n, [k.shape[2] for k in keys], causal, window)
    rates = RATES[backend]
    return rates.exact_call + count * (2.0 * (d + width) + rates.tuple)


def polynomial_cost(
    q: Tensor, keys: Sequence[Tensor], width: int, degree: int, ordered: bool, backend: str
) -> float:
    """Cost of the polynomial forward: 2 r (Dv + 1) FLOPs a row of each factor, and the rest."""
    b, h, n, d = q.shape
    shared = keys[0].shape[1]
    rows = h * n + shared * sum(k.shape[2] for k in keys)
    sums = reference.rank(d, degree) * (width + 1)
    rates = RATES[backend]
    every = rows * (2.0 * sums * rates.flop + (d + width) * rates.element)
    every += shared * sums * rates.sum
    return rates.polynomial_call + b * every * (2.0 if ordered else 1.0)


def choose(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Masks | None,
    *,
    tol: float | None,
    degree: int | None,
    kind: str,
    scale: float,
    causal: bool,
    window: Sequence[int],
    backend: str,
    highest: int,
    must: bool = False,
    rows: int = 16,
) -> Plan:
    """The cheapest method within a tolerance; arguments are checked already.

    Args:
        tol: relative error of the output that is tolerated; None: none.
        degree: the only degree to look at; None: all of ``DEGREES``.
        backend: whose kernels would run. highest: degree that they have.
        must: only polynomials count (method "polynomial").

    Raises:
        ValueError: ``must``, and no degree reaches the tolerance.
    """
    width = values[0].shape[-1]
    exact = exact_cost(q, keys, width, causal, window, backend)
    if tol is None:
        return Plan("exact", None, exact, 0.0, None, "no tolerance was given: exact")
    empty = q.numel() == 0 or any(k.shape[2] == 0 for k in keys)
    if empty:
        return Plan("exact", None, exact, 0.0, None, "nothing to compute: exact")
    radius = bounds.row_radius(q, keys, scale, masks=masks, causal=causal, window=window)
    tried: list[str] = []
    best: tuple[float, int] | None = None
    cheaper = False
    for g in (degree,) if degree is not None else DEGREES:
        if g > highest:
            tried.append(f"degree {g}: backend {backend} has degrees up to {highest}")
            continue
        cost = polynomial_cost(q, keys, width, g, causal or any(window), backend)
        if not must and cost >= exact:
            tried.append(f"degree {g} costs {cost / exact:.2g} of exact")
            break
        if reference.rank(q.shape[-1], g) > LARGEST_RANK:
            tried.append(f"degree {g} has rank {reference.rank(q.shape[-1], g):,}")
            break
        cheaper = True
        found = bounds.with_coefficients(q, keys, masks, scale, g, kind, radius)
        if g % 2 and not bool(found.positive.all()):
            tried.append(f"degree {g}: odd, and the denominator may vanish")
            continue
        bound = float(found.output(values).max())
        c = polynomials.make(kind, g, q, keys, masks, scale, torch.float64)
        sampled = bounds.sample_error(
            q, keys, values, masks, c, scale=scale, causal=causal, window=window, rows=rows
        )
        certain = bound <= tol * sampled.size
        if certain or ESTIMATE_FACTOR * sampled.relative <= tol:
            how = (
                f"its certified bound {bound:.2g} is within the tolerance {tol:.2g}"
                if certain
                else f"its estimated error {sampled.relative:.2g} is {ESTIMATE_FACTOR:g} times "
                f"within the tolerance {tol:.2g} (certified: {bound:.2g})"
            )
            share = "" if exact == 0 else f", {cost / exact:.2g} of the exact cost"
            return Plan("polynomial", g, cost, bound, sampled.relative, f"degree {g}{share}: {how}")
        tried.append(f"degree {g}: estimated {sampled.relative:.2g}, certified {bound:.2g}")
        if best is None or sampled.relative < best[0]:
            best = (sampled.relative, g)
    why = "; ".join(tried)
    if must:
        raise ValueError(unreachable(tol, float(radius.max()), why, best))
    start = "no degree reaches" if cheaper else "no degree is cheaper that could reach"
    return Plan("exact", None, exact, 0.0, None, f"{start} the tolerance {tol:.2g} ({why}): exact")


def unreachable(tol: float, radius: float, why: str, best: tuple[float, int] | None) -> str:
    nearest = "" if best is None else f"tol={3 * best[0]:.2g} would do with degree {best[1]}; "
    return (
        f"tol: no polynomial reaches {tol:.2g} on logits of magnitude up to {radius:.3g} ({why}); "
        f'{nearest}else use method="exact", a smaller scale, or normalised queries and keys'
    )
