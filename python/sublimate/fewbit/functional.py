"""Few-bit activations: y = f(x) as torch computes it, dx = q(x) dy with q a 2**bits-level f'.

Kept for backward: ``bits`` bits per element, and nothing else of the input's size. Source: Novikov
et al., "Few-Bit Backward: Quantized Gradients of Activation Functions for Memory Footprint
Reduction", ICML 2023. The mathematics, the packed format and the error tables are in this folder's
README.

Shared by every function here:

Args:
    x: any shape and strides; float32, float16, bfloat16 or float64; any device with a backend.
    bits: 1 to 4, the code's width.
    codebook: a ``Codebook`` with those bits; None takes the one optimal for x ~ N(0, 1).
    stochastic: code f'(x) by unbiased stochastic rounding, so that the expected gradient is exact.
    seed: int in [0, 2**63) or 0-dim int64 tensor on x's device; the codes are a pure function of
        it. None draws one from torch's generator of x's device.
    backend: "auto", "reference", "cpu", "triton" or "cuda"; None takes the process-wide setting.

Returns:
    f(x), of x's shape, dtype and memory layout. Its gradient is ``levels[code] * dy``, multiplied
    in fp32 (fp64 for fp64) and rounded once.

Raises:
    TypeError, ValueError: a bad argument; raised before anything runs.
    BackendUnavailable: the named backend cannot run this call.

O(n) time; memory n * bits / 8 bytes until backward, none under ``torch.no_grad``. Second
derivatives are refused, and vmap is supported by the reference backend only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _philox
from .._autograd import refuse_tangents, wants_gradient
from .._dtypes import accumulator
from .._modes import ordinary_tensors
from . import reference
from .autograd import NO_FORWARD_MODE, FewBit, FewBitGiven, ops
from .codebook import Codebook, default_codebook

Tables = tuple[Tensor, ...]


@torch.compiler.assume_constant_result
def _default_tables(
    name: str, bits: int, params: tuple[float, ...], mode: str, device: torch.device, acc: Any
) -> Tables:
    """Tables of the default codebook."""
    return _cached_default_tables(name, bits, params, mode, device, acc)


@functools.cache
def _cached_default_tables(
    name: str, bits: int, params: tuple[float, ...], mode: str, device: torch.device, acc: Any
) -> Tables:
    return default_codebook(name, bits, params, mode).tensors(device, acc)


@torch.compiler.assume_constant_result
def _exact_tables(
    name: str, params: tuple[float, ...], device: torch.device, acc: torch.dtype
) -> Tables:
    """Tables of a two-valued f': no borders, the predicate decides; levels at full precision."""
    return _cached_exact_tables(name, params, device, acc)


@functools.cache
@ordinary_tensors()
def _cached_exact_tables(
    name: str, params: tuple[float, ...], device: torch.device, acc: torch.dtype
) -> Tables:
    levels_of = reference.FUNCTIONS[name].exact_levels
    assert levels_of is not None
    borders = torch.empty(0, dtype=acc, device=device)
    codes = torch.zeros(1, dtype=torch.uint8, device=device)
    return borders, codes, torch.tensor(levels_of(*params), dtype=acc, device=device)


@torch.compiler.assume_constant_result
def codebook_tables(codebook: Any, device: torch.device, acc: torch.dtype) -> Tables:
    return codebook.tensors(device, acc)


def _check_common(
    x: Any, bits: Any, codebook: Any, stochastic: Any, seed: Any, *, highest: int = 4
) -> None:
    _checks.floating_tensor("x", x)
    _checks.integer_between("bits", bits, 1, highest)
    if codebook is not None:
        if not isinstance(codebook, Codebook):
            raise _checks.fail_type("codebook", "a sublimate.fewbit.Codebook or None", codebook)
        if codebook.bits != bits:
            raise _checks.fail_value("codebook", f"a codebook of bits={bits}", f"{codebook.bits}")
    _checks.flags(stochastic=stochastic)
    _checks.seed("seed", seed)
    if seed is not None and not stochastic:
        raise _checks.fail_value("seed", "None unless stochastic=True", seed)
    if isinstance(seed, Tensor) and seed.device != x.device:
        raise _checks.fail_value("seed", f"a tensor on {x.device}", seed.device)


