"""Quadrature rules on [0, 1]: nodes and weights in float64, made once and kept."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from .._checks import fail_value
from .._modes import ordinary_tensors

#: Names that ``method=`` takes. Captum's five, and Clenshaw-Curtis.
METHODS = (
    "gausslegendre",
    "clenshawcurtis",
    "riemann_left",
    "riemann_right",
    "riemann_middle",
    "riemann_trapezoid",
)
#: Captum's trapezoid: end weights are halved but the step is 1/n, so the weights sum to (n - 1)/n.
COMPAT_TRAPEZOID = "riemann_trapezoid_compat"

Array = np.ndarray


_FEW = 64  # nodes up to which numpy's eigenvalue problem, O(n^3), is the faster


def _gauss_legendre(n: int) -> tuple[Array, Array]:
    """Beyond ``_FEW`` by Newton's method on the recurrence of the polynomials, O(n^2)."""
    if n <= _FEW:
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return (1 + nodes) / 2, weights / 2
    theta = np.pi * (4 * np.arange(1, n // 2 + n % 2 + 1) - 1) / (4 * n + 2)
    x = (1 - (n - 1) / (8 * n**3)) * np.cos(theta)  # Tricomi
    for _ in range(4):  # three converge, the last slope is that at the nodes
        before, p = np.ones_like(x), x
        for k in range(2, n + 1):
            before, p = p, ((2 * k - 1) * x * p - (k - 1) * before) / k
        slope = n * (before - x * p) / ((1 - x) * (1 + x))
        x = x - p / slope
    if n % 2:
        x[-1] = 0.0
    w = 1 / ((1 - x) * (1 + x) * slope**2)
    nodes = np.concatenate((1 - x, (1 + x[: n // 2])[::-1])) / 2
    return nodes, np.concatenate((w, w[: n // 2][::-1]))


def _clenshaw_curtis(n: int) -> tuple[Array, Array]:
    """Exact for polynomials of degree n - 1; nodes (1 - cos(pi j / (n - 1))) / 2, ends included.

    Source: Waldvogel, "Fast construction of the Fejer and Clenshaw-Curtis quadrature rules", 2006,
    as the sum it transforms: w_j = c_j (1 - sum_k b_k cos(2 k theta_j) / (4 k^2 - 1)).
    """
    if n == 1:
        return np.array([0.5]), np.array([1.0])
    m = n - 1
    theta = np.pi * np.arange(n) / m
    k = np.arange(1, m // 2 + 1)
    b = np.where(2 * k == m, 1.0, 2.0)
    inner = 1 - (b / (4 * k**2 - 1) * np.cos(2 * np.outer(theta, k))).sum(1)
    c = np.where((np.arange(n) == 0) | (np.arange(n) == m), 1.0, 2.0) / m
    return np.sin(theta / 2) ** 2, c * inner / 2


def _riemann(method: str, n: int) -> tuple[Array, Array]:
    k = np.arange(n, dtype=np.float64)
    if method in ("riemann_left", "riemann_right", "riemann_middle"):
        shift = {"riemann_left": 0.0, "riemann_right": 1.0, "riemann_middle": 0.5}[method]
        return (k + shift) / n, np.full(n, 1 / n)
    if n < 2:
        raise fail_value("n_steps", "an int >= 2 for riemann_trapezoid, whose ends count", n)
    weights = np.full(n, 1 / n if method == COMPAT_TRAPEZOID else 1 / (n - 1))
    weights[[0, -1]] /= 2
    return k / (n - 1), weights


@functools.cache
def rule(method: str, n: int) -> tuple[Array, Array]:
    """Nodes and weights (n,) each, float64, read-only."""
    if method == "gausslegendre":
        nodes, weights = _gauss_legendre(n)
    elif method == "clenshawcurtis":
        nodes, weights = _clenshaw_curtis(n)
    else:
        nodes, weights = _riemann(method, n)
    nodes.flags.writeable = weights.flags.writeable = False
    return nodes, weights


def put(values: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A numpy array as an ordinary tensor."""
    with ordinary_tensors():
        return torch.tensor(values, dtype=dtype, device=device)


@functools.lru_cache(maxsize=256)
def tensors(method: str, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """``rule`` as tensors of a dtype on a device, kept: do not write to them."""
    nodes, weights = rule(method, n)
    return put(nodes, dtype, device), put(weights, dtype, device)


@functools.lru_cache(maxsize=256)
def tensor_rows(
    method: str, n: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """``tensors`` with the weights as the one row of a matrix, (1, n)."""
    nodes, weights = tensors(method, n, dtype, device)
    with ordinary_tensors():
        return nodes, weights[None]


@functools.cache
def nested_levels(max_nodes: int) -> tuple[tuple[Array, Array], ...]:
    """Nested Clenshaw-Curtis rules of 5, 9, 17, ... <= max_nodes nodes.

    Returns:
        For each level, the nodes it adds, and their weights in this level's and every later rule:
        ``(nodes (m,), weights (levels - level, m))``. Level L of a sum therefore needs nothing of
        the earlier gradients but the sums that they were added to.
    """
    sizes = []
    n = 5
    while n <= max_nodes:
        sizes.append(n)
        n = 2 * n - 1
    rules = [rule("clenshawcurtis", n) for n in sizes]
    found = []
    for level, size in enumerate(sizes):
        own = np.arange(size) if level == 0 else np.arange(1, size, 2)
        stride = [(s - 1) // (size - 1) for s in sizes[level:]]
        weights = np.stack([w[own * s] for (_, w), s in zip(rules[level:], stride, strict=True)])
        found.append((rules[level][0][own], weights))
    return tuple(found)


@functools.cache
def logarithmic(n: int) -> tuple[Array, Array]:
    """Gauss rule for integrals of f(s) (-ln s) over [0, 1]: exact up to degree 2 n - 1.

    By the discretised Stieltjes procedure (Gautschi, "Orthogonal Polynomials", 2004, 2.2.3): the
    weight is put on a graded Gauss grid, whose Lanczos matrix gives nodes and weights.
    """
    inner, w = np.polynomial.legendre.leggauss(max(64, 2 * n))
    # s = u^4 tames the logarithm at 0; panels of u do the rest.
    edges = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 24)])
    u = np.concatenate([a + (b - a) * (1 + inner) / 2 for a, b in _panels(edges)])
    du = np.concatenate([(b - a) * w / 2 for a, b in _panels(edges)])
    s, ds = u**4, 4 * u**3 * du
    mass = -np.log(s) * ds
    diagonal, beyond = np.zeros(n), np.zeros(n)
    previous, current = np.zeros_like(s), np.ones_like(s) / math.sqrt(mass.sum())
    for k in range(n):
        diagonal[k] = (mass * s * current**2).sum()
        following = (s - diagonal[k]) * current - (beyond[k - 1] if k else 0.0) * previous
        beyond[k] = math.sqrt((mass * following**2).sum())
        previous, current = current, following / beyond[k]
    matrix = np.diag(diagonal) + np.diag(beyond[:-1], 1) + np.diag(beyond[:-1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, mass.sum() * vectors[0] ** 2


def _panels(edges: Array) -> list[tuple[float, float]]:
    """Neighbours."""
    return list(itertools.pairwise(edges.tolist()))


@functools.lru_cache(maxsize=32)
def ends(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[0, 1]."""
    return put(np.array([0.0, 1.0]), dtype, device)
