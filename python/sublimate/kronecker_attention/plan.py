"""Which method runs, and why: exact or polynomial, by cost, bound, estimate and tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import bounds, reference
from . import coefficients as polynomials
from .sampling import Sample, row_tuples

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
    return float(row_tuples(n, lengths, causal, window).sum())


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


@dataclass(frozen=True)
class Judgement:
    """What is known of the error of one degree on given data.

    Attributes:
        degree: of the polynomial.
        bound: largest possible error of an element of the output, infinite if unknown.
        certified: largest possible relative error of the output, likewise.
        estimate: of the relative error, from sampled rows.
    """

    degree: int
    bound: float
    certified: float
    estimate: float

    def within(self, tol: float) -> str | None:
        """Why the error is within a tolerance, in words; None if that is not known."""
        if self.certified <= tol:
            return (
                f"its certified bound, {self.certified:.2g} of the output, is within the tolerance "
                f"{tol:.2g}"
            )
        if ESTIMATE_FACTOR * self.estimate <= tol:
            return (
                f"its estimated error {self.estimate:.2g} is {ESTIMATE_FACTOR:g} times within the "
                f"tolerance {tol:.2g} (certified: {self.certified:.2g})"
            )
        return None

    def __str__(self) -> str:
        return (
            f"degree {self.degree}: estimated {self.estimate:.2g}, certified {self.certified:.2g}"
        )


class Judge:
    """Certificates and estimates of any degree on given data: what they share is computed once."""

    def __init__(
        self,
        q: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        masks: Masks | None,
        kind: str,
        *,
        scale: float,
        causal: bool,
        window: Sequence[int],
        rows: int,
    ) -> None:
        self._data, self._values, self._kind, self._scale = (q, keys, masks), values, kind, scale
        self._options: dict[str, Any] = {
            "scale": scale,
            "causal": causal,
            "window": window,
            "rows": rows,
        }
        self.radius = bounds.row_radius(q, keys, scale, masks=masks, causal=causal, window=window)
        self._sample: Sample | None = None

    def certificate(self, degree: int) -> bounds.Certificate:
        return bounds.with_coefficients(*self._data, self._scale, degree, self._kind, self.radius)

    def judge(self, degree: int, found: bounds.Certificate | None = None) -> Judgement:
        """``found``: the degree's certificate, where it is known already."""
        q, keys, masks = self._data
        if q.numel() == 0:
            return Judgement(degree, 0.0, 0.0, 0.0)
        if self._sample is None:
            self._sample = Sample(q, keys, self._values, masks, **self._options)
        found = found or self.certificate(degree)
        c = polynomials.make(self._kind, degree, q, keys, masks, self._scale, torch.float64)
        errors, least = found.output(self._values), self._sample.least
        # Of all rows, against the sampled ones alone: the whole output's norm is at least theirs.
        largest = math.sqrt(self._values[0].shape[-1]) * float(errors.norm())
        certified = largest / least if least > 0 else math.inf
        if largest == 0:
            certified = 0.0
        return Judgement(degree, float(errors.max()), certified, self._sample.error(c))


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
    judge = Judge(
        q, keys, values, masks, kind, scale=scale, causal=causal, window=window, rows=rows
    )
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
        found = judge.certificate(g)
        if g % 2 and not bool(found.positive.all()):
            tried.append(f"degree {g}: odd, and the denominator may vanish")
            continue
        judged = judge.judge(g, found)
        how = judged.within(tol)
        if how is not None:
            share = "" if exact == 0 else f", {cost / exact:.2g} of the exact cost"
            why = f"degree {g}{share}: {how}"
            return Plan("polynomial", g, cost, judged.bound, judged.estimate, why)
        tried.append(str(judged))
        if best is None or judged.estimate < best[0]:
            best = (judged.estimate, g)
    why = "; ".join(tried)
    if must:
        raise ValueError(unreachable(tol, float(judge.radius.max()), why, best))
    start = "no degree reaches" if cheaper else "no degree is cheaper that could reach"
    return Plan("exact", None, exact, 0.0, None, f"{start} the tolerance {tol:.2g} ({why}): exact")


def unreachable(tol: float, radius: float, why: str, best: tuple[float, int] | None) -> str:
    nearest = ""
    if best is not None and math.isfinite(best[0]):
        enough = rounded_up(ESTIMATE_FACTOR * best[0])
        nearest = f"tol={enough:.2g} would do with degree {best[1]}; "
    return (
        f"tol: no polynomial reaches {tol:.2g} on logits of magnitude up to {radius:.3g} ({why}); "
        f'{nearest}else use method="exact", a smaller scale, or normalised queries and keys'
    )


def rounded_up(x: float) -> float:
    """The least number of two digits that is not below x > 0."""
    digits = 1 - math.floor(math.log10(x))
    return next(y for step in (0, 1) if (y := round(x, digits) + step * 10.0**-digits) >= x)
