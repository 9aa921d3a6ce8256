"""torch.compile(fullgraph=True): equal to eager, dynamic shapes, no recompilation without need."""

from __future__ import annotations

from functools import partial

import pytest
import sublimate
import torch
import torch._dynamo
from helpers.fewbit_cases import DTYPES, EAGER, public, samples, upstream, variant_id
from helpers.parity import assert_same_bits
from sublimate import fewbit
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

BACKENDS = ["reference", "cpu"]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both(f, *inputs):
    """(outputs, gradients) of f; inputs are copied, so that calls do not meet."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    grads = torch.autograd.grad(y, leaves, upstream(y.shape, y.dtype))
    return [y.detach(), *grads]


def assert_equal(found, due, exact=True):
    for a, b in zip(found, due, strict=True):
        if exact:
            assert_same_bits(a, b)
        else:
            torch.testing.assert_close(a, b, equal_nan=True)
        assert b.isfinite().any() and b.count_nonzero() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EAGER)
def test_functions(name, backend, calls):
    """One graph, forward and backward; the compiled backends keep eager's bits."""
    params = (0.1, -0.2) if name == "threshold" else ()
    f = lambda x: public(name)(x * 1.5, *params, backend=backend) + 1  # noqa: E731
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, backend=counter)
    x = samples(100, torch.float32, odd=False)
    due = both(f, x)
    calls.clear()
    found = both(compiled, x)
    assert (calls["fewbit_fwd"], calls["fewbit_bwd"]) == ((1, 1) if backend == "cpu" else (0, 0))
    # The reference is traced, and its graph may fuse a product and a sum.
    assert_equal(found, due, exact=backend == "cpu")
    assert counter.frame_count == 1
    assert_same_bits(compiled(x), f(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_bits_and_dtypes(bits, dtype):
    f = partial(fewbit.silu, bits=bits, backend="cpu")
    x = samples(333, dtype)
    assert_equal(both(torch.compile(f, fullgraph=True, backend="aot_eager"), x), both(f, x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_shapes(backend):
    """One recompilation makes the size a symbol; further sizes run the same graph."""
    f = partial(fewbit.gelu, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, backend=counter)
    for n in (64, 33, 100, 1021, 31, 4096):
        x = samples((n, 3), torch.float32, odd=False)
        assert_equal(both(compiled, x), both(f, x))
    assert counter.frame_count == 2
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=counter)
    for n in (5, 64, 33, 1021):
        x = samples((n, n % 7 + 2), torch.float32, odd=False)
        assert_equal(both(compiled, x), both(f, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_dimensions_then_four(backend):
    f = partial(fewbit.silu, backend=backend)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for shape in ((7, 9), (2, 3, 5, 7), (33,), (4, 5, 6)):
        x = samples(shape, torch.float32, odd=False)
        assert_equal(both(compiled, x), both(f, x))
    x = samples((2, 3, 5, 7), torch.float32, odd=False).to(memory_format=torch.channels_last)
    found = compiled(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_equal(both(compiled, x.transpose(1, 2)), both(f, x.transpose(1, 2)))


def test_switching_the_backend_recompiles(calls):
    """The setting is guarded: the compiled function follows it both ways, with no stale graph."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: fewbit.gelu(x) * 2, fullgraph=True, backend=counter)
    x = samples(100, torch.float32, odd=False)
    due = both(lambda t: fewbit.gelu(t, backend="cpu") * 2, x)
    for name, graphs, ran in (("cpu", 1, 2), ("reference", 2, 0), ("cpu", 2, 2), ("auto", 3, 2)):
        calls.clear()
        with sublimate.use_backend(name):
            assert_equal(both(compiled, x), due, exact=ran > 0)
        assert (counter.frame_count, calls["cpu"]) == (graphs, ran), name


def test_backward_keeps_the_backend_of_its_forward(calls):
    compiled = torch.compile(lambda x: fewbit.gelu(x), fullgraph=True, backend="aot_eager")
    leaf = samples(100, torch.float32, odd=False).requires_grad_()
    with sublimate.use_backend("cpu"):
        y = compiled(leaf)
    with sublimate.use_backend("reference"):
        y.sum().backward()
    assert calls["fewbit_bwd"] == 1 and leaf.grad.count_nonzero() > 90


def test_no_recompilation_for_other_values():
    """Data, seeds as tensors and a module's tables are inputs of the graph, not constants."""
    counter = CompileCounterWithBackend("aot_eager")
    module = fewbit.GELU(bits=3, backend="cpu")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    x = samples(100, torch.float32, odd=False)
    first = both(compiled, x)
    module.codebook = fewbit.fit_codebook("gelu", 3, std=3.0, mode="interval")  # 7 borders again
    second = both(compiled, x)
    assert_equal(second, both(module, x))
    assert not torch.equal(first[1], second[1]), "the new codebook did not reach the graph"
    assert counter.frame_count == 1
    counter = CompileCounterWithBackend("aot_eager")
    f = lambda t, s: fewbit.gelu(t, stochastic=True, seed=s, backend="cpu")  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, backend=counter)
    for value in (1, 2, 2**40):
        seed = torch.tensor(value)
        assert_equal(both(lambda t: compiled(t, seed), x), both(lambda t: f(t, seed), x))  # noqa: B023
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_stochastic_draws_anew(backend):
    """The seed is drawn inside the graph: reproducible, and another one at each call."""
    f = partial(fewbit.silu, bits=2, stochastic=True, backend=backend)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x = samples(400, torch.float32, odd=False)
    torch.manual_seed(4)
    due = both(f, x), both(f, x)
    torch.manual_seed(4)
    found = both(compiled, x), both(compiled, x)
    for a, b in zip(found, due, strict=True):
        assert_equal(a, b)
    assert not torch.equal(due[0][1], due[1][1])


@pytest.mark.parametrize("keep", ["up", "gate"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gated(backend, keep):
    f = partial(fewbit.swiglu, keep=keep, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((5, 33), (7, 64)):
        gate, up = (samples(shape, torch.float32, seed=s, odd=False) for s in (1, 2))
        assert_equal(both(compiled, gate, up), both(f, gate, up), exact=backend == "cpu")
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_gated_with_itself(backend):
    """One tensor as gate and up: Dynamo takes no tensor twice, so the op must see two."""
    f = lambda t: fewbit.geglu(t, t, backend=backend)  # noqa: E731
    x = samples((5, 33), torch.float32, odd=False)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_equal(both(compiled, x), both(f, x), exact=backend == "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_modules(backend):
    """A model of few-bit modules with buffers, trained a step, compiled and not."""

    def model():
        torch.manual_seed(1)
        options = {"backend": backend}
        return nn.Sequential(
            nn.Linear(12, 24), fewbit.GELU(bits=2, **options), nn.Linear(24, 24),
            fewbit.Softplus(2.0, **options), nn.Linear(24, 24), fewbit.LeakyReLU(0.2, **options),
            nn.Linear(24, 12), fewbit.Hardtanh(**options), fewbit.Mish(stochastic=True, **options),
        )  # fmt: skip

    results = []
    for wrap in (lambda m: m, partial(torch.compile, fullgraph=True, backend="aot_eager")):
        m = model()
        f = wrap(m)
        torch.manual_seed(2)
        for _ in range(2):
            f(samples((10, 12), torch.float32, odd=False)).square().sum().backward()
        results.append([p.grad for p in m.parameters()])
    assert_equal(*results, exact=False)


def test_without_gradient(calls):
    f = partial(fewbit.gelu, backend="cpu")
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x = samples(100, torch.float32)
    with torch.no_grad():
        y = compiled(x.clone().requires_grad_())
    assert not y.requires_grad
    assert_same_bits(y, f(x))
    with torch.inference_mode():
        assert_same_bits(compiled(x).clone(), f(x).clone())


def test_codebook_and_callable_arguments():
    """A fitted codebook goes through, given to its function or to activation()."""
    book = fewbit.fit_codebook("gelu", 3, std=2.0)
    x = samples(300, torch.float32, odd=False)
    for f in (
        lambda t: fewbit.gelu(t, codebook=book, backend="cpu"),
        lambda t: fewbit.activation(t, book, backend="cpu"),
    ):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        assert_equal(both(compiled, x), both(f, x))


def test_checkpointing_inside():
    from torch.utils.checkpoint import checkpoint

    def f(t):
        return checkpoint(lambda s: fewbit.gelu(s * 2, backend="cpu") * s, t, use_reentrant=False)

    x = samples(300, torch.float32, odd=False)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_equal(both(compiled, x), both(f, x))


def test_export():
    """torch.export of an inference model holds our op, and runs."""
    model = nn.Sequential(nn.Linear(6, 8), fewbit.GELU(backend="cpu")).eval()
    x = samples((4, 6), torch.float32, odd=False)
    with torch.no_grad():
        exported = torch.export.export(model, (x,))
        assert "sublimate.fewbit_fwd" in str(exported.graph)
        assert_same_bits(exported.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_inductor(kind, calls):
    """The default backend: our op stays opaque between generated kernels."""
    model = nn.Sequential(nn.Linear(16, 32), fewbit.GELU(bits=3, backend="cpu"), nn.Linear(32, 8))
    compiled = torch.compile(model, fullgraph=True, dynamic=kind == "dynamic")
    for n in (20, 33):
        x = samples((n, 16), torch.float32, odd=False)
        due = both(model, x)
        calls.clear()
        found = both(compiled, x)
        assert (calls["fewbit_fwd"], calls["fewbit_bwd"]) == (1, 1)
        assert_equal(found, due, exact=False)
    gated = torch.compile(partial(fewbit.swiglu, backend="cpu"), fullgraph=True)
    gate, up = (samples((9, 40), torch.bfloat16, seed=s, odd=False) for s in (1, 2))
    assert_equal(both(gated, gate, up), both(partial(fewbit.swiglu, backend="cpu"), gate, up))
