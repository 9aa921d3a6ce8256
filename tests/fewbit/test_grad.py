"""What autograd sees: the quantised gradient, unbiased codes, checkpointing, what is spared."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.fewbit_cases import (
    DTYPES,
    EAGER,
    EXACT,
    SMOOTH,
    default_tables,
    exact_product,
    packed_of,
    public,
    samples,
    upstream,
    variant_id,
)
from helpers.parity import assert_same_bits
from sublimate import _native, _philox, fewbit
from sublimate.fewbit import reference as R
from sublimate.fewbit.codebook import default_codebook
from torch.utils.checkpoint import checkpoint

N = 357


def gradient(f, x, dy):
    leaf = x.detach().clone().requires_grad_()
    y = f(leaf)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    return y, dx


# ------------------------------------------------------------------------ the quantised function


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_of_the_quantised_function(lane, name, bits):
    """q integrated gives F; F's difference quotients are the gradient wherever no border is near.

    F(x) = integral of levels[code] is piecewise linear and knows nothing of packing or autograd.
    """
    borders, codes, levels = default_tables(name, (), bits, torch.float64)
    x = samples(N, torch.float64, odd=False)
    h = 1e-6
    x = x[((x[:, None] - borders).abs() > 2 * h).all(1)]
    knots = torch.cat([torch.tensor([-50.0], dtype=torch.float64), borders])
    slope = levels[codes.long()]
    at_knots = torch.cat([torch.zeros(1, dtype=torch.float64), slope[:-1] * knots.diff()]).cumsum(0)

    def integral(t):
        k = torch.searchsorted(borders, t)
        return at_knots[k] + slope[k] * (t - knots[k])

    quotient = (integral(x + h) - integral(x - h)) / (2 * h)
    dy = upstream(x.numel(), torch.float64)
    _, dx = gradient(
        lambda t: public(name)(t, bits=bits, backend=lane.backend), lane.put(x), lane.put(dy)
    )
    torch.testing.assert_close(dx.cpu(), quotient * dy, rtol=0, atol=1e-7)
    assert dx.abs().max() > 0.5


@pytest.mark.parametrize("name", EXACT)
def test_gradcheck_of_exact_functions(lane, name):
    """torch's own gradcheck, away from the corners."""
    params = (0.1, -0.2) if name == "threshold" else ()
    at = torch.tensor(R.FUNCTIONS[name].breakpoints(*(params or R.FUNCTIONS[name].defaults)))
    x = samples(60, torch.float64, odd=False) * 2
    x = lane.put(x[((x[:, None] - at).abs() > 1e-3).all(1)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: public(name)(t, *params, backend=lane.backend), (x,))


@pytest.mark.parametrize("name", SMOOTH)
def test_error_shrinks_with_bits(lane, name):
    """E[(f' - q)^2] is the codebook's own figure, and falls with each bit."""
    x = torch.special.ndtri(
        torch.linspace(0.5 / 40_000, 1 - 0.5 / 40_000, 40_000, dtype=torch.float64)
    )
    true = R.FUNCTIONS[name].derivative(x, *R.FUNCTIONS[name].defaults)
    errors = []
    for bits in (1, 2, 3, 4):
        f = lambda t: public(name)(t, bits=bits, backend=lane.backend)  # noqa: B023, E731
        _, q = gradient(f, lane.put(x), lane.put(torch.ones_like(x)))
        errors.append((q.cpu() - true).square().mean().item())
        assert errors[-1] == pytest.approx(default_codebook(name, bits).mse, rel=0.02)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]


# ------------------------------------------------------------------------------------- stochastic

SEEDS = 4000


def stochastic_points(name: str) -> torch.Tensor:
    """Few elements across the range where f' moves, and its flat ends."""
    return torch.tensor(
        [-6.0, -2.1, -1.3, -0.9, -0.4, -0.05, 0.0, 0.3, 0.75, 1.4, 2.2, 5.0], dtype=torch.float64
    )


