"""What a codebook is fitted to: the derivative of an activation and the density of its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .quantiser import Array, Field, merge_ties
from .reference import FUNCTIONS, Function

#: Functions that only codebooks know: f(x) = x^2 / 2 has f'(x) = x, so its codes quantise x itself.
INTERNAL = {"half_square": Function("half_square", lambda x: 0.5 * x * x, lambda x: x)}

_SAMPLES = 2**18  # measured samples used at most
_MIN_SAMPLES = 16
_REACH = 1e6  # how far the crossings of a built-in derivative are followed


@dataclass(frozen=True)
class Target:
    """An activation ready to be fitted.

    Attributes:
        fn: the forward, without parameters bound.
        builtin: known by name; its derivative is then known on all of R.
        forward, derivative: Tensor -> Tensor, parameters bound.
    """

    name: str
    params: tuple[float, ...]
    fn: Callable[..., Any]
    builtin: bool
    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    breakpoints: tuple[float, ...]

    def curve(self, x: Array) -> Array:
        """f'(x) in float64, (m,) -> (m, 1)."""
        return _numpy(self.derivative, x)[:, None]

    def both(self, x: Array) -> Array:
        """f'(x) and f(x) in float64, (m,) -> (m, 2)."""
        return np.stack([_numpy(self.derivative, x), _numpy(self.forward, x)], 1)


def _numpy(fn: Callable[[Tensor], Tensor], x: Array) -> Array:
    return fn(torch.from_numpy(np.ascontiguousarray(x))).detach().numpy()


def builtin(name: Any, what: str = "name must be") -> Function:
    """The function of that name, or ValueError listing the names."""
    if not isinstance(name, str):
        raise TypeError(f"{what} a str, got {type(name).__name__}")
    found = FUNCTIONS.get(name) or INTERNAL.get(name)
    if found is None:
        raise ValueError(f"{what} one of {', '.join(FUNCTIONS)}, got {name!r}")
    return found


def check_params(function: Function, params: tuple[float, ...] | None) -> tuple[float, ...]:
    if params is None:
        return function.defaults
    try:
        values = tuple(float(p) for p in params)
    except TypeError as error:
        raise TypeError(f"params must be a tuple of numbers, got {params!r}") from error
    names = tuple(name for name, _ in function.params)
    if len(values) != len(names):
        raise ValueError(f"params of {function.name} must be {names}, got {values}")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"params of {function.name} must be finite, got {values}")
    return values


def resolve(fn: str | Callable[..., Any], params: tuple[float, ...] | None) -> Target:
    """Target of a built-in name or of a differentiable elementwise callable.

    A callable that is the forward of a built-in function counts as its name.
    """
    if not (params is None or isinstance(params, (tuple, list))):
        raise TypeError(f"params must be a tuple of numbers, got {type(params).__name__}")
    if not isinstance(fn, str):
        fn = next((f.name for f in FUNCTIONS.values() if f.forward is fn), fn)
    if isinstance(fn, str):
        function = builtin(fn, "fn must be a callable or")
        bound = check_params(function, params)
        return Target(
            name=function.name,
            params=bound,
            fn=function.forward,
            builtin=True,
            forward=lambda x: function.forward(x, *bound),
            derivative=lambda x: function.derivative(x, *bound),
            breakpoints=tuple(function.breakpoints(*bound)),
        )
    if not callable(fn):
        raise TypeError(f"fn must be a name or a callable, got {type(fn).__name__}")
    if params:
        raise ValueError(f"params must be bound into a callable fn, got {params!r}")
    name = getattr(fn, "__name__", type(fn).__name__)
    return Target(name, (), fn, False, fn, lambda x: _autograd(fn, x), ())


def _autograd(fn: Callable[..., Any], x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        try:
            y = fn(x)
        except Exception as error:
            raise ValueError(f"fn must accept a {x.dtype} tensor, got: {error}") from error
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"fn must be elementwise: shape {tuple(x.shape)} in, {got} out")
        if not y.requires_grad:
            raise ValueError("fn must be differentiable by torch.autograd, its output has no grad")
        return torch.autograd.grad(y.sum(), x)[0]


