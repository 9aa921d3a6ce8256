"""The reference itself: closed forms, torch's own gradients, the packed format word by word."""

from __future__ import annotations

import bisect
import math
from functools import partial

import pytest
import torch
from helpers.fewbit_cases import (
    EAGER,
    EXACT,
    SMOOTH,
    VARIANTS,
    corners,
    full_params,
    public,
    samples,
    variant_id,
)
from helpers.parity import assert_same_bits
from scipy import special
from sublimate import _native, _philox, fewbit
from sublimate.fewbit import reference as R

REFERENCE = {"backend": "reference"}


def _softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def _sigma(x: float) -> float:
    return float(special.expit(x))


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
#: f(x) for a Python float, independent of torch.
CLOSED = {
    "gelu": lambda x: x * float(special.ndtr(x)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "silu": lambda x: x * _sigma(x),
    "sigmoid": _sigma,
    "tanh": math.tanh,
    "elu": lambda x, alpha=1.0: x if x > 0 else alpha * math.expm1(x),
    "celu": lambda x, alpha=1.0: max(x, 0.0) + min(0.0, alpha * math.expm1(x / alpha)),
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * math.expm1(x)),
    "softplus": lambda x, beta=1.0, threshold=20.0: (
        x if beta * x > threshold else _softplus(beta * x) / beta
    ),
    "mish": lambda x: x * math.tanh(_softplus(x)),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "logsigmoid": lambda x: -_softplus(-x),
    "softsign": lambda x: x / (1 + abs(x)),
    "tanhshrink": lambda x: x - math.tanh(x),
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x, slope=0.01: x if x > 0 else slope * x,
    "threshold": lambda x, threshold=0.0, value=0.0: x if x > threshold else value,
    "hardtanh": lambda x, low=-1.0, high=1.0: min(max(x, low), high),
    "hardsigmoid": lambda x: min(max(x + 3, 0.0), 6.0) / 6,
    "hardshrink": lambda x, lambd=0.5: x if abs(x) > lambd else 0.0,
    "softshrink": lambda x, lambd=0.5: math.copysign(max(abs(x) - lambd, 0.0), x),
}

#: f' at minus and plus infinity.
LIMITS = {
    **dict.fromkeys(("gelu", "gelu_tanh", "silu", "elu", "celu", "softplus", "mish"), (0.0, 1.0)),
    "sigmoid": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "selu": (0.0, SELU_SCALE),
    "hardswish": (0.0, 1.0),
    "logsigmoid": (1.0, 0.0),
    "softsign": (0.0, 0.0),
    "tanhshrink": (1.0, 1.0),
    "relu": (0.0, 1.0),
    "relu6": (0.0, 0.0),
    "threshold": (0.0, 1.0),
    "hardtanh": (0.0, 0.0),
    "hardsigmoid": (0.0, 0.0),
    "hardshrink": (1.0, 1.0),
    "softshrink": (1.0, 1.0),
}


def grid() -> torch.Tensor:
    fine = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    wide = torch.logspace(-12, 2.5, 200, dtype=torch.float64)
    return torch.cat([fine, wide, -wide])


def test_functions_are_those_of_the_kernels():
    """Names and order: positions are the ids of every kernel source."""
    assert tuple(R.FUNCTIONS) == tuple(EAGER)
    assert tuple(n for n in EAGER if R.FUNCTIONS[n].exact) == EXACT
    assert list(_native.CPU.load().fewbit_functions()) == list(EAGER)


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=variant_id)
def test_forward_is_the_closed_form(name, params):
    x = torch.cat([grid(), corners(name, params, torch.float64)])
    y = R.FUNCTIONS[name].forward(x, *full_params(name, params))
    closed = torch.tensor([CLOSED[name](v, *params) for v in x.tolist()], dtype=torch.float64)
    # Cancellation near 0 (tanhshrink) leaves a few units of the larger operand.
    torch.testing.assert_close(y, closed, rtol=2e-13, atol=2e-15)
    assert torch.equal(y, EAGER[name](x, *params))


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=variant_id)
def test_derivative_is_torchs(name, params):
    """Against torch.autograd in float64, corners and both their neighbours included."""
    x = torch.cat([grid(), corners(name, params, torch.float64)]).requires_grad_()
    (d,) = torch.autograd.grad(EAGER[name](x, *params).sum(), x)
    ours = R.FUNCTIONS[name].derivative(x.detach(), *full_params(name, params))
    if name == "hardsigmoid" or (name == "celu" and params):
        # torch's backward takes 1/6 and 1/alpha in fp32 whatever the dtype: right to 2**-24 only,
        # and the error of 1/alpha is multiplied by x / alpha.
        assert torch.equal(ours == 0, d == 0)
        torch.testing.assert_close(ours, d, rtol=2**-24 * (1 + 320 / 1.7), atol=0)
    elif name in EXACT:
        assert torch.equal(ours, d)
    else:
        torch.testing.assert_close(ours, d, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=variant_id)
