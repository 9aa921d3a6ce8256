"""Values, derivatives and two-valued predicates of the activations, on tiles of ACC (fp32, fp64).

``FN`` is a name, known when the kernel is compiled; ``A`` and ``B`` are the function's parameters
in the order of ``sublimate.fewbit.reference``. What is small is computed without cancellation by
short series, so that it does not depend on how a target approximates exp and log near 1. Value
and derivative of the gate functions are written in the same terms, for the compiler to share.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Position = id of the function, as in ``functions.FUNCTIONS`` and csrc/fewbit/fewbit_math.h.
SMOOTH = (
    "gelu",
    "gelu_tanh",
    "silu",
    "sigmoid",
    "tanh",
    "elu",
    "celu",
    "selu",
    "softplus",
    "mish",
    "hardswish",
    "logsigmoid",
    "softsign",
    "tanhshrink",
)
#: f' takes two values: one bit, chosen by ``predicate``.
EXACT = (
    "relu",
    "relu6",
    "leaky_relu",
    "threshold",
    "hardtanh",
    "hardsigmoid",
    "hardshrink",
    "softshrink",
)
FUNCTIONS = SMOOTH + EXACT
GATES = ("gelu", "gelu_tanh", "silu")

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_TWO_BETA = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
_KAPPA = tl.constexpr(0.044715)
_SELU_ALPHA = tl.constexpr(1.6732632423543772)
_SELU_SCALE = tl.constexpr(1.0507009873554805)


@triton.jit
def round_to(v, DT: tl.constexpr, ACC: tl.constexpr):
    """v (ACC) rounded to element type DT and back: how a constant compares with elements."""
    if DT == tl.float16:
        r = v.to(tl.float16).to(ACC)
    elif DT == tl.bfloat16:
        # To nearest even on the upper 16 bits; integer arithmetic is right in the interpreter too,
        # whose own conversion truncates.
        u = v.to(tl.float32).to(tl.int32, bitcast=True)
        u = (u + 0x7FFF + ((u >> 16) & 1)) & -65536
        r = u.to(tl.float32, bitcast=True).to(ACC)
    else:
        r = v.to(ACC)
    return r


@triton.jit
def _rounded(value: tl.constexpr, DT: tl.constexpr, ACC: tl.constexpr):
    """lambda as torch compares it with elements of type DT: rounded to DT."""
    return round_to(tl.full((), value, ACC), DT, ACC)


@triton.jit
def _constant(value: tl.constexpr, ACC: tl.constexpr):
    """A parameter that torch compares in the arithmetic type, whatever the element type."""
    return tl.full((), value, ACC)


@triton.jit
def _expm1(x, ACC: tl.constexpr):
    """exp(x) - 1: Taylor series for |x| <= 1/2 (truncated below half an ulp), else directly."""
    if ACC == tl.float64:
        p = tl.full(x.shape, 1.0, ACC)
        for k in tl.static_range(17, 1, -1):
            p = 1.0 + p * x * (1.0 / k)
    else:
        p = x * (1.0 / 40320) + (1.0 / 5040)
        p = p * x + (1.0 / 720)
        p = p * x + (1.0 / 120)
        p = p * x + (1.0 / 24)
        p = p * x + (1.0 / 6)
        p = p * x + 0.5
        p = p * x + 1.0
    return tl.where(tl.abs(x) <= 0.5, p * x, tl.exp(x) - 1.0)


@triton.jit
def _log1p_unit(e, ACC: tl.constexpr):
    """log(1 + e) for e in [0, 1], as 2 atanh(e / (2 + e)): s^2 <= 1/9, so the series is short."""
    s = e / (2.0 + e)
    t = s * s
    if ACC == tl.float64:
        p = tl.zeros(e.shape, ACC)
        for k in tl.static_range(17, 0, -1):
            p = p * t + 1.0 / (2 * k + 1)
    else:
        p = t * (1.0 / 13) + (1.0 / 11)
        p = p * t + (1.0 / 9)
        p = p * t + (1.0 / 7)
        p = p * t + (1.0 / 5)
        p = p * t + (1.0 / 3)
    return 2.0 * (s + s * t * p)


@triton.jit
def _tanh(x, ACC: tl.constexpr):
    m = _expm1(-2.0 * tl.abs(x), ACC)  # in (-1, 0]
    t = -m / (2.0 + m)
    return tl.where(x < 0, -t, t)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
def _gelu_tanh_inner(x):
    """Twice the argument of tanh."""
    return (x + x * x * x * _KAPPA) * _TWO_BETA


@triton.jit
def _sech2(x):
    """1 - tanh(x)^2 = 4 sigmoid(2x) sigmoid(-2x)."""
    e = tl.exp(-2.0 * tl.abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _softplus(x, ACC: tl.constexpr):
    return tl.where(x > 0, x, 0.0) + _log1p_unit(tl.exp(-tl.abs(x)), ACC)


@triton.jit
def _mish_n(x):
    """n = (1 + e^x)^2 - 1: tanh(softplus(x)) = n / (n + 2). Constant beyond 20: the ratio is 1."""
    e = tl.exp(tl.where(x > 20.0, 20.0, x))
    return e * (e + 2.0)


@triton.jit
def value(
    x, FN: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DT: tl.constexpr, ACC: tl.constexpr
):
    """f(x) for a tile x of ACC that was loaded as DT."""
    if FN == "gelu":
        y = x * _normal_cdf(x)
    elif FN == "gelu_tanh":
        # (1 + tanh u) / 2 = sigmoid(2u)
        y = x * _sigmoid(_gelu_tanh_inner(x))
    elif FN == "silu":
        y = x * _sigmoid(x)
    elif FN == "sigmoid":
        y = _sigmoid(x)
    elif FN == "tanh":
        y = _tanh(x, ACC)
    elif FN == "elu":
        y = tl.where(x > 0, x, A * _expm1(x, ACC))
    elif FN == "celu":
        y = tl.where(x > 0, x, A * _expm1(x / A, ACC))
    elif FN == "selu":
        y = tl.where(x > 0, x, _expm1(x, ACC) * _SELU_ALPHA) * _SELU_SCALE
    elif FN == "softplus":
        y = tl.where(x * A > B, x, _softplus(x * A, ACC) / A)
    elif FN == "mish":
        n = _mish_n(x)
        y = x * (n / (n + 2.0))
    elif FN == "hardswish":
        t = x + 3.0
        y = x * tl.where(t <= 0, 0.0, tl.where(t >= 6.0, 6.0, t)) / 6.0
    elif FN == "logsigmoid":
        y = -_softplus(-x, ACC)
    elif FN == "softsign":
        y = x / (1.0 + tl.abs(x))
    elif FN == "tanhshrink":
        y = x - _tanh(x, ACC)
    elif FN == "relu":
        y = tl.where(x <= 0, 0.0, x)
    elif FN == "relu6":
        y = tl.where(x <= 0, 0.0, tl.where(x >= 6.0, 6.0, x))
    elif FN == "leaky_relu":
        y = tl.where(x > 0, x, x * A)
    elif FN == "threshold":
        y = tl.where(x <= _constant(A, ACC), _constant(B, ACC), x)
    elif FN == "hardtanh":
        low = _constant(A, ACC)
        high = _constant(B, ACC)
        y = tl.where(x <= low, low, tl.where(x >= high, high, x))
    elif FN == "hardsigmoid":
        t = x + 3.0
        y = tl.where(t <= 0, 0.0, tl.where(t >= 6.0, 6.0, t)) / 6.0
    elif FN == "hardshrink":
        lambd = _rounded(A, DT, ACC)
        y = tl.where((x >= -lambd) & (x <= lambd), 0.0, x)
    else:
        tl.static_assert(FN == "softshrink", "unknown function")
        lambd = _constant(A, ACC)
        # x * 0 and not 0: NaN, which is neither above nor below, passes through.
        y = tl.where(x > lambd, x - lambd, tl.where(x < -lambd, x + lambd, x * 0.0))
    return y


@triton.jit
def derivative(x, FN: tl.constexpr, A: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr):
    """f'(x) of the smooth functions; "given": x is f' already."""
    if FN == "given":
        d = x
    elif FN == "gelu":
        tail = x * tl.exp(-0.5 * x * x) * _INV_SQRT_2PI
        d = _normal_cdf(x) + tl.where(tl.abs(x) == float("inf"), 0.0, tail)
    elif FN == "gelu_tanh":
        u = _gelu_tanh_inner(x)
        s = _sigmoid(u)
        bump = 0.25 * _sech2(0.5 * u)  # s (1 - s), which would cancel where s is near 1
        slope = x * bump * (1.0 + x * x * (3.0 * _KAPPA)) * _TWO_BETA
        # At huge |x| the bump is 0; 0 * inf must stay 0.
        d = s + tl.where(bump == 0, 0.0, slope)
    elif FN == "silu":
        s = _sigmoid(x)
        d = s * (1.0 + tl.where(tl.abs(x) == float("inf"), 0.0, x * (1.0 - s)))
    elif FN == "sigmoid":
        d = 0.25 * _sech2(0.5 * x)
    elif FN == "tanh":
        d = _sech2(x)
    elif FN == "elu":
        d = tl.where(x > 0, 1.0, A * tl.exp(x))
    elif FN == "celu":
        d = tl.where(x > 0, 1.0, tl.exp(x / A))
    elif FN == "selu":
        d = tl.where(x > 0, 1.0, tl.exp(x) * _SELU_ALPHA) * _SELU_SCALE
    elif FN == "softplus":
        d = tl.where(x * A > B, 1.0, _sigmoid(x * A))
    elif FN == "mish":
        n = _mish_n(x)
        sech2 = 4.0 * (n + 1.0) / ((n + 2.0) * (n + 2.0))
        tail = tl.where(tl.abs(x) == float("inf"), 0.0, x * _sigmoid(x) * sech2)
        d = n / (n + 2.0) + tail
    elif FN == "hardswish":
        d = tl.where(x <= -3.0, 0.0, tl.where(x >= 3.0, 1.0, x / 3.0 + 0.5))
    elif FN == "logsigmoid":
        d = _sigmoid(-x)
    elif FN == "softsign":
        t = 1.0 + tl.abs(x)
        d = 1.0 / (t * t)
    else:
        tl.static_assert(FN == "tanhshrink", "no derivative: not a smooth function")
        t = _tanh(x, ACC)
        d = t * t
    return d


@triton.jit
def predicate(
    x, FN: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DT: tl.constexpr, ACC: tl.constexpr
):
    """int1 tile: f'(x) is the upper of its two levels."""
    if FN == "relu":
        high = ~(x <= 0)
    elif FN == "relu6":
        high = ~((x <= 0) | (x >= 6.0))
    elif FN == "leaky_relu":
        high = x > 0
    elif FN == "threshold":
        high = ~(x <= _constant(A, ACC))
    elif FN == "hardtanh":
        high = ~((x <= _constant(A, ACC)) | (x >= _constant(B, ACC)))
    elif FN == "hardsigmoid":
        high = (x > -3.0) & (x < 3.0)
    else:
        tl.static_assert((FN == "hardshrink") or (FN == "softshrink"), "not an exact function")
        lambd = _rounded(A, DT, ACC)
        high = ~((x >= -lambd) & (x <= lambd))
    return high
