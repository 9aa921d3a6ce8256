"""Cases of test_triton_interpreter.py: every few-bit Triton kernel against the reference.

They run under Triton's interpreter on CPU tensors, in a process of their own. The interpreter loads
bf16 exactly but truncates on the way back, so bf16 is covered here for all codes, while its stored
results are held to one unit in the last place; the rounding itself is for the GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from sublimate import _philox
from sublimate.fewbit import reference as R
from sublimate.kernels import fewbit as K
from sublimate.kernels.fewbit import configs

ALL = tuple(R.FUNCTIONS)
SMOOTH = tuple(name for name in ALL if not R.FUNCTIONS[name].exact)
DTYPES = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
GATES = {name: R.FUNCTIONS[name] for name in K.GATES}

# relative RMS forward; the table of the house, and for bf16 one truncation (2**-7 at most).
RMS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.float64: 1e-13, torch.bfloat16: 8e-3}
FLOOR = {
    torch.float32: (1e-5, 1.3e-6),
    torch.float16: (1e-5, 1e-3),
    torch.float64: (1e-7, 1e-7),
    torch.bfloat16: (1e-5, 1.6e-2),
}
BLOCK = max(c.block for c in configs.CONFIGS + configs.CONFIGS_FP64)
SMALL = configs.CONFIGS[0].block
SIZES = sorted({0, 1, 31, 32, 33, 127, 128, 129, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL + 5})
UNTOUCHED = -123456789


def samples(n: int, dtype: torch.dtype, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    """Normal numbers; at the end those that go wrong: zeros, infinities, NaN, tiny, big."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64) * scale
    odd = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-3, -1e-3, 40.0, -40.0, 1e-7, 3.0, -3.0]
    odd += [6.0, 0.5, -0.5, 1.0, -1.0, 20.0, 20.5, -90.0, 90.0, 2e-5]
    k = min(n, len(odd))
    x[n - k :] = torch.tensor(odd[:k], dtype=torch.float64)
    return x.to(dtype)