@dataclass(frozen=True)
class Density:
    """Density of the input: a weight on [low, high], or measured samples (float64, finite)."""

    text: str
    low: float
    high: float
    weight: Callable[[Array], Array] | None = None
    samples: Array | None = None


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if isinstance(value, int):
        _checks.number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def density_of(
    density: str, mean: float, std: float, low: float | None, high: float | None, samples: Any
) -> Density:
    """Checked density; ``samples`` imply the measured one."""
    if density not in ("normal", "uniform", "samples"):
        raise ValueError(f"density must be 'normal', 'uniform' or 'samples', got {density!r}")
    if samples is not None:
        if density == "uniform":
            raise ValueError("density must be left out when samples are given, got 'uniform'")
        return _measured(samples)
    if density == "samples":
        raise ValueError("density 'samples' needs samples, got None")
    if density == "uniform":
        if low is None or high is None:
            raise ValueError(f"density 'uniform' needs low and high, got {low} and {high}")
        a, b = _finite("low", low), _finite("high", high)
        if not a < b:
            raise ValueError(f"low must be less than high, got {low} and {high}")
        return Density(
            f"uniform(low={a:g}, high={b:g})",
            a,
            b,
            lambda x: np.where((x > a) & (x < b), 1 / (b - a), 0.0),
        )
    if low is not None or high is not None:
        raise ValueError(f"low and high need density='uniform', got density={density!r}")
    m, s = _finite("mean", mean), _finite("std", std)
    if s <= 0:
        raise ValueError(f"std must be positive, got {std}")

    def weight(x: Array) -> Array:
        return np.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))

    return Density(f"normal(mean={m:g}, std={s:g})", m - 9 * s, m + 9 * s, weight)


def _measured(samples: Any) -> Density:
    try:
        given = torch.as_tensor(samples).detach().reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"samples must be a tensor or array of numbers, got: {error}") from error
    if given.is_complex() or given.is_quantized or given.dtype == torch.bool:
        raise TypeError(f"samples must be real numbers, got {given.dtype}")
    total = given.numel()
    if total > _SAMPLES:
        # A golden-ratio walk: even cover, no randomness, no stride to fall in step with the data.
        walk = torch.arange(_SAMPLES, dtype=torch.float64) * (0.5 * (math.sqrt(5) - 1)) % 1.0
        given = given[(walk * total).long().clamp_(max=total - 1).to(given.device)]
    values: Array = given.to("cpu", torch.float64).numpy()
    values = values[np.isfinite(values)]
    if values.size < _MIN_SAMPLES:
        raise ValueError(f"samples must hold {_MIN_SAMPLES} finite values, got {values.size}")
    low, high = float(values.min()), float(values.max())
    margin = 1e-3 * max(abs(low), abs(high), 1e-3) if low == high else 0.0
    text = f"samples(n={total}, mean={values.mean():.6g}, std={values.std():.6g})"
    return Density(text, low - margin, high + margin, samples=values)


