"""The activations by name, in plain PyTorch: value, derivative, corners. Part of the reference.

Held to closed forms and to torch's own gradients; the kernels are held to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dtypes import accumulator


@dataclass(frozen=True)
class Function:
    """One elementwise activation, known by name to every backend.

    Attributes:
        name: public name; ``FUNCTIONS[name]``.
        forward: ``(x, *params) -> f(x)``.
        derivative: ``(x, *params) -> f'(x)``, the subgradient torch chooses where f has a corner.
        params: (name, default) of at most two scalar parameters.
        predicate: for functions whose f' takes two values, so that one bit loses nothing:
            ``(x, *params) ->`` whether f'(x) is the upper one. None for the smooth ones.
        exact_levels: ``(*params) -> (low, high)``, those two values.
        breakpoints: ``(*params) ->`` abscissae where f' jumps or has a corner.
    """

    name: str
    forward: Callable[..., Tensor]
    derivative: Callable[..., Tensor]
    params: tuple[tuple[str, float], ...] = ()
    predicate: Callable[..., Tensor] | None = None
    exact_levels: Callable[..., tuple[float, float]] | None = None
    breakpoints: Callable[..., tuple[float, ...]] = lambda *_: ()

    @property
    def exact(self) -> bool:
        """Whether one bit gives the exact gradient."""
        return self.predicate is not None

    @property
    def defaults(self) -> tuple[float, ...]:
        return tuple(value for _, value in self.params)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x * math.sqrt(0.5))


def _d_gelu(x: Tensor) -> Tensor:
    tail = torch.where(torch.isinf(x), torch.zeros_like(x), x * torch.exp(-0.5 * x * x))
    return _normal_cdf(x) + tail / math.sqrt(2 * math.pi)


_GELU_BETA, _GELU_KAPPA = math.sqrt(2 / math.pi), 0.044715


def _d_gelu_tanh(x: Tensor) -> Tensor:
    t = torch.tanh(_GELU_BETA * (x + _GELU_KAPPA * x**3))
    inner = _GELU_BETA * (1 + 3 * _GELU_KAPPA * x * x)
    # At huge |x| the tanh is saturated; 0 * inf must stay 0.
    slope = torch.where(t.abs() == 1, torch.zeros_like(x), x * (1 - t * t) * inner)
    return 0.5 * (1 + t) + 0.5 * slope


def _d_silu(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    tail = torch.where(torch.isinf(x), torch.zeros_like(x), x * (1 - s))
    return s * (1 + tail)


def _d_sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _d_tanh(x: Tensor) -> Tensor:
    e = torch.exp(-2 * x.abs())
    return torch.where(torch.isnan(x), x, 4 * e / (1 + e) ** 2)


def _d_elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), alpha * torch.exp(x))


def _d_celu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), torch.exp(x / alpha))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _d_selu(x: Tensor) -> Tensor:
    negative = _SELU_SCALE * _SELU_ALPHA * torch.exp(x)
    return torch.where(x > 0, torch.full_like(x, _SELU_SCALE), negative)


def _d_softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(x * beta > threshold, torch.ones_like(x), torch.sigmoid(x * beta))


def _d_mish(x: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    tail = torch.where(torch.isinf(x), torch.zeros_like(x), x * torch.sigmoid(x) * (1 - t * t))
    return t + tail


def _d_hardswish(x: Tensor) -> Tensor:
    inner = torch.where(x < 3, x / 3 + 0.5, torch.ones_like(x))
    inner = torch.where(torch.isnan(x), x, inner)
    return torch.where(x <= -3, torch.zeros_like(x), inner)


def _d_logsigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(-x)


def _d_softsign(x: Tensor) -> Tensor:
    return (1 + x.abs()) ** -2


def _d_tanhshrink(x: Tensor) -> Tensor:
    return torch.tanh(x) ** 2


def _two_valued(predicate: Callable[..., Tensor], levels: Callable[..., tuple[float, float]]):  # type: ignore[no-untyped-def]
    def derivative(x: Tensor, *params: float) -> Tensor:
        low, high = levels(*params)
        return torch.where(predicate(x, *params), torch.full_like(x, high), torch.full_like(x, low))

    return derivative


def _strictly_between(x: Tensor, low: float, high: float) -> Tensor:
    return ~((x <= low) | (x >= high))


def _exact(
    name: str,
    forward: Callable[..., Tensor],
    predicate: Callable[..., Tensor],
    breakpoints: Callable[..., tuple[float, ...]],
    params: tuple[tuple[str, float], ...] = (),
    levels: Callable[..., tuple[float, float]] = lambda *_: (0.0, 1.0),
) -> Function:
    return Function(
        name, forward, _two_valued(predicate, levels), params, predicate, levels, breakpoints
    )


# Predicates are torch's own backward formulas, borders included. Where x is NaN, torch's vectorised
# and scalar paths differ; here NaN lets the gradient through where its CUDA formula does. In 16
# bits, torch's CPU kernels compare x with the threshold and the ends of hardtanh as they are, and
# with lambda rounded to x's dtype (which is what ``x <= lambd`` does); so does every backend here.
_ALL = (
    Function("gelu", F.gelu, _d_gelu),
    Function("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), _d_gelu_tanh),
    Function("silu", F.silu, _d_silu),
    Function("sigmoid", torch.sigmoid, _d_sigmoid),
    Function("tanh", torch.tanh, _d_tanh),
    Function("elu", F.elu, _d_elu, (("alpha", 1.0),), breakpoints=lambda alpha: (0.0,)),
    Function("celu", F.celu, _d_celu, (("alpha", 1.0),), breakpoints=lambda alpha: (0.0,)),
    Function("selu", F.selu, _d_selu, breakpoints=lambda: (0.0,)),
    Function(
        "softplus",
        F.softplus,
        _d_softplus,
        (("beta", 1.0), ("threshold", 20.0)),
        breakpoints=lambda beta, threshold: (threshold / beta,),
    ),
    Function("mish", F.mish, _d_mish),
    Function("hardswish", F.hardswish, _d_hardswish, breakpoints=lambda: (-3.0, 3.0)),
    Function("logsigmoid", F.logsigmoid, _d_logsigmoid),
    Function("softsign", F.softsign, _d_softsign, breakpoints=lambda: (0.0,)),
    Function("tanhshrink", F.tanhshrink, _d_tanhshrink),
    _exact("relu", F.relu, lambda x: ~(x <= 0), lambda: (0.0,)),
    _exact("relu6", F.relu6, lambda x: ~((x <= 0) | (x >= 6)), lambda: (0.0, 6.0)),
    _exact(
        "leaky_relu",
        F.leaky_relu,
        lambda x, slope: x > 0,
        lambda slope: (0.0,),
        (("negative_slope", 0.01),),
        lambda slope: (slope, 1.0),
    ),
    _exact(
        "threshold",
        F.threshold,
        lambda x, threshold, value: ~(x.to(accumulator(x.dtype)) <= threshold),
        lambda threshold, value: (threshold,),
        (("threshold", 0.0), ("value", 0.0)),
    ),
    _exact(
        "hardtanh",
        F.hardtanh,
        lambda x, low, high: _strictly_between(x.to(accumulator(x.dtype)), low, high),
        lambda low, high: (low, high),
        (("min_val", -1.0), ("max_val", 1.0)),
    ),
    _exact(
        "hardsigmoid",
        F.hardsigmoid,
        lambda x: (x > -3) & (x < 3),
        lambda: (-3.0, 3.0),
        levels=lambda: (0.0, 1 / 6),
    ),
    _exact(
        "hardshrink",
        F.hardshrink,
        lambda x, lambd: ~((x >= -lambd) & (x <= lambd)),
        lambda lambd: (-lambd, lambd),
        (("lambd", 0.5),),
    ),
    _exact(
        "softshrink",
        F.softshrink,
        lambda x, lambd: ~((x >= -lambd) & (x <= lambd)),
        lambda lambd: (-lambd, lambd),
        (("lambd", 0.5),),
    ),
)

#: Every built-in function by name. The position is the function's id in csrc/fewbit/fewbit_math.h
#: and kernels/fewbit; a test compares the lists.
FUNCTIONS: dict[str, Function] = {f.name: f for f in _ALL}
