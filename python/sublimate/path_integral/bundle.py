"""Proximal points of convex functions with kinks, by cutting planes; one sample at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_PLANES = 64


def simplex_qp(k: np.ndarray, c: np.ndarray, start: np.ndarray) -> np.ndarray:
    """argmin of theta' K theta / 2 - c' theta over the simplex, by an active set.

    Args:
        k: (m, m) positive semi-definite.
        start: feasible theta.
    """
    theta, m = start.copy(), len(c)
    support = theta > 0
    scale = 1e-13 * (1 + np.abs(k).max() + np.abs(c).max())
    for _ in range(50 * m):
        own = np.flatnonzero(support)
        n = len(own)
        system = np.zeros((n + 1, n + 1))
        system[:n, :n], system[:n, n], system[n, :n] = k[np.ix_(own, own)], 1, 1
        solution = np.linalg.lstsq(system, np.append(c[own], 1.0), rcond=1e-14)[0]
        wanted, level = solution[:n], -solution[n]
        if (wanted < 0).any():
            falling = wanted < theta[own]
            ratio = np.full(n, np.inf)
            ratio[falling] = theta[own][falling] / (theta[own] - wanted)[falling]
            t = min(1.0, ratio.min())
            moved = theta[own] + t * (wanted - theta[own])
            moved[ratio.argmin()] = 0
            theta[own] = np.maximum(moved, 0)
            support &= theta > 0
            theta /= theta.sum()
            continue
        theta[:] = 0
        theta[own] = wanted
        slope = k @ theta - c
        best = int(slope.argmin())
        if slope[best] >= level - scale or support[best]:
            break
        support[best] = True
    return theta


def cutting_planes(
    at: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, lam: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """argmin of f(d) + |d|^2 / (2 lam) for convex f.

    Args:
        at: d (E,) -> f and a subgradient.

    Returns:
        d, the objective there, and what is left between it and the lower model, as a bound of the
        residual: sqrt(2 gap / lam), floored by rounding.
    """
    planes: list[np.ndarray] = []
    heights: list[float] = []
    d = start.double().cpu().numpy()
    best, best_value, gap = d, np.inf, np.inf
    theta = np.zeros(0)
    eps = float(torch.finfo(start.dtype).eps)
    for _ in range(max_iter):
        value, slope = at(torch.as_tensor(d, dtype=start.dtype, device=start.device))
        f, g = float(value), slope.double().cpu().numpy()
        total = f + float(d @ d) / (2 * lam)
        if total < best_value:
            best, best_value = d, total
        if len(planes) >= _PLANES:
            drop = int(theta.argmin())
            del planes[drop], heights[drop]
            theta = np.delete(theta, drop)
            theta = theta / theta.sum() if theta.sum() > 0 else theta
        planes.append(g)
        heights.append(f - float(g @ d))
        matrix, c = np.stack(planes), np.array(heights)
        theta = np.append(theta, 0.0) if len(theta) else np.ones(1)
        theta = simplex_qp(lam * matrix @ matrix.T, c, theta)
        d = -lam * matrix.T @ theta
        model = float((matrix @ d + c).max() + d @ d / (2 * lam))
        gap = best_value - model
        if gap <= 4 * eps * (1 + abs(best_value)):
            best = d
            break
    exact = gap <= 4 * eps * (1 + abs(best_value))
    residual = 0.0 if exact else (2 * gap / lam) ** 0.5
    put = torch.as_tensor
    return (
        put(best, dtype=start.dtype, device=start.device),
        put(best_value, dtype=start.dtype, device=start.device),
        put(residual, dtype=start.dtype, device=start.device),
    )
