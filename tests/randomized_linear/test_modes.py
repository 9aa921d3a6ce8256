"""The family under torch.compile, opcheck, autocast, vmap, double backward and func."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from sublimate import randomized_linear
from sublimate.randomized_linear import Linear, autograd, reference
from torch import nn


def leaves(n=48, i=10, o=6, dtype=torch.float32):
    x, w, b = (torch.randn(*s, dtype=dtype) for s in ((n, i), (o, i), (o,)))
    return [t.requires_grad_() for t in (x, w, b)]


@pytest.mark.parametrize("sketch", reference.SKETCHES)
def test_opcheck(sketch, kernel):
    x = kernel.put(torch.randn(20, 6))
    seed = kernel.put(torch.tensor(3))
    if sketch in reference.OBLIVIOUS:
        arguments = (x, seed, sketch, 5, kernel.backend)
        torch.library.opcheck(torch.ops.sublimate.randomized_linear_project, arguments)
    else:
        index, square = reference.sample(sketch, reference.row_probabilities(x), 5, seed)
        for scale in (None, square.float()):
            arguments = (x, index, scale, kernel.backend)
            torch.library.opcheck(torch.ops.sublimate.randomized_linear_gather, arguments)
    transform = (x.t(), 0.5, kernel.backend)
    torch.library.opcheck(torch.ops.sublimate.hadamard_transform, transform)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("sketch", ["srht", "countsketch", "crs"])
def test_compile(sketch, backend):
    """fullgraph, dynamic rows, a new seed each time and one graph for all of them."""
    torch._dynamo.reset()

    def step(x, w, b, seed):
        return randomized_linear.linear(x, w, b, sketch=sketch, seed=seed, backend=backend).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    # Not a count of the graphs that reach the backend: torch traces a function with a float
    # argument twice, symbolic first and then constant, and throws the first graph away.
    stance = "default"
    for n in (40, 41, 60):
        x, w, b = leaves(n)
        seed = torch.tensor(n)
        with torch.compiler.set_stance(stance):
            y = compiled(x, w, b, seed)
        got = torch.autograd.grad(y.sum(), (x, w, b))
        due = torch.autograd.grad(step(x, w, b, seed).sum(), (x, w, b))
        torch.testing.assert_close(got, due, rtol=2e-5, atol=2e-5)
        stance = "fail_on_recompile"


@pytest.mark.slow
@pytest.mark.parametrize("partitioner", ["aot_eager", "aot_eager_default_partitioner"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_backward_has_the_seed_of_its_forward(partitioner, checkpointed):
    """All rows in random order, so that any seed gives the exact gradient and two seeds do not."""
    torch._dynamo.reset()
    layer = Linear(10, 6, ratio=1.0, sketch="rows", layer=1)

    def call(x):
        if checkpointed:
            return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        return layer(x)

    compiled = torch.compile(call, backend=partitioner)
    for _ in range(3):
        x = torch.randn(40, 10)
        got = torch.autograd.grad(compiled(x).square().sum(), layer.weight)
        due = torch.autograd.grad(
            F.linear(x, layer.weight, layer.bias).square().sum(), layer.weight
        )
        torch.testing.assert_close(got, due, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_module_draws_afresh():
    torch._dynamo.reset()
    layer = Linear(10, 6, ratio=0.3, layer=1)
    twin = Linear(10, 6, ratio=0.3, layer=1)
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(40, 10)
    grads = []
    for _ in range(3):
        grads.append([])
        for module, call in ((layer, compiled), (twin, twin)):
            y = call(x)
            grads[-1].append(torch.autograd.grad(y.square().sum(), module.weight)[0])
    for ours, plain in grads:
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(grads[0][0], grads[1][0])
    assert int(layer.sketch_count) == 3


@pytest.mark.slow
def test_compiled_probabilities_are_checked():
    torch._dynamo.reset()

    def call(x, w, p):
        return randomized_linear.linear(x, w, sketch="crs", seed=1, probabilities=p)

    x, w, _ = leaves(8)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    good = torch.full((8,), 1 / 8)
    torch.testing.assert_close(compiled(x, w, good), F.linear(x, w))
    with pytest.raises(RuntimeError, match="probabilities: expected values >= 0 with sum 1"):
        compiled(x, w, 2 * good)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast(dtype, backend):
    x, w, b = leaves()
    with torch.autocast("cpu", dtype=dtype):
        y = randomized_linear.linear(x, w, b, ratio=1.0, sketch="rows", seed=1, backend=backend)
        exact = F.linear(x, w, b)
        frozen = randomized_linear.linear(x, w.detach(), b, seed=1, backend=backend)
    assert y.dtype == exact.dtype == frozen.dtype == dtype
    assert torch.equal(y, exact)
    dy = torch.randn_like(y)
    for got, due in zip(
        torch.autograd.grad(y, (x, w, b), dy),
        torch.autograd.grad(exact, (x, w, b), dy),
        strict=True,
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, due, rtol=2e-2, atol=2e-2)


def test_autocast_keeps_the_parameter_and_sixteen_bits():
    x, w, b = leaves()
    w, b = nn.Parameter(w.detach()), nn.Parameter(b.detach())
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        randomized_linear.linear(x, w, b, ratio=0.25, seed=1)
    own = [t for t in kept if t.data_ptr() not in (w.data_ptr(), b.data_ptr())]
    assert sorted((t.dtype, tuple(t.shape)) for t in own if t.dim()) == [(torch.bfloat16, (12, 10))]
    assert sum(t.untyped_storage().nbytes() for t in own) == 12 * 10 * 2 + 8


def test_autocast_leaves_float64():
    x, w, b = leaves(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert randomized_linear.linear(x, w, b, seed=1).dtype == torch.float64


def test_backward_under_autocast_is_backward_without():
    x, w, b = leaves()
    y = randomized_linear.linear(x, w, b, seed=1)
    due = torch.autograd.grad(y.square().sum(), (x, w, b), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(y.square().sum(), (x, w, b))
    for g, d in zip(got, due, strict=True):
        assert torch.equal(g, d)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_double_backward_is_refused(backend):
    x, w, b = leaves()
    y = randomized_linear.linear(x, w, b, seed=1, backend=backend)
    for g in torch.autograd.grad(y.square().sum(), (x, w, b), create_graph=True):
        with pytest.raises(RuntimeError, match="randomized_linear: no second derivative"):
            g.sum().backward(retain_graph=True)


@pytest.mark.parametrize("sketch", ["gaussian", "srht", "dct", "countsketch", "rows", "crs", "wta"])
def test_vmap_of_the_reference(sketch):
    x, w, b = leaves(12)
    batch = torch.stack((x.detach(), 2 * x.detach() + 1))

    def gradient(x):
        def loss(w):
            y = randomized_linear.linear(
                x, w, b, ratio=0.5, sketch=sketch, seed=torch.tensor(1), backend="reference"
            )
            return y.square().sum()

        return torch.func.grad(loss)(w)

    got = torch.vmap(gradient)(batch)
    for g, one in zip(got, batch, strict=True):
        torch.testing.assert_close(g, gradient(one), rtol=1e-4, atol=1e-4)


def test_vmap_of_a_kernel_is_refused(kernel):
    x, w, b = (kernel.put(t) for t in leaves(12))
    randomized_linear.project(x, "rows", 2, 1, backend=kernel.backend)
    for call in (
        lambda t: randomized_linear.linear(t, w, b, seed=1, backend=kernel.backend),
        lambda t: randomized_linear.project(t, "rows", 2, 1, backend=kernel.backend),
    ):
        with pytest.raises(RuntimeError, match="vmap is not supported by compiled backends"):
            torch.vmap(call)(torch.stack((x, x)))
    transform = lambda t: randomized_linear.hadamard_transform(t, backend=kernel.backend)  # noqa: E731
    assert torch.equal(torch.vmap(transform, in_dims=1)(x), transform(x.T))


def test_func_grad():
    x, w, b = (t.detach() for t in leaves())
    loss = lambda w: randomized_linear.linear(x, w, b, seed=3).square().sum()  # noqa: E731
    got = torch.func.grad(loss)(w)
    leaf = w.clone().requires_grad_()
    (due,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(got, due)


def test_export():
    class Net(nn.Module):
        def forward(self, x, w):
            return randomized_linear.project(x, "srht", 4, 3) + w

    x, w = torch.randn(20, 5), torch.randn(4, 5)
    program = torch.export.export(Net(), (x, w))
    assert torch.equal(program.module()(x, w), Net()(x, w))
    assert autograd.ops.randomized_linear_project is not None


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["hadamard_transform", *reference.OBLIVIOUS])
def test_forward_mode_of_what_is_linear(name, recorded):
    """The tangent of a linear map is the map of the tangent."""
    x, along = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)

    def call(t):
        if name == "hadamard_transform":
            return randomized_linear.hadamard_transform(t, 0.3, backend="cpu")
        return randomized_linear.project(t, name, 4, seed=7, backend="cpu")

    value, found = torch.func.jvp(call, (x.clone().requires_grad_(recorded),), (along,))
    assert torch.equal(value, call(x)) and torch.equal(found, call(along))
    assert found.abs().max() > 0.1