def assert_unbiased(mean, exact, levels, dy, what):
    """Within 4 standard errors of the exact gradient, elementwise.

    The variance of rounding v between neighbours is (high - v)(v - low). An element that sits
    within p of a level flips in a fraction p of the draws; where fewer than 10 flips are due, the
    normal bound says little, and one flip's worth is added.
    """
    lower = torch.searchsorted(levels[1:-1].contiguous(), exact, right=True)
    low, high = levels[lower], levels[lower + 1]
    variance = ((high - exact) * (exact - low)).clamp_min(0)
    deviation = dy.abs() * (variance / SEEDS).sqrt()
    chance = ((exact - low) / (high - low)).clamp(0, 1)
    rare = torch.minimum(chance, 1 - chance) * SEEDS < 10
    allowed = 4 * deviation + rare * dy.abs() * (high - low) * 4 / SEEDS + 1e-7 * dy.abs()
    error = (mean - exact * dy).abs()
    assert (error <= allowed).all(), f"{what}: {(error / allowed).max():.2f} of what is allowed"


#: Every function at 3 bits, four of them at every width.
MEANS = [(name, 3) for name in SMOOTH] + [
    (name, bits) for name in ("gelu", "silu", "tanh", "sigmoid") for bits in (1, 2, 4)
]