def check_parameters(name: str, params: tuple[float, ...], x: Tensor) -> None:
    """Parameters that x's arithmetic holds; infinite ones are infinite there too."""
    largest = torch.finfo(accumulator(x.dtype)).max
    for (argument, _), value in zip(reference.FUNCTIONS[name].params, params, strict=True):
        if largest < abs(value) < math.inf:
            raise _checks.fail_value(argument, f"a number that {x.dtype} holds", value)
    if name == "softshrink" and params[0] > torch.finfo(x.dtype).max:  # torch's own rule
        raise _checks.fail_value("lambd", f"a finite number that {x.dtype} holds", params[0])


def _seed_tensor(seed: int | Tensor | None, x: Tensor) -> Tensor:
    if seed is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=x.device)
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed, dtype=torch.int64, device=x.device)


def _uniform(seed: Tensor, x: Tensor) -> Tensor:
    """Philox uniforms of x's elements, numbered in memory order."""
    flat = _philox.uniform(seed, x.numel())
    return reference.unflatten(flat, x.shape, reference.dense_order(x))


def _covers(codebook: Codebook) -> None:
    """Stochastic rounding is unbiased only between levels that enclose f'."""
    if codebook.mode != "stochastic":
        raise _checks.fail_value(
            "codebook",
            'one fitted with mode="stochastic" when stochastic=True (its end levels enclose f\')',
            f"mode={codebook.mode!r}",
        )


def apply_tables(
    name: str,
    x: Tensor,
    params: tuple[float, ...],
    tables: Tables,
    bits: int,
    seed: Tensor | None,
    backend: str,
) -> Tensor:
    """A built-in activation with explicit device tables and a resolved backend.

    The step below the public functions; modules call it with the tables in their buffers.
    """
    function = reference.FUNCTIONS[name]
    borders, codes, levels = tables
    if backend == "reference":
        # What fp16 does not hold is infinite there; torch's scalars would overflow.
        largest = torch.finfo(x.dtype).max
        params = tuple(math.copysign(math.inf, p) if abs(p) > largest else p for p in params)
        if not wants_gradient(x):
            return function.forward(x, *params)
        decide = function.predicate
        exact = None if decide is None else (lambda t: decide(t, *params))
        return reference.activation(
            x,
            lambda t: function.forward(t, *params),
            borders,
            codes,
            levels,
            derivative=lambda t: function.derivative(t, *params),
            uniform=None if seed is None else _uniform(seed, x),
            predicate=exact,
        )
    refuse_tangents(NO_FORWARD_MODE, x)
    a, b = (*params, 0.0, 0.0)[:2]
    if not wants_gradient(x):
        return ops.fewbit_fwd(x, borders, codes, levels, None, name, a, b, 0, backend)[0]
    return FewBit.apply(x, borders, codes, levels, seed, name, a, b, bits, backend)[0]


def _call(
    name: str,
    x: Tensor,
    params: tuple[float, ...],
    bits: int,
    codebook: Codebook | None,
    stochastic: bool,
    seed: int | Tensor | None,
    backend: str | None,
) -> Tensor:
    exact = reference.FUNCTIONS[name].exact
    _check_common(x, bits, codebook, stochastic, seed, highest=1 if exact else 4)
    for (argument, _), value in zip(reference.FUNCTIONS[name].params, params, strict=True):
        _checks.number(argument, value)
    params = tuple(float(p) for p in params)
    check_parameters(name, params, x)
    chosen = _backends.resolve("fewbit", backend, x)
    if exact:
        tables = _exact_tables(name, params, x.device, accumulator(x.dtype))
    elif codebook is None:
        mode = "stochastic" if stochastic else "auto"
        tables = _default_tables(name, bits, params, mode, x.device, accumulator(x.dtype))
    else:
        if stochastic:
            _covers(codebook)
        tables = codebook_tables(codebook, x.device, accumulator(x.dtype))
    # f' of an exact function is one of its levels: chance has nothing to round.
    needed = stochastic and not exact and wants_gradient(x)
    return apply_tables(
        name, x, params, tables, bits, _seed_tensor(seed, x) if needed else None, chosen
    )