def test_derivative_is_a_difference_quotient(name, params):
    """Against f itself, away from the corners: no gradient formula takes part."""
    p, h = full_params(name, params), 1e-4
    x = torch.linspace(-7.03, 7.01, 977, dtype=torch.float64)
    at = torch.tensor(R.FUNCTIONS[name].breakpoints(*p) or (99.0,), dtype=torch.float64)
    x = x[((x[:, None] - at).abs() > 3 * h).all(1)]
    f = partial(R.FUNCTIONS[name].forward)
    slope = (8 * (f(x + h, *p) - f(x - h, *p)) - f(x + 2 * h, *p) + f(x - 2 * h, *p)) / (12 * h)
    ours = R.FUNCTIONS[name].derivative(x, *p)
    torch.testing.assert_close(ours, slope, rtol=0, atol=2e-10)
    assert ours.abs().max() > 0.16


@pytest.mark.parametrize("name", EAGER)
def test_derivative_at_infinity_and_nan(name):
    p = R.FUNCTIONS[name].defaults
    x = torch.tensor([-math.inf, math.inf, math.nan], dtype=torch.float64)
    low, high, nan = R.FUNCTIONS[name].derivative(x, *p).tolist()
    assert (low, high) == LIMITS.get(name, (0.01, 1.0))
    if name in SMOOTH:
        assert math.isnan(nan)
    else:
        assert nan in R.FUNCTIONS[name].exact_levels(*p)


@pytest.mark.parametrize("name", SMOOTH)
def test_codes_at_infinity_and_nan(name):
    """Infinity falls in the end intervals, NaN in the last: torch.searchsorted's order."""
    borders = torch.tensor([-1.0, 0.25])
    codes = torch.tensor([2, 0, 1])
    x = torch.tensor([-math.inf, math.inf, math.nan, -1.0, 0.25, 0.26])
    assert R.encode(x, borders, codes).tolist() == [2, 1, 1, 2, 0, 1]


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=variant_id)
def test_breakpoints_are_the_corners(name, params):
    """f' jumps or bends there, and f'' (by differences) is bounded elsewhere on a fine grid."""
    p = full_params(name, params)
    at = R.FUNCTIONS[name].breakpoints(*p)
    x = torch.linspace(-9.0005, 9.0007, 60_001, dtype=torch.float64)
    d = R.FUNCTIONS[name].derivative(x, *p)
    jumps = (d.diff().abs() > 0.01).nonzero().flatten()
    for k in jumps.tolist():
        assert any(x[k] <= b <= x[k + 1] for b in at), f"f' jumps at {x[k]:.4f}, not in {at}"
    if name in EXACT and name not in ("threshold",):
        assert len(jumps) == len(at)