@pytest.mark.parametrize(("name", "bits"), MEANS)
def test_stochastic_mean_is_exact_cpu(name, bits, calls):
    x = stochastic_points(name).float()
    dy = 0.5 + torch.arange(x.numel()) / 8.0
    total = torch.zeros(x.numel(), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    f = public(name)
    varied = torch.zeros(x.numel(), dtype=torch.bool)
    for seed in range(SEEDS):
        y = f(leaf, bits=bits, stochastic=True, seed=seed, backend="cpu")
        (dx,) = torch.autograd.grad(y, leaf, dy)
        total += dx
        if seed == 0:
            first = dx
        varied |= dx != first
    assert calls["cpu"] == 2 * SEEDS
    levels = default_codebook(name, bits, None, "stochastic").levels
    exact = R.FUNCTIONS[name].derivative(x.double(), *R.FUNCTIONS[name].defaults)
    assert_unbiased(total / SEEDS, exact, levels, dy.double(), name)
    assert varied.sum() >= x.numel() // 3


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SMOOTH)
def test_stochastic_mean_is_exact_reference(name, bits):
    """All seeds at once: vmap over the seed of the reference's gradient."""
    x = stochastic_points(name)
    dy = 0.5 + torch.arange(x.numel(), dtype=torch.float64) / 8
    f = public(name)

    def one(seed):
        def loss(t):
            return (f(t, bits=bits, stochastic=True, seed=seed, backend="reference") * dy).sum()

        return torch.func.grad(loss)(x)

    dx = torch.func.vmap(one)(torch.arange(SEEDS))
    assert dx.shape == (SEEDS, x.numel())
    levels = default_codebook(name, bits, None, "stochastic").levels
    exact = R.FUNCTIONS[name].derivative(x, *R.FUNCTIONS[name].defaults)
    assert_unbiased(dx.mean(0), exact, levels, dy, name)
    # The very draws that single calls make.
    for seed in (0, 1, 3999):
        assert_same_bits(one(torch.tensor(seed)), dx[seed])
        single = lambda t: f(t, bits=bits, stochastic=True, seed=seed, backend="cpu")  # noqa: B023, E731
        assert_same_bits(gradient(single, x, dy)[1], dx[seed])


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("name", SMOOTH)
def test_stochastic_codes_agree(kernel, name, dtype):
    """The same uniforms in every backend: codes differ from the reference's at near ties only."""
    bits, seed = 3, 2**33 + 5
    x = samples(2077, dtype, odd=False)
    call = {"bits": bits, "stochastic": True, "seed": seed}
    leaf = kernel.put(x).requires_grad_()
    y = public(name)(leaf, backend=kernel.backend, **call)
    words = packed_of(y)
    (dx,) = torch.autograd.grad(y, leaf, kernel.put(torch.ones_like(x)))
    due = gradient(lambda t: public(name)(t, backend="reference", **call), x, torch.ones_like(x))[1]
    levels = default_codebook(name, bits, None, "stochastic").tensors("cpu", dtype)[2]
    v = R.FUNCTIONS[name].derivative(x.double(), *R.FUNCTIONS[name].defaults)
    wide = levels.double()
    lower = torch.searchsorted(wide[1:-1].contiguous(), v, right=True)
    gap = wide[lower + 1] - wide[lower]
    margin = (_philox.uniform(seed, x.numel()) * gap - (v - wide[lower])).abs()
    # f' is computed twice in arithmetic of relative error eps; beyond that margin codes are equal.
    eps = 8 * torch.finfo(levels.dtype).eps * wide.abs().max()
    near = (margin < eps) | ((v[:, None] - wide).abs() < eps).any(1)
    different = dx.cpu() != due
    assert not (different & ~near).any() and different.double().mean() < 2e-3
    assert len(words.unique()) > 50
    assert torch.isin(dx.cpu(), levels.to(dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_seeds(lane, dtype):
    x, dy = lane.put(samples(N, dtype, odd=False)), lane.put(upstream(N, dtype))

    def grad(seed):
        f = lambda t: fewbit.gelu(t, bits=2, stochastic=True, seed=seed, backend=lane.backend)  # noqa: E731
        return gradient(f, x, dy)[1]

    first = grad(7)
    assert_same_bits(grad(7), first)
    assert_same_bits(grad(torch.tensor(7, device=x.device)), first)
    for other in (8, 7 + 2**32, 2**63 - 1, 0):
        assert (grad(other) != first).double().mean() > 0.05
    torch.manual_seed(3)
    drawn = grad(None)
    again = grad(None)
    assert (drawn != again).double().mean() > 0.05, "two calls drew the same seed"
    torch.manual_seed(3)
    assert_same_bits(grad(None), drawn)
    assert_same_bits(grad(None), again)


def test_seed_is_not_drawn_without_need(lane):
    """A given seed, no gradient, or a deterministic code: torch's generator stays where it is."""
    x = lane.put(samples(N, torch.float32, odd=False))
    leaf = x.clone().requires_grad_()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fewbit.gelu(leaf, stochastic=True, seed=1, backend=lane.backend)
    fewbit.gelu(x, stochastic=True, backend=lane.backend)
    fewbit.gelu(leaf, backend=lane.backend)
    with torch.no_grad():
        fewbit.gelu(leaf, stochastic=True, backend=lane.backend)
    assert torch.equal(torch.get_rng_state(), before)
    if lane.device == "cpu":
        fewbit.gelu(leaf, stochastic=True, backend=lane.backend)
        assert not torch.equal(torch.get_rng_state(), before)


def test_stochastic_follows_memory_order(lane):
    """Element i of the stream goes to element i in memory, as the codes do."""
    x = lane.put(samples((4, 6, 5, 7), torch.float64, odd=False)).to(
        memory_format=torch.channels_last
    )
    ones = torch.ones_like(x)
    f = lambda t: fewbit.silu(t, bits=2, stochastic=True, seed=5, backend=lane.backend)  # noqa: E731
    _, dx = gradient(f, x, ones)
    _, flat = gradient(f, x.permute(0, 2, 3, 1).reshape(-1), ones.reshape(-1))
    assert_same_bits(dx.permute(0, 2, 3, 1).reshape(-1), flat)


def test_stochastic_needs_a_covering_codebook(lane):
    x = lane.put(samples(N, torch.float32, odd=False)).requires_grad_()
    for book in (fewbit.fit_codebook("gelu", 3), fewbit.fit_codebook("gelu", 3, mode="interval")):
        with pytest.raises(
            ValueError, match=r'codebook: expected one fitted with mode="stochastic"'
        ):
            fewbit.gelu(x, codebook=book, stochastic=True, backend=lane.backend)
        with pytest.raises(ValueError, match='mode="stochastic"'):
            fewbit.activation(x, book, stochastic=True, backend=lane.backend)
        with pytest.raises(ValueError, match='mode="stochastic"'):
            fewbit.GELU(codebook=book, stochastic=True)
    book = fewbit.fit_codebook("gelu", 3, mode="stochastic")
    f = lambda t: fewbit.gelu(t, codebook=book, stochastic=True, seed=1, backend=lane.backend)  # noqa: E731
    _, dx = gradient(f, x, torch.ones_like(x))
    assert torch.isin(dx.cpu(), book.levels.float()).all() and len(dx.unique()) > 4


# --------------------------------------------------------------------------------- any callable


def bump(t):
    return t * torch.exp(-t * t)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("bits", [1, 3, 4])
def test_activation_of_a_callable(lane, bits, dtype):
    book = fewbit.fit_codebook(bump, bits)
    x, dy = samples(N, dtype), upstream(N, dtype)
    y, dx = gradient(
        lambda t: fewbit.activation(t, book, backend=lane.backend), lane.put(x), lane.put(dy)
    )
    assert_same_bits(y.detach(), bump(lane.put(x)))
    borders, codes, levels = book.tensors("cpu", dtype)
    assert_same_bits(dx, exact_product(R.encode(x, borders, codes), levels, dy))
    restored = fewbit.Codebook.from_dict(book.to_dict())
    with pytest.raises(ValueError, match="fn: expected a callable"):
        fewbit.activation(lane.put(x), restored, backend=lane.backend)
    again = gradient(
        lambda t: fewbit.activation(t, restored, fn=bump, backend=lane.backend),
        lane.put(x),
        lane.put(dy),
    )
    assert_same_bits(again[1], dx)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_activation_of_a_callable_stochastic(lane, dtype):
    """Codes of f'(x) as torch's autograd gives it in fp32: those of the definition, bit for bit."""
    book = fewbit.fit_codebook(bump, 3, mode="stochastic")
    levels = book.tensors("cpu", dtype)[2]
    x, dy = samples(N, dtype, odd=False), upstream(N, dtype)
    leaf = x.to(levels.dtype).requires_grad_()  # 16-bit f' would be biased by its own rounding
    (d,) = torch.autograd.grad(bump(leaf).sum(), leaf)
    v = d.clamp(levels[0], levels[-1])
    for seed in (0, 99, 2**62 + 1):
        f = partial(
            fewbit.activation, codebook=book, stochastic=True, seed=seed, backend=lane.backend
        )
        _, dx = gradient(f, lane.put(x), lane.put(dy))
        u = _philox.uniform(seed, N).to(levels.dtype)
        code = R.encode_stochastic(v, levels, u)
        assert len(code.unique()) > 4
        if lane.device == "cpu":  # torch's own f' may differ in the last place on another device
            assert_same_bits(dx, exact_product(code, levels, dy))


@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "stochastic"])
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "expanded"])
def test_activation_of_a_callable_keeps_elements_apart(lane, layout, stochastic):
    """f and f' may come in another layout than x; codes follow x's memory, gradients its shape."""
    mode = {"mode": "stochastic"} if stochastic else {}
    book = fewbit.fit_codebook(bump, 3, **mode)
    x = lane.put(samples((2, 6, 5, 7), torch.float32, odd=False))
    x = {"transposed": x.transpose(1, 3), "channels_last": x.to(memory_format=torch.channels_last),
         "expanded": x[:, :1].expand(2, 6, 5, 7)}[layout]  # fmt: skip
    dy = lane.put(upstream(x.shape, torch.float32))
    call = {"stochastic": True, "seed": 3} if stochastic else {}

    def contiguous_bump(t):
        return bump(t.contiguous() + 0)

    _, dx = gradient(
        lambda t: fewbit.activation(t, book, fn=contiguous_bump, backend=lane.backend, **call),
        x,
        dy,
    )
    levels = book.tensors("cpu", torch.float32)[2]
    cx = x.cpu()
    if stochastic:
        leaf = cx.detach().requires_grad_()
        (d,) = torch.autograd.grad(bump(leaf).sum(), leaf)
        order = R.dense_order(cx)
        u = R.unflatten(_philox.uniform(3, cx.numel()), cx.shape, order)
        code = R.encode_stochastic(d.clamp(levels[0], levels[-1]), levels, u)
    else:
        code = R.encode(cx, *book.tensors("cpu", torch.float32)[:2])
    assert_same_bits(dx, exact_product(code, levels, dy.cpu()))


