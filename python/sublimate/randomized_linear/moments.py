"""Exact variances of the sketched gradient, and what they are made of.

E ||(S^T dy)^T (S^T x) - dy^T x||_F^2 for each sketch, in closed form; derivations in this folder's
README. A = |x|^2 |dy|^2, B = |x^T dy|_F^2, C = sum_n |x_n|^2 |dy_n|^2 recur.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._dtypes import accumulator
from . import reference
from .arguments import check_probabilities
from .reference import SAMPLERS, SKETCHES

#: Fourth moment of the table of normal numbers (``_normal``).
KURTOSIS = 2.9999953


class Moments:
    """What the variances need of one (x, dy), computed once for any number of k.

    Args:
        x: (N, I). dy: (N, O). Products in fp32 (fp64 for fp64), sums in float64.
        sketch: a name in ``SKETCHES``.
        probabilities: for samplers, (N,); None: ``reference.row_probabilities``.
    """

    def __init__(
        self, x: Tensor, dy: Tensor, sketch: str, probabilities: Tensor | None = None
    ) -> None:
        self.n, self.sketch = x.shape[0], sketch
        self.x, self.y = (t.to(accumulator(t.dtype)) for t in (x, dy))
        self.squared_x, self.squared_y = (_row_squares(t) for t in (self.x, self.y))
        self.gradient = self.y.T @ self.x  # [O, I]
        self.b = _square(self.gradient)
        self.a = self.squared_x.sum() * self.squared_y.sum()
        both = self.squared_x * self.squared_y
        self.c = both.sum()
        if sketch in ("srht", "dct") and self.n:
            self.rows = reference.transformed_rows(sketch, self.n)
            self.mixed = self._srht() if sketch == "srht" else self._dct()
        elif sketch in SAMPLERS:
            p = reference.row_probabilities(x) if probabilities is None else probabilities
            self.p = p.to(torch.float64)
            # A row that is never taken costs nothing if it weighs nothing.
            ratio = torch.where(both == 0, torch.zeros_like(both), both / self.p)
            order = torch.sort(self.p, descending=True, stable=True).indices
            self.order, self.ratio = order, ratio

    def _srht(self) -> Tensor:
        """Np E sum_r |z_x,r|^2 |z_y,r|^2 over the transformed rows r."""
        nb, chunk = reference.blocks(self.n)
        x, y = (reference._in_blocks(t, nb, chunk) for t in (self.x, self.y))
        qx, qy = (_row_squares(t) for t in (x, y))  # [nb, chunk]
        a = (qx.sum(1) * qy.sum(1)).sum()
        b = _square(x.transpose(1, 2) @ y)
        return nb * (a + 2 * b - 2 * (qx * qy).sum())

    def _dct(self) -> Tensor:
        """The same for the cosine transform: sum_r c_ra^2 c_rb^2 has a closed form."""
        nb, m = reference.blocks(self.n)
        x, y = (reference._in_blocks(t, nb, m) for t in (self.x, self.y))
        qx, qy = (_row_squares(t) for t in (x, y))
        a, b = (qx.sum(1) * qy.sum(1)).sum(), _square(x.transpose(1, 2) @ y)
        c, mirrored = (qx * qy).sum(), (qx * qy.flip(1)).sum()
        cross = ((x * x.flip(1)).sum(2) * (y * y.flip(1)).sum(2)).to(torch.float64)
        if m % 2:  # the middle row is its own mirror image
            cross[:, m // 2] = 0
        total = (m - 1) * (a + 2 * b - 2 * c) + (m / 2) * (c + mirrored + 2 * cross.sum())
        return nb * total / m

    def variance(self, k: int) -> Tensor:
        """E ||estimate - dW||_F^2 with k rows kept: float64, no dimension."""
        n, sketch = self.n, self.sketch
        if n == 0:
            return self.b.new_zeros(())
        if k == 0:
            return self.b
        if sketch == "gaussian":
            return (self.a + self.b + (KURTOSIS - 3) * self.c) / k
        if sketch == "rademacher":
            return (self.a + self.b - 2 * self.c) / k
        if sketch == "countsketch":
            return (self.a + self.b - 2 * self.c) * _share_a_bucket(n, k)
        if sketch == "crs":
            return (self.ratio.sum() - self.b) / k
        if sketch == "wta":
            return self._wta(k)
        total = n * self.c if sketch == "rows" else self.mixed
        rows = n if sketch == "rows" else self.rows
        return (total - self.b) / k * ((rows - k) / (rows - 1)) if k < rows else 0 * self.b

    def _wta(self, k: int) -> Tensor:
        c, rest = reference.winners(self.p[self.order], k)
        left = self.order[int(c) :]
        product = self.y[left].T @ self.x[left]
        return (rest * self.ratio[left].sum() - _square(product)) / (k - c)


def _row_squares(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=-1, dtype=t.dtype).to(torch.float64).square()


def _square(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t.to(torch.float64)).square()


def _share_a_bucket(n: int, k: int) -> float:
    """Probability that two of n rows meet in one of k buckets of sizes n // k and n // k + 1."""
    if n < 2:
        return 0.0
    q, r = divmod(n, k)
    return (r * (q + 1) * q + (k - r) * q * (q - 1)) / (n * (n - 1))


def variance(
    x: Tensor, dy: Tensor, sketch: str, k: int, probabilities: Tensor | None = None
) -> Tensor:
    """E ||(S^T dy)^T (S^T x) - dy^T x||_F^2, exactly, for the sketches of this family.

    Args:
        x: (..., I), the layer's input. dy: (..., O), the gradient of its output; same rows.
        sketch: as in ``functional.linear``.
        k: rows kept, >= 1.
        probabilities: for "crs" and "wta", (N,) with sum 1; None: by the norms of x's rows.

    Returns:
        float64 without dimensions. One product of 2 N I O operations (two for srht, dct and wta).

    Raises:
        TypeError, ValueError: a bad argument.
    """
    for argument, t in (("x", x), ("dy", dy)):
        _checks.floating_tensor(argument, t)
        if t.dim() == 0:
            raise _checks.fail_value(argument, "at least one dimension", "a 0-dim tensor")
    if x.shape[:-1] != dy.shape[:-1]:
        raise _checks.fail_value("dy", f"the rows of x, {tuple(x.shape[:-1])}", tuple(dy.shape))
    _checks.one_of("sketch", sketch, SKETCHES)
    _checks.integer_between("k", k, 1, 2**31 - 1)
    rows, other = (reference.as_rows(t.detach()) for t in (x, dy))
    check_probabilities(probabilities, sketch, rows)
    return Moments(rows, other, sketch, probabilities).variance(k)