class Problem:
    """A curve under a density: cells for exact integrals and atoms for the dynamic programme.

    Attributes:
        field: cells over the support of the density and, for built-ins, far beyond it, so that
            every crossing of a threshold is found.
        x, w, v: atoms (n,), (n,), (n, C) in order of x, no two alike.
        exact: integrals over ``field`` hold the density; else it consists of the atoms.
    """

    def __init__(
        self, target: Target, density: Density, curve: Callable[[Array], Array] | None = None
    ) -> None:
        self.target, self.density = target, density
        curve = curve or target.curve
        low, high = density.low, density.high
        span = high - low
        probe = np.linspace(low, high, 1001) if density.samples is None else density.samples
        size = self._check(target, curve, np.clip(probe, low, high))
        bound = _REACH if target.builtin else max(abs(low), abs(high))
        graded = np.geomspace(min(1e-3, 1e-3 * bound), bound, 240)
        edges = np.concatenate([[0.0], graded, -graded])
        if target.builtin:
            reach = np.geomspace(1e-2 * span, _REACH + span, 120)
            edges = np.concatenate([edges, low - reach, high + reach, target.breakpoints])
        else:
            edges = edges[(edges > low) & (edges < high)]
        edges = np.concatenate([edges, np.linspace(low, high, 385)])
        # Slivers beside a breakpoint would take the border that belongs on it.
        anchors = np.array([0.0, low, high, *target.breakpoints])
        apart = np.abs(edges[:, None] - anchors).min(1) > 1e-9 * span
        ends = anchors[(anchors >= edges.min()) & (anchors <= edges.max())]
        edges = np.concatenate([edges[apart], ends])
        self.field = Field(curve, density.weight, edges, span, size)
        self.exact = density.samples is None
        if density.samples is None:
            keep = self.field.w > 0
            self.x, self.w, self.v = self.field.x[keep], self.field.w[keep], self.field.v[keep]
        else:
            self.x, count = np.unique(density.samples, return_counts=True)
            self.w, self.v = count / density.samples.size, curve(self.x)

    @staticmethod
    def _check(target: Target, curve: Callable[[Array], Array], probe: Array) -> float:
        """Largest |v| on the probe, once v is known to be finite and elementwise there."""
        value = curve(probe)
        if not np.isfinite(value).all():
            at = probe[~np.isfinite(value).all(1)][0]
            raise ValueError(f"fn must have a finite derivative on the density, got none at {at:g}")
        size = float(np.abs(value).max())
        if target.builtin:
            return size
        # One element must not feel another: the same points in another company and order.
        with torch.no_grad():
            y, some = (_numpy(target.forward, p) for p in (probe, probe[::-3]))
        if not np.isfinite(y).all():
            raise ValueError(f"fn must be finite on the density, got {y[~np.isfinite(y)][0]}")
        alone = np.allclose(some, y[::-3], rtol=1e-7, atol=1e-9 * (1 + np.abs(y).max()))
        alone &= np.allclose(curve(probe[::-3]), value[::-3], rtol=1e-6, atol=1e-9 * size)
        if not alone:
            raise ValueError("fn must be elementwise: an output depends on other inputs")
        return size

    def sorted_values(self) -> tuple[Array, Array]:
        """Atoms of V = v(x): ascending (n,) and masses (n,)."""
        key, w, _ = merge_ties(self.v[:, 0], self.w, self.v)
        return key, w

    def atoms(self, at: Array) -> tuple[Array, Array, Array]:
        """Atoms (x, w, v) whose sums are exact for functions that jump at the points ``at``."""
        return self.field.split(at) if self.exact else (self.x, self.w, self.v)

    def derivative_range(self) -> tuple[float, float]:
        """Levels that cover f' on all of R (built-ins) or on the padded support, in float32 too.

        The support of a callable is padded by half its width on each side. An end that f' only
        approaches at infinity is rounded outward to float32; an end attained inside gets two
        float32 units in the last place of itself or of the usual f', whichever is more, for the
        rounding of a float32 evaluation. An end of exactly 0 stays: rounding keeps signs.
        """
        field = self.field
        if self.target.builtin:
            x = np.concatenate([[-1e30, 1e30], field.edges, field.x.reshape(-1)])
            limits = self.target.curve(x[:2])[:, 0]
        else:
            low, high = self.density.low, self.density.high
            pad = 0.5 * (high - low)
            x = np.concatenate([np.linspace(low - pad, high + pad, 8193), field.edges])
            limits = np.empty(0)
        value = self.target.curve(x)[:, 0]
        x, value = x[np.isfinite(value)], value[np.isfinite(value)]
        near = np.linspace(-1e-2, 1e-2, 2001)
        peaks = [p + max(1.0, abs(p)) * near for p in (x[value.argmin()], x[value.argmax()])]
        x32 = np.concatenate([x, *peaks]).astype(np.float32)
        value32 = self.target.derivative(torch.from_numpy(x32)).double().numpy()
        rest = np.concatenate([field.left[:, 0], field.right[:, 0], self.v[:, 0], value32])
        value = np.concatenate([value, rest[np.isfinite(rest)]])
        ends = float(value.min()), float(value.max())
        usual = math.sqrt(float(self.w @ self.v[:, 0] ** 2) / float(self.w.sum()))
        usual = min(usual, max(-ends[0], ends[1]))
        return _outward(ends[0], -1.0, usual, limits), _outward(ends[1], 1.0, usual, limits)


def _outward(end: float, sign: float, usual: float, limits: Array) -> float:
    ulp = 2.0**-23 * max(abs(end), usual)
    if end != 0 and not (np.abs(limits - end) <= ulp).any():
        end += sign * 2 * ulp
    rounded = np.float32(end)
    if sign * (float(rounded) - end) < 0:
        rounded = np.nextafter(rounded, np.float32(sign * math.inf))
    return 0.0 if abs(float(rounded)) < 1e-30 else float(rounded)