# ------------------------------------------------------------------------ checkpointing and no-grad


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "stochastic"])
def test_checkpointing(lane, stochastic, reentrant, calls):
    """Recomputation replays the codes: the gradient is that of the plain call, bit for bit."""
    x, w = (lane.put(samples((40, 40), torch.float32, seed=s, odd=False)) for s in (1, 2))

    def block(t, w):  # elementwise, so that nothing but the codes could differ
        return fewbit.gelu(t * w / 2, bits=2, stochastic=stochastic, backend=lane.backend) * w

    results = []
    for run in (block, lambda *a: checkpoint(block, *a, use_reentrant=reentrant)):
        torch.manual_seed(5)
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = run(*leaves)
        torch.rand(3, device=x.device)  # the generator moves on before backward
        y.square().sum().backward()
        results.append((y, *(leaf.grad for leaf in leaves)))
    for plain, replayed in zip(*results, strict=True):
        assert_same_bits(replayed.detach(), plain.detach())
    assert results[0][1].abs().max() > 0.1
    if lane.backend in calls:
        assert calls[lane.backend] == 5  # forward and backward, then forward, forward and backward


@pytest.fixture
def forwards(monkeypatch):
    """(bits, wrote packed) of every native forward."""
    seen = []
    original = _native.fewbit.fwd

    def recorded(*arguments):
        seen.append(arguments[-2])
        return original(*arguments)

    monkeypatch.setattr(_native.fewbit, "fwd", recorded)
    return seen