# ---------------------------------------------------------------------------------------- format


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 95, 1021])
def test_pack_round_trip(n, bits):
    codes = torch.randint(0, 2**bits, (n,), generator=torch.Generator().manual_seed(n))
    packed = R.pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (R.words(n, bits),)
    assert torch.equal(R.unpack(packed, n, bits), codes)
    # Lanes past the end are zero.
    assert not R.unpack(packed, packed.numel() // bits * 32, bits)[n:].any()


def test_words_by_hand():
    # 33 codes of 2 bits: element 0 has code 1, 1 has 2, 31 has 3, 32 has 2, the others 0.
    codes = torch.zeros(33, dtype=torch.int64)
    codes[0], codes[1], codes[31], codes[32] = 1, 2, 3, 2
    low, high = 1 | 1 << 31, 1 << 1 | 1 << 31
    expected = [low - 2**32, high - 2**32, 0, 1]
    assert R.pack(codes, 2).tolist() == expected
    # One element of every code of 3 bits: planes are the truth table's columns.
    assert R.pack(torch.arange(8), 3).tolist() == [0b10101010, 0b11001100, 0b11110000]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_encode_is_bisect(dtype):
    """Plain Python on the same numbers, elements equal to a border included."""
    borders = torch.linspace(-2.3, 2.1, 19, dtype=torch.float64)
    codes = (torch.arange(20) * 7 + 3) % 16
    x = samples(501, dtype, odd=False)
    rounded = borders.to(dtype)
    x[:19] = rounded
    x[19:38] = torch.nextafter(rounded, torch.tensor(math.inf, dtype=dtype))
    x[38:57] = torch.nextafter(rounded, torch.tensor(-math.inf, dtype=dtype))
    table = rounded.double().tolist()
    expected = [codes[bisect.bisect_left(table, v)].item() for v in x.double().tolist()]
    assert R.encode(x, borders, codes).tolist() == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_encode_stochastic_is_its_definition(bits):
    levels = torch.linspace(-0.2, 1.3, 2**bits, dtype=torch.float64)
    v = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1.5 - 0.2
    v[: 2**bits] = levels  # a value on a level
    u = _philox.uniform(5, 300).double()
    u[-1] = 0.0
    codes = R.encode_stochastic(v, levels, u)
    for value, chance, code in zip(v.tolist(), u.tolist(), codes.tolist(), strict=True):
        k = min(max(bisect.bisect_right(levels.tolist(), value) - 1, 0), 2**bits - 2)
        low, high = levels[k].item(), levels[k + 1].item()
        assert code == k + (chance * (high - low) < value - low)
    assert torch.equal(levels[codes[1 : 2**bits - 1]], levels[1:-1])  # no noise on a level


def test_dense_order():
    x = torch.zeros(2, 3, 4, 5)
    assert R.dense_order(x) == [0, 1, 2, 3]
    assert R.dense_order(x.to(memory_format=torch.channels_last)) == [0, 2, 3, 1]
    assert R.dense_order(x.permute(3, 1, 0, 2)) == [2, 1, 3, 0]
    y = samples((2, 3, 4), torch.float32).permute(2, 0, 1)
    order = R.dense_order(y)
    assert torch.equal(
        R.unflatten(R.flatten(y, order), y.shape, order).nan_to_num(), y.nan_to_num()
    )
    assert_same_bits(R.flatten(y, order), y.permute(1, 2, 0).reshape(-1))


# ------------------------------------------------------------------------------------ transforms


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_second_derivative_is_refused(name, backend):
    """A gradient penalty, by itself or in a loss, and torch.func's nested grad."""
    f = partial(public(name), backend=backend)
    x = samples(20, torch.float64, odd=False).requires_grad_()
    for y in (f(x).sum(), f(x).square().sum()):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        assert g.requires_grad and g.abs().max() > 0.1
        with pytest.raises(RuntimeError, match=r"sublimate\.fewbit: no second derivative"):
            g.square().sum().backward()
    penalised = f(x).sum()
    (g,) = torch.autograd.grad(penalised, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (penalised + g.norm()).backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda t: torch.func.grad(lambda s: f(s).sum())(t).sum())(x.detach())
    with pytest.raises(RuntimeError, match=r"no second derivative|not have been used"):
        (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        torch.autograd.grad(g.sum(), x)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivative_is_refused_for_a_gated_unit(backend):
    gate, up = (samples(20, torch.float64, seed=s, odd=False).requires_grad_() for s in (1, 2))
    y = fewbit.swiglu(gate, up, backend=backend)
    for g in torch.autograd.grad(y.sum(), (gate, up), create_graph=True):
        with pytest.raises(RuntimeError, match="no second derivative"):
            g.sum().backward()


@pytest.mark.parametrize("name", EAGER)
def test_vmap(name):
    """Over rows, and of the gradient: what the whole batch gives."""
    f = partial(public(name), **REFERENCE)
    if name == "threshold":
        f = partial(f, threshold=0.1, value=-0.2)
    x = samples((7, 45), torch.float64, odd=False)
    dy = samples((7, 45), torch.float64, seed=3, odd=False)
    assert torch.equal(torch.func.vmap(f)(x), f(x))
    leaf = x.clone().requires_grad_()
    f(leaf).backward(dy)
    gradient = torch.func.vmap(torch.func.grad(lambda t, w: (f(t) * w).sum()))
    assert torch.equal(gradient(x, dy), leaf.grad)
    assert torch.equal(
        torch.func.vmap(gradient, in_dims=(1, 1), out_dims=1)(x[:, None], dy[:, None])[:, 0],
        leaf.grad,
    )
    assert leaf.grad.abs().max() > 0.1


@pytest.mark.parametrize("keep", ["up", "gate"])
def test_vmap_of_a_gated_unit(keep):
    f = partial(fewbit.geglu, keep=keep, **REFERENCE)
    gate, up, dy = (samples((5, 33), torch.float64, seed=s, odd=False) for s in (1, 2, 3))
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    f(*leaves).backward(dy)
    assert torch.equal(torch.func.vmap(f)(gate, up), f(gate, up))
    gradient = torch.func.grad(lambda a, b, w: (f(a, b) * w).sum(), argnums=(0, 1))
    for result, leaf in zip(torch.func.vmap(gradient)(gate, up, dy), leaves, strict=True):
        torch.testing.assert_close(result, leaf.grad, rtol=1e-13, atol=1e-15)
        assert leaf.grad.abs().max() > 0.1


@pytest.mark.parametrize("name", ["silu", "relu"])
def test_compiled_backends_refuse_vmap(name):
    x = samples((3, 40), torch.float32, odd=False)
    with pytest.raises(RuntimeError, match=r"vmap is not supported .* pass backend=\"reference\""):
        torch.func.vmap(partial(public(name), backend="cpu"))(x)
    with pytest.raises(RuntimeError, match="vmap is not supported"):
        torch.func.vmap(torch.func.grad(lambda t: public(name)(t, backend="cpu").sum()))(x)
    with pytest.raises(RuntimeError, match="vmap is not supported"):
        torch.func.vmap(partial(fewbit.swiglu, backend="cpu"))(x, x)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_func_grad_and_vjp(backend):
    """torch.func's own transforms without vmap give the autograd gradient."""
    x = samples(200, torch.float64, odd=False)
    dy = samples(200, torch.float64, seed=2, odd=False)
    leaf = x.clone().requires_grad_()
    fewbit.mish(leaf, backend=backend).backward(dy)
    f = partial(fewbit.mish, backend=backend)
    assert torch.equal(torch.func.grad(lambda t: (f(t) * dy).sum())(x), leaf.grad)
    y, pull = torch.func.vjp(f, x)
    assert torch.equal(pull(dy)[0], leaf.grad) and torch.equal(y, f(x))
    assert leaf.grad.abs().max() > 0.5


@pytest.mark.parametrize("name", ["silu", "relu", "swiglu", "geglu"])
def test_compiled_backends_refuse_forward_mode(name):
    """Where tangents would be lost without a word; also where the input is recorded."""
    x, along = (samples(40, torch.float64, seed=s, odd=False) for s in (0, 1))
    f = partial(getattr(fewbit, name), backend="cpu")
    call = f if name in EAGER else (lambda t: f(x, t))
    message = r"forward-mode derivatives are not supported .* pass backend=\"reference\""
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(call, (x,), (along,))
    with torch.autograd.forward_ad.dual_level():
        for leaf in (x, x.clone().requires_grad_()):
            with pytest.raises(RuntimeError, match=message):
                call(torch.autograd.forward_ad.make_dual(leaf, along))
    if name in EAGER:
        _, found = torch.func.jvp(
            partial(getattr(fewbit, name), backend="reference"), (x,), (along,)
        )
        torch.testing.assert_close(found, R.FUNCTIONS[name].derivative(x) * along)
    assert torch.equal(call(x), call(x.clone().requires_grad_()).detach())