def normal(n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    return R.accumulator(dtype)


def tables(dtype: torch.dtype, bits: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Borders whose rounding to 16 bits matters, and codes that are not the identity."""
    borders = (torch.linspace(-2.3, 2.1, m) + 0.0137).to(table_dtype(dtype))
    codes = (torch.arange(m + 1) * 5 + 3) % 2**bits
    return borders, codes.to(torch.uint8)


def params(
    name: str, given: tuple[float, ...] | None = None
) -> tuple[tuple[float, ...], float, float]:
    p = R.FUNCTIONS[name].defaults if given is None else given
    a, b = (*p, 0.0, 0.0)[:2]
    return p, a, b


def empty_words(n: int, bits: int) -> torch.Tensor:
    return torch.full((R.words(n, bits),), UNTOUCHED, dtype=torch.int32)


def assert_values(y: torch.Tensor, truth: torch.Tensor, eager: torch.Tensor, what: str) -> None:
    """The house's rule: at most twice eager's error plus a floor, and a relative RMS."""
    finite = truth.isfinite() & (truth.abs() <= torch.finfo(y.dtype).max)
    torch.testing.assert_close(
        y.double()[~finite], truth[~finite].to(y.dtype).double(), rtol=0, atol=0, equal_nan=True
    )
    y64, e64, t = y.double()[finite], eager.double()[finite], truth[finite]
    if t.numel() == 0:
        return
    atol, rtol = FLOOR[y.dtype]
    # Eager's own slip at infinity (its vectorised erf) is not its error at finite numbers.
    theirs = (e64 - t).abs().nan_to_num(0.0).max()
    excess = (y64 - t).abs() - (2 * theirs + atol + rtol * t.abs())
    assert excess.max() <= 0, f"{what}: error {(y64 - t).abs().max():.3g}, eager {theirs:.3g}"
    rms = (y64 - t).pow(2).mean().sqrt() / t.pow(2).mean().sqrt().clamp_min(1e-30)
    assert t.numel() < 30 or rms < RMS[y.dtype], f"{what}: relative RMS {rms:.3g}"


def run_forward(x, name, p_a_b, bits, borders=None, codes=None, levels=None, seed=None):
    _, a, b = p_a_b
    y, packed = torch.full_like(x, math.nan), empty_words(x.numel(), bits)
    K.activation_fwd(x, y, packed, borders, codes, levels, name, a, b, bits, seed is not None, seed)
    return y, packed


PARAMS = [(name, None) for name in ALL] + [
    ("elu", (0.7,)),
    ("celu", (1.7,)),
    ("softplus", (2.5, 4.0)),
    ("leaky_relu", (0.21,)),
    ("leaky_relu", (-0.3,)),
    ("threshold", (0.1, -7.3)),
    ("hardtanh", (-0.3, 2.7)),
    ("hardshrink", (0.11,)),
    ("softshrink", (0.77,)),
]


def test_functions_in_order():
    assert K.FUNCTIONS == ALL
    assert tuple(n for n in ALL if R.FUNCTIONS[n].exact) == K.EXACT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "given"), PARAMS)
def test_forward(name, given, dtype):
    function, p = R.FUNCTIONS[name], params(name, given)
    bits, m = (1, 0) if function.exact else (3, 7)
    borders, codes = tables(dtype, bits, m)
    x = samples(BLOCK + 77, dtype)
    if function.exact:  # every corner, as an element of this dtype
        corners = torch.tensor(function.breakpoints(*p[0]), dtype=dtype)
        x[: len(corners)] = corners
    y, packed = run_forward(x, name, p, bits, borders, codes)
    # Truth in float64, of a function that jumps where torch's does: lambda is rounded to x's dtype,
    # a threshold to the arithmetic type.
    jump = {"hardshrink": dtype, "threshold": table_dtype(dtype)}.get(name, torch.float64)
    at = tuple(float(torch.tensor(v, dtype=jump)) for v in p[0])
    truth = function.forward(x.double(), *at)
    assert_values(y, truth, function.forward(x, *p[0]), name)
    if function.exact:
        code = function.predicate(x, *p[0])
    else:
        code = R.encode(x, borders, codes)
    assert torch.equal(packed, R.pack(code, bits))


SMALL_RESULTS = ("silu", "sigmoid", "tanh", "elu", "celu", "selu", "softplus", "mish", "logsigmoid")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", SMALL_RESULTS)
def test_small_results(name, dtype):
    """Where f(x) is small, each element is right to a few units in the last place."""
    size = torch.logspace(-9, 1, 700, dtype=torch.float64)
    x = torch.cat([size, -size]).to(dtype)
    y, _ = run_forward(x, name, params(name), 0)
    truth = R.FUNCTIONS[name].forward(x.double())
    relative = ((y.double() - truth) / truth).abs().max()
    # exp(x) - 1 just beyond the series enlarges the rounding of exp 2.5 times; 2.5 eps found.
    assert relative < 4 * torch.finfo(dtype).eps, f"{relative / torch.finfo(dtype).eps:.2g} eps"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(n, dtype):
    x, borders_codes = samples(n, dtype, seed=n), tables(dtype, 3, 7)
    function = R.FUNCTIONS["silu"]
    y, packed = run_forward(x, "silu", params("silu"), 3, *borders_codes)
    assert_values(y, function.forward(x.double()), function.forward(x), "silu")
    assert torch.equal(packed, R.pack(R.encode(x, *borders_codes), 3))
    levels = torch.linspace(-0.11, 1.07, 8, dtype=table_dtype(dtype))
    grad, dx = normal(n, dtype, n + 1), torch.full_like(x, math.nan)
    K.activation_bwd(grad, packed, levels, dx, 3)
    assert_product(dx, R.decode(packed, levels, n, 3) * grad.to(levels.dtype))
    kept = torch.full_like(x, math.nan)
    K.gated_fwd(x, grad, kept, packed, *borders_codes, "silu", 3, "up", None, 1)
    assert torch.equal(packed, R.pack(R.encode(x, *borders_codes), 3))
    assert_values(
        kept, function.forward(x.double()) * grad.double(), function.forward(x) * grad, ""
    )


@pytest.mark.parametrize("n", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_large_launch(n, monkeypatch):
    """The launch shape of large tensors, at sizes around its block."""
    monkeypatch.setattr(configs, "_LARGE_FROM", 1)
    x, borders_codes = samples(n, torch.float32, seed=n), tables(torch.float32, 4, 20)
    y, packed = run_forward(x, "gelu", params("gelu"), 4, *borders_codes)
    assert_values(
        y, R.FUNCTIONS["gelu"].forward(x.double()), R.FUNCTIONS["gelu"].forward(x), "gelu"
    )
    assert torch.equal(packed, R.pack(R.encode(x, *borders_codes), 4))
    levels, grad, dx = torch.linspace(0, 1, 16), normal(n, torch.float32, 1), torch.empty(n)
    K.activation_bwd(grad, packed, levels, dx, 4)
    assert torch.equal(dx, R.decode(packed, levels, n, 4) * grad)
    seed = torch.tensor(2**40 + 3)
    _, packed = run_forward(x, "silu", params("silu"), 2, levels=levels[::5].clone(), seed=seed)
    assert_chance(x, "silu", packed, levels[::5].clone(), 2, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("bits", "m"), [(1, 0), (1, 1), (1, 3), (2, 3), (2, 9), (3, 6), (4, 15), (4, 70), (8, 255)]
)
def test_tables(bits, m, dtype):
    """Bit widths and tables of any length; elements equal to a border lie to its left."""
    borders, codes = tables(dtype, bits, m)
    x = samples(2 * m + SMALL + 40, dtype)
    x[:m] = borders.to(dtype)
    x[m : 2 * m] = torch.nextafter(x[:m], torch.tensor(math.inf, dtype=dtype))
    packed = empty_words(x.numel(), bits)
    K.activation_fwd(x, None, packed, borders, codes, None, "given", 0.0, 0.0, bits, False, None)
    assert torch.equal(packed, R.pack(R.encode(x, borders, codes), bits))
    levels = (torch.arange(2**bits) ** 1.5 / 7 - 0.3).to(table_dtype(dtype))
    grad, dx = samples(x.numel(), dtype, seed=2), torch.full_like(x, math.nan)
    K.activation_bwd(grad, packed, levels, dx, bits)
    assert_product(dx, R.decode(packed, levels, x.numel(), bits) * grad.to(levels.dtype))


def assert_product(result: torch.Tensor, product: torch.Tensor) -> None:
    """Exactly the product rounded once; for bf16, whose rounding truncates here, one of both."""
    if result.dtype == torch.bfloat16:
        expected = product.to(torch.bfloat16)
        down = (product.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
        assert ((result == expected) | (result == down) | expected.isnan()).all()
        assert torch.equal(result.isnan(), expected.isnan())
    else:
        torch.testing.assert_close(result, product.to(result.dtype), rtol=0, atol=0, equal_nan=True)


def assert_chance(x, name, packed, levels, bits, seed) -> None:
    """Codes are the reference's for the same uniforms, save where its comparison is a near tie.

    v is computed twice, in arithmetic of relative error eps; a code may differ only where
    |u (hi - lo) - (v - lo)| is within that.
    """
    n, acc = x.numel(), table_dtype(x.dtype)
    v = (
        x.to(acc)
        if name == "given"
        else R.FUNCTIONS[name].derivative(x.double(), *R.FUNCTIONS[name].defaults)
    )
    v = v.to(levels.dtype)
    u = _philox.uniform(seed, n)
    expected = R.encode_stochastic(v, levels, u.to(acc))
    found = R.unpack(packed, n, bits)
    assert torch.equal(packed, R.pack(found, bits)), "unused lanes are not zero"
    different = found != expected
    if name == "given":
        assert not different.any()
        return
    lower = torch.searchsorted(levels[1:-1].contiguous(), v, right=True)
    gap = levels[lower + 1] - levels[lower]
    margin = (u * gap - (v - levels[lower])).abs()
    tie = (margin < 2e-6 * levels.abs().max()) | ((gap - margin).abs() < 2e-6)
    assert not (different & ~tie).any()
    assert (found - expected).abs().max() <= 1
    assert different.double().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_stochastic(name, dtype):
    x = samples(2 * SMALL + 45, dtype, seed=11)
    x = x[x.isfinite()]  # f'(inf) is NaN or not, by the formula; covered by test_given
    levels = torch.linspace(-0.2, 1.2, 8, dtype=table_dtype(dtype))
    seed = torch.tensor(2**35 + 99)
    y, packed = run_forward(x, name, params(name), 3, levels=levels, seed=seed)
    assert_values(y, R.FUNCTIONS[name].forward(x.double()), R.FUNCTIONS[name].forward(x), name)
    assert_chance(x, name, packed, levels, 3, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_given(bits, dtype):
    """A user's derivative, NaN and infinity included: codes equal to the last."""
    x = torch.rand(SMALL + 9, generator=torch.Generator().manual_seed(3)).to(dtype)
    x[5], x[6], x[7] = math.nan, math.inf, -math.inf
    levels = torch.linspace(-0.1, 1.05, 2**bits, dtype=table_dtype(dtype))
    seed, packed = torch.tensor(77), empty_words(x.numel(), bits)
    K.activation_fwd(x, None, packed, None, None, levels, "given", 0.0, 0.0, bits, True, seed)
    assert_chance(x, "given", packed, levels, bits, seed)


def test_no_codes():
    """bits = 0: only y is written, and no table is read."""
    x = samples(100, torch.float32)
    y = torch.full_like(x, math.nan)
    K.activation_fwd(x, y, None, None, None, None, "mish", 0.0, 0.0, 0, False, None)
    assert_values(
        y, R.FUNCTIONS["mish"].forward(x.double()), R.FUNCTIONS["mish"].forward(x), "mish"
    )
    gated = torch.full_like(x, math.nan)
    K.gated_fwd(x, x, gated, None, None, None, "silu", 0, "gate", None, 10)
    truth = R.FUNCTIONS["silu"].forward(x.double()) * x.double()
    assert_values(gated, truth, R.FUNCTIONS["silu"].forward(x) * x, "gated")


def test_writes_stay_inside():
    """Views between sentinels: nothing is written before or after."""
    n, bits = 77, 3
    borders, codes = tables(torch.float32, bits, 7)
    levels = torch.linspace(0, 1, 8)
    x, grad = samples(n + 2, torch.float32)[1:-1], normal(n, torch.float32, 0)
    room = [torch.full((n + 6,), 555.0) for _ in range(2)]
    words = torch.full((R.words(n, bits) + 4,), UNTOUCHED, dtype=torch.int32)
    y, dx, packed = room[0][3:-3], room[1][3:-3], words[2:-2]
    K.activation_fwd(x, y, packed, borders, codes, None, "silu", 0.0, 0.0, bits, False, None)
    K.activation_bwd(grad, packed, levels, dx, bits)
    for r in room:
        assert (r[:3] == 555).all() and (r[-3:] == 555).all()
    assert (words[:2] == UNTOUCHED).all() and (words[-2:] == UNTOUCHED).all()
    assert torch.equal(packed, R.pack(R.encode(x, borders, codes), bits))


def over_scale(up: torch.Tensor, scale: torch.Tensor, inner: int, acc: torch.dtype) -> torch.Tensor:
    each = scale.to(acc).repeat_interleave(inner)
    quotient = up.to(acc) / torch.where(each == 0, 1.0, each)
    return torch.where(each == 0, torch.zeros_like(quotient), quotient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", tuple(GATES))
@pytest.mark.parametrize("keep", ["up", "gate"])
@pytest.mark.parametrize(("rows", "inner"), [(5, 64), (7, 37), (331, 1), (1, 257), (3, 32)])
def test_gated(name, keep, rows, inner, dtype):
    n, bits, m = rows * inner, 3, 7
    acc = table_dtype(dtype)
    # Infinity times zero and its kin are forward's own affair; see test_sizes.
    gate, up, dy = (torch.nan_to_num(samples(n, dtype, seed=s), 0.3, 4, -4) for s in (1, 2, 3))
    borders, codes = tables(dtype, bits, m)
    levels = torch.linspace(-0.13, 1.09, 8, dtype=acc)
    values = torch.linspace(-0.2, 2.7, 8, dtype=acc)
    scale = up.float().reshape(rows, inner).abs().amax(1) / 2
    scale[rows // 2] = 0
    y, packed = torch.full_like(gate, math.nan), empty_words(n, bits)
    K.gated_fwd(gate, up, y, packed, borders, codes, name, bits, keep, scale, inner)
    f, df = GATES[name].forward, GATES[name].derivative
    assert_values(y, f(gate.double()) * up.double(), f(gate) * up, "y")
    if keep == "up":
        code = R.encode(gate, borders, codes)
    else:
        code = R.encode(over_scale(up, scale, inner, acc), borders.to(acc), codes)
    assert torch.equal(packed, R.pack(code, bits))
    level = levels[code]
    results = [torch.full_like(gate, math.nan) for _ in range(2)]
    for wanted in ((True, True), (True, False), (False, True)):
        dgate, dup = (r if w else None for r, w in zip(results, wanted, strict=True))
        kept = up if keep == "up" else gate
        K.gated_bwd(dy, kept, packed, levels, values, scale, inner, name, bits, keep, dgate, dup)
        d64, u64, g64 = dy.double(), up.double(), gate.double()
        if dup is not None and keep == "up":
            assert_product(dup, dy.to(acc) * values[code])
        elif dup is not None:
            assert_values(dup, d64 * f(g64), dy * f(gate), "dup")
        if dgate is not None and keep == "up":
            assert_product(dgate, dy.to(acc) * up.to(acc) * level)
            assert_values(dgate, d64 * u64 * level.double(), dy * up * level.to(dtype), "dgate")
        elif dgate is not None:
            each = scale.repeat_interleave(inner)
            truth = d64 * df(g64) * (level.double() * each.double())
            eager = dy * df(gate) * (level * each).to(dtype)
            assert_values(dgate, truth, eager, "dgate")
        for r in results:
            r.fill_(math.nan)


@pytest.mark.parametrize("name", GATES)
def test_gated_slope_in_the_tails(name):
    """f' to a few units of float32 where 1 - tanh^2 or s (1 - s) would cancel; up decodes to 1."""
    gate = torch.linspace(-12, 12, 1001)
    one, dgate = torch.ones_like(gate), torch.empty_like(gate)
    packed, levels, scale = torch.zeros(R.words(1001, 1), dtype=torch.int32), torch.ones(2), one[:1]
    K.gated_bwd(one, gate, packed, levels, levels, scale, 1001, name, 1, "gate", dgate, None)
    error = (dgate.double() - GATES[name].derivative(gate.double())).abs().max()
    assert float(error) < 12 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quotient_borders_are_not_rounded(dtype):
    """Borders that are quotients themselves: an element on one lies to its left, in fp32 (fp64)."""
    inner, acc = 96, table_dtype(dtype)
    up = normal(3 * inner, dtype, 4)
    scale = torch.tensor([3.0, 0.7, 1.1])
    quotient = over_scale(up, scale, inner, acc)
    borders = quotient[::41].sort().values
    codes = torch.arange(borders.numel() + 1, dtype=torch.uint8)
    packed = empty_words(up.numel(), 4)
    K.gated_fwd(up, up, up.clone(), packed, borders, codes, "silu", 4, "gate", scale, inner)
    assert torch.equal(packed, R.pack(torch.searchsorted(borders, quotient), 4))


def test_zero_scale_codes_zero():
    """A row of scale 0 gets the code of 0, whatever it holds."""
    up = torch.tensor([1.0, -1.0, math.inf, 0.0] * 8)
    borders, codes = torch.tensor([-0.5, 0.5]), torch.tensor([0, 1, 2], dtype=torch.uint8)
    y, packed = torch.empty(32), empty_words(32, 2)
    K.gated_fwd(up, up, y, packed, borders, codes, "silu", 2, "gate", torch.zeros(1), 32)
    assert torch.equal(R.unpack(packed, 32, 2), torch.ones(32, dtype=torch.int64))


def test_bad_names():
    x = torch.zeros(4)
    with pytest.raises(ValueError, match=r"fn: expected one of .*, got 'swish'"):
        K.activation_fwd(x, x, None, None, None, None, "swish", 0.0, 0.0, 0, False, None)
    with pytest.raises(ValueError, match="bits: expected 0 or 1, not stochastic, for relu, got 3"):
        K.activation_fwd(x, x, x, None, None, None, "relu", 0.0, 0.0, 3, False, None)
    with pytest.raises(ValueError, match=r"fn: expected one of .*, got 'mish'"):
        K.gated_fwd(x, x, x, None, None, None, "mish", 0, "up", None, 1)
    with pytest.raises(ValueError, match="keep: expected 'up' or 'gate', got 'both'"):
        K.gated_bwd(x, x, x, x, x, x, 1, "silu", 3, "both", x, x)