# ----------------------------------------------------------------------------------- smooth f


def gelu(
    x: Tensor,
    *,
    approximate: str = "none",
    bits: int = 3,
    codebook: Codebook | None = None,
    stochastic: bool = False,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x Phi(x), or its tanh form with ``approximate="tanh"``; see the module's docstring."""
    _checks.one_of("approximate", approximate, ("none", "tanh"))
    name = "gelu" if approximate == "none" else "gelu_tanh"
    return _call(name, x, (), bits, codebook, stochastic, seed, backend)


def _plain(name: str, formula: str) -> Callable[..., Tensor]:
    def function(
        x: Tensor,
        *,
        bits: int = 3,
        codebook: Codebook | None = None,
        stochastic: bool = False,
        seed: int | Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        return _call(name, x, (), bits, codebook, stochastic, seed, backend)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{formula}; arguments, result and errors in the module's docstring."
    return function


silu = _plain("silu", "x sigmoid(x)")
sigmoid = _plain("sigmoid", "1 / (1 + exp(-x))")
tanh = _plain("tanh", "Hyperbolic tangent")
selu = _plain("selu", "scale (x for x > 0, alpha (exp(x) - 1) else)")
mish = _plain("mish", "x tanh(log(1 + exp(x)))")
hardswish = _plain("hardswish", "x clamp(x + 3, 0, 6) / 6")
logsigmoid = _plain("logsigmoid", "log sigmoid(x)")
softsign = _plain("softsign", "x / (1 + |x|)")
tanhshrink = _plain("tanhshrink", "x - tanh(x)")


def elu(
    x: Tensor,
    alpha: float = 1.0,
    *,
    bits: int = 3,
    codebook: Codebook | None = None,
    stochastic: bool = False,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x for x > 0, alpha (exp(x) - 1) else; see the module's docstring."""
    return _call("elu", x, (alpha,), bits, codebook, stochastic, seed, backend)


def celu(
    x: Tensor,
    alpha: float = 1.0,
    *,
    bits: int = 3,
    codebook: Codebook | None = None,
    stochastic: bool = False,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x for x > 0, alpha (exp(x / alpha) - 1) else, alpha != 0; see the module's docstring."""
    _checks.number("alpha", alpha)
    if alpha == 0:
        raise _checks.fail_value("alpha", "a number other than 0", alpha)
    return _call("celu", x, (alpha,), bits, codebook, stochastic, seed, backend)


def softplus(
    x: Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
    *,
    bits: int = 3,
    codebook: Codebook | None = None,
    stochastic: bool = False,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """log(1 + exp(beta x)) / beta, x where beta x > threshold; see the module's docstring."""
    _checks.number("beta", beta)
    if beta == 0:
        raise _checks.fail_value("beta", "a number other than 0", beta)
    return _call("softplus", x, (beta, threshold), bits, codebook, stochastic, seed, backend)


# ------------------------------------------------------------------- two-valued f': one exact bit


def relu(x: Tensor, *, bits: int = 1, backend: str | None = None) -> Tensor:
    """max(x, 0) keeping one bit per element; the gradient is exact."""
    return _call("relu", x, (), bits, None, False, None, backend)


def relu6(x: Tensor, *, bits: int = 1, backend: str | None = None) -> Tensor:
    """clamp(x, 0, 6) keeping one bit per element; the gradient is exact."""
    return _call("relu6", x, (), bits, None, False, None, backend)


def leaky_relu(
    x: Tensor, negative_slope: float = 0.01, *, bits: int = 1, backend: str | None = None
) -> Tensor:
    """x for x > 0, negative_slope x else, keeping one bit; the gradient is exact."""
    return _call("leaky_relu", x, (negative_slope,), bits, None, False, None, backend)


def threshold(
    x: Tensor, threshold: float, value: float, *, bits: int = 1, backend: str | None = None
) -> Tensor:
    """x for x > threshold, value else, keeping one bit; the gradient is exact."""
    return _call("threshold", x, (threshold, value), bits, None, False, None, backend)


def hardtanh(
    x: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    *,
    bits: int = 1,
    backend: str | None = None,
) -> Tensor:
    """clamp(x, min_val, max_val) keeping one bit; the gradient is exact."""
    _checks.number("min_val", min_val)
    _checks.number("max_val", max_val)
    if min_val > max_val:
        raise _checks.fail_value("min_val", f"at most max_val, {max_val}", min_val)
    return _call("hardtanh", x, (min_val, max_val), bits, None, False, None, backend)


def hardsigmoid(x: Tensor, *, bits: int = 1, backend: str | None = None) -> Tensor:
    """clamp(x + 3, 0, 6) / 6 keeping one bit; the gradient is exact."""
    return _call("hardsigmoid", x, (), bits, None, False, None, backend)


def _shrink(name: str, x: Tensor, lambd: float, bits: int, backend: str | None) -> Tensor:
    _checks.number("lambd", lambd)
    if lambd < 0:
        raise _checks.fail_value("lambd", "a number of at least 0", lambd)
    return _call(name, x, (lambd,), bits, None, False, None, backend)


def hardshrink(
    x: Tensor, lambd: float = 0.5, *, bits: int = 1, backend: str | None = None
) -> Tensor:
    """x where |x| > lambd, else 0, keeping one bit; the gradient is exact."""
    return _shrink("hardshrink", x, lambd, bits, backend)


def softshrink(
    x: Tensor, lambd: float = 0.5, *, bits: int = 1, backend: str | None = None
) -> Tensor:
    """x moved towards 0 by lambd, keeping one bit; the gradient is exact."""
    return _shrink("softshrink", x, lambd, bits, backend)


# ---------------------------------------------------------------------------------- any function


def activation(
    x: Tensor,
    codebook: Codebook,
    *,
    fn: Callable[[Tensor], Tensor] | None = None,
    stochastic: bool = False,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Any elementwise activation with a fitted codebook.

    A codebook of a built-in function runs that function's fused kernel. Otherwise torch evaluates
    ``fn`` (default: the callable the codebook was fitted to) without recording it, and our kernels
    code x and apply the levels.

    Args:
        codebook: from ``fit_codebook``, 1 to 4 bits.
        fn: differentiable elementwise callable keeping shape and dtype; needed when the codebook
            was loaded from a dict and so has lost its callable.

    The rest as in the module's docstring.
    """
    if not isinstance(codebook, Codebook):
        raise _checks.fail_type("codebook", "a sublimate.fewbit.Codebook", codebook)
    _check_common(x, codebook.bits, codebook, stochastic, seed)
    if fn is None and codebook.builtin:
        name, params, exact = (
            codebook.name,
            codebook.params,
            reference.FUNCTIONS[codebook.name].exact,
        )
        given = None if exact else codebook
        return _call(name, x, params, codebook.bits, given, stochastic, seed, backend)
    f = codebook.fn if fn is None else fn
    if f is None:
        raise _checks.fail_value(
            "fn", "a callable (this codebook was loaded without its function)", None
        )
    if not callable(f):
        raise _checks.fail_type("fn", "a callable", f)
    if stochastic:
        _covers(codebook)
    chosen = _backends.resolve("fewbit", backend, x)
    if not wants_gradient(x):
        return f(x)
    seeds = _seed_tensor(seed, x) if stochastic else None
    borders, codes, levels = codebook_tables(codebook, x.device, accumulator(x.dtype))
    lowest, highest = levels[0], levels[-1]

    def derivative(t: Tensor) -> Tensor:
        """f'(t), within the levels: a user's function may round past them."""
        with torch.enable_grad():
            leaf = t.detach().requires_grad_()
            (d,) = torch.autograd.grad(f(leaf).sum(), leaf)
        return d.clamp(lowest.to(d.dtype), highest.to(d.dtype))

    if chosen == "reference":
        return reference.activation(
            x,
            f,
            borders,
            codes,
            levels,
            derivative=derivative,
            uniform=None if seeds is None else _uniform(seeds, x),
        )
    arguments = (borders, codes, levels, seeds, codebook.bits, chosen)
    return FewBitGiven.apply(x, f, derivative, *arguments)[0]