@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "stochastic"])
def test_no_codes_without_need(forwards, stochastic):
    """bits = 0 goes to the kernel, and no node or tensor remains."""
    x = samples(N, torch.float32, odd=False)
    leaf = x.clone().requires_grad_()
    call = {"stochastic": stochastic, "backend": "cpu"}
    y = fewbit.gelu(x, **call)
    assert forwards == [0] and y.grad_fn is None and not y.requires_grad
    with torch.no_grad():
        z = fewbit.gelu(leaf, **call)
    with torch.inference_mode():
        v = fewbit.gelu(leaf, **call)
    assert forwards == [0, 0, 0] and z.grad_fn is None and v.grad_fn is None
    fewbit.gelu(leaf, **call)
    assert forwards == [0, 0, 0, 3]
    assert_same_bits(z, y)
    assert_same_bits(v.clone(), y)


def test_only_the_wanted_gradient_of_a_gated_unit(monkeypatch):
    """needs_input_grad: the kernel gets a null pointer for the other branch."""
    wanted = []
    original = _native.fewbit.gated_bwd

    def recorded(*arguments):
        wanted.append((arguments[9] is not None, arguments[10] is not None))
        return original(*arguments)

    monkeypatch.setattr(_native.fewbit, "gated_bwd", recorded)
    gate, up = (samples((4, 33), torch.float32, seed=s, odd=False) for s in (1, 2))
    for keep in ("up", "gate"):
        both = gate.clone().requires_grad_(), up.clone().requires_grad_()
        fewbit.swiglu(*both, keep=keep, backend="cpu").sum().backward()
        for k in (0, 1):
            inputs = [gate.clone(), up.clone()]
            inputs[k].requires_grad_()
            fewbit.swiglu(*inputs, keep=keep, backend="cpu").sum().backward()
            assert_same_bits(inputs[k].grad, both[k].grad)
            assert inputs[1 - k].grad is None
    assert wanted == [(True, True), (True, False), (False, True)] * 2


def test_outputs_of_one_call_do_not_share_memory(lane):
    """In-place work on y after the call is allowed: y is not what backward reads."""
    x = lane.put(samples(N, torch.float32, odd=False))
    due = gradient(lambda t: fewbit.gelu(t, backend=lane.backend), x, torch.ones_like(x))[1]
    leaf = x.clone().requires_grad_()
    y = fewbit.gelu(leaf, backend=lane.backend)
    y.mul_(2)
    y.sum().backward()
    assert_same_bits(leaf.grad, 2 * due)


def test_threads_of_python(lane):
    """Backward in autograd's own threads and calls from several Python threads at once."""
    from concurrent.futures import ThreadPoolExecutor

    x, dy = (
        lane.put(samples(5000, torch.float32, odd=False)),
        lane.put(upstream(5000, torch.float32)),
    )
    due = gradient(lambda t: fewbit.mish(t, backend=lane.backend), x, dy)[1]
    with ThreadPoolExecutor(4) as pool:
        work = [
            pool.submit(gradient, lambda t: fewbit.mish(t, backend=lane.backend), x, dy)
            for _ in range(12)
        ]
        for w in work:
            assert_same_bits(w.result()[1], due)
    assert EAGER["mish"](x[:1]).shape == (1,)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: fewbit.gelu(x),
        lambda x: fewbit.swiglu(x, x),
        lambda x: fewbit.activation(x, fewbit.fit_codebook(torch.sin, 2)),
    ],
)
def test_no_gradient_arrives(f):
    """A later function that gives no gradient leaves none here, as with torch's own activations."""

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, dy):
            return None

    x = torch.randn(40, requires_grad=True)
    Cut.apply(f(x)).sum().backward()
    assert x.grad is None
