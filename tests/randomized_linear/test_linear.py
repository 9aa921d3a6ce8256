"""``linear``, ``shared_input``, ``project`` and ``hadamard_transform`` on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.parity import assert_parity
from sublimate import randomized_linear
from sublimate.randomized_linear import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SEED = 2**40 + 11


def layer(n, i=19, o=13, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    shapes = (n, i), (o, i), (o,), (n, o)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def gradients(function, *leaves, dy):
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, dy)]


def truth(x, w, b, dy, sketch, k, seed=SEED):
    """In float64 but for the sampled rows, by x's rounded norms; and the size of dW's terms."""
    wide = [t.double() for t in (x, w, b, dy)]
    if sketch in reference.OBLIVIOUS:
        kept, other = (reference.project(t, sketch, k, seed) for t in (wide[0], wide[3]))
        s = reference.sketch_matrix(sketch, x.shape[0], k, seed).abs().T
        sizes = [s @ t.abs() for t in (wide[0], wide[3])]
    else:
        p = reference.row_probabilities(x)
        index, square = reference.sample(sketch, p, k, torch.tensor(seed))
        kept = reference.gather(wide[0], index, square)
        other = reference.gather(wide[3], index)
        sizes = [kept.abs(), other.abs()]
    results = [F.linear(*wide[:3]), wide[3] @ wide[1], other.T @ kept, wide[3].sum(0)]
    return results, sizes[1].T @ sizes[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sketch", reference.SKETCHES)
@pytest.mark.parametrize("n", [1, 70, 1031])
def test_parity(sketch, n, dtype, lane):
    x, w, b, dy = (lane.put(t) for t in layer(n, dtype=dtype))
    k = reference.rows_kept(n, 0.2)

    def call(*leaves):
        return randomized_linear.linear(
            *leaves, ratio=0.2, sketch=sketch, seed=SEED, backend=lane.backend
        )

    def eager(x, w, b):
        return reference.linear(x, w, b, sketch, k, torch.tensor(SEED))

    got = gradients(call, x, w, b, dy=dy)
    x, w, b, dy = (t.cpu() for t in (x, w, b, dy))
    plain = gradients(eager, x, w, b, dy=dy)
    due, size = truth(x, w, b, dy, sketch, k)
    scales = [x.double().abs() @ w.double().abs().T, dy.double().abs() @ w.double().abs(), size,
              dy.double().abs().sum(0)]  # fmt: skip
    names = ["y", "dx", "dW", "db"]
    for name, r, t, e, s in zip(names, got, due, plain, scales, strict=True):
        assert_parity(r, t, e, gradient=name != "y", scale=s, what=name)


@pytest.mark.parametrize("sketch", reference.SKETCHES)
def test_same_sketch_everywhere(sketch, kernel):
    """For one seed the estimates of two backends differ by rounding, not by chance."""
    x, w, b, dy = layer(50)
    for seed in (0, SEED):
        found = [
            gradients(
                lambda x, w, b, backend=backend, seed=seed: randomized_linear.linear(
                    x, w, b, ratio=0.3, sketch=sketch, seed=seed, backend=backend
                ),
                *(kernel.put(t) for t in (x, w, b)),
                dy=kernel.put(dy),
            )[2]
            for backend in ("reference", kernel.backend)
        ]
        torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)


def test_all_rows_are_the_exact_gradient(lane):
    x, w, b, dy = (lane.put(t) for t in layer(37))
    exact = gradients(F.linear, x, w, b, dy=dy)
    for sketch in ("rows", "srht", "dct", "countsketch", "wta"):
        if lane.backend == "triton" and sketch == "wta":
            continue
        got = gradients(
            lambda x, w, b, sketch=sketch: randomized_linear.linear(
                x, w, b, ratio=1.0, sketch=sketch, seed=3, backend=lane.backend
            ),
            x, w, b, dy=dy,
        )  # fmt: skip
        for g, e in zip(got, exact, strict=True):
            if sketch != "srht":  # 64 transformed rows of which 37 are kept
                torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sketch", reference.SKETCHES)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (4, 5), (2, 3, 5), ()])
def test_shapes(sketch, shape, lane):
    x = lane.put(torch.randn(*shape, 6, dtype=torch.float64))
    w, b = (lane.put(torch.randn(*s, dtype=torch.float64)) for s in ((4, 6), (4,)))
    dy = lane.put(torch.randn(*shape, 4, dtype=torch.float64))
    got = gradients(
        lambda x, w, b: randomized_linear.linear(
            x, w, b, ratio=0.5, sketch=sketch, seed=1, backend=lane.backend
        ),
        x, w, b, dy=dy,
    )  # fmt: skip
    exact = gradients(F.linear, x, w, b, dy=dy)
    for place, (g, e) in enumerate(zip(got, exact, strict=True)):
        assert g.shape == e.shape
        if place != 2:
            torch.testing.assert_close(g, e)
    flat = (x.reshape(-1, 6), w, b, dy.reshape(-1, 4))
    n = flat[0].shape[0]
    due, _ = truth(*(t.cpu() for t in flat), sketch, reference.rows_kept(n, 0.5), 1)
    torch.testing.assert_close(got[2].cpu(), due[2])
    if lane.backend != "reference" and n == 0:
        randomized_linear.project(lane.put(torch.ones(2, 2)), "rows", 1, 1, backend=lane.backend)


@pytest.mark.parametrize("sketch", ["gaussian", "srht", "countsketch", "rows", "crs", "dct"])
def test_strides(sketch, lane):
    """Transposed, sliced and expanded x, expanded dy (from ``sum``): as their contiguous copies."""
    base = lane.put(torch.randn(40, 12, dtype=torch.float64))
    w = lane.put(torch.randn(5, 12, dtype=torch.float64))
    wide = torch.cat((base, base), 1)
    views = [
        base.t().contiguous().t(),
        wide[:, :12],
        wide[::2, 3:15],
        base.reshape(4, 10, 12).transpose(0, 1),
        base[:1].expand(30, 12),
        torch.stack((base, base), 2)[..., 0],
    ]

    def call(x, w):
        return randomized_linear.linear(x, w, sketch=sketch, seed=5, backend=lane.backend)

    for x in views:
        got, due = (
            gradients(lambda x, w: call(x, w).sum(), t, w, dy=torch.ones_like(base[0, 0]))
            for t in (x, x.contiguous())
        )
        for g, d in zip(got, due, strict=True):
            torch.testing.assert_close(g, d)


def test_only_what_is_needed(calls):
    x, w, b, dy = layer(30)
    options = {"seed": 1, "backend": "cpu"}
    with torch.no_grad():
        y = randomized_linear.linear(x, w.requires_grad_(), b, **options)
    assert not calls and torch.equal(y, F.linear(x, w, b))
    # A frozen weight: nothing is sketched, and torch's own layer runs.
    leaf = x.clone().requires_grad_()
    y = randomized_linear.linear(leaf, w.detach(), b.requires_grad_(), **options)
    torch.autograd.grad(y, (leaf, b), dy)
    assert not calls
    y = randomized_linear.linear(x, w, b.detach(), **options)
    assert calls["cpu"] == 1
    y.backward(dy)
    assert calls["cpu"] == 2 and x.grad is None and b.grad is None and w.grad is not None


def test_exact_gradients_do_not_depend_on_the_seed():
    x, w, b, dy = layer(30)
    found = [
        gradients(lambda *t, s=s: randomized_linear.linear(*t, seed=s), x, w, b, dy=dy)
        for s in (1, 2)
    ]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][3], found[1][3])
    assert not torch.allclose(found[0][2], found[1][2])


def test_gradcheck():
    """What is exact is the derivative: x and bias always, and the weight with all rows."""
    x, w, b, _ = layer(9, 4, 3)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    for backend in ("cpu", "reference"):

        def call(x, w, b, ratio, sketch, backend=backend):
            return randomized_linear.linear(
                x, w, b, ratio=ratio, sketch=sketch, seed=3, backend=backend
            )

        for sketch in reference.SKETCHES:
            inexact = lambda x, b, s=sketch: call(x, w, b, 0.4, s)  # noqa: E731
            assert torch.autograd.gradcheck(inexact, (leaves[0], leaves[2]))
        for sketch in ("rows", "dct", "countsketch"):
            exact = lambda *t, s=sketch: call(*t, 1.0, s)  # noqa: E731
            assert torch.autograd.gradcheck(exact, leaves)


def test_shared_input_keeps_one_sketch(lane):
    x, w, b, dy = (lane.put(t) for t in layer(40))
    other = lane.put(torch.randn(7, 19, dtype=torch.float64)).requires_grad_()
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    shared = randomized_linear.shared_input(leaves[0], seed=4, backend=lane.backend)
    y = shared.linear(leaves[1], leaves[2])
    z = shared.linear(other)
    got = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    alone = gradients(
        lambda *t: randomized_linear.linear(*t, seed=4, backend=lane.backend), x, w, b, dy=dy
    )
    for g, a in zip(got, alone[1:], strict=True):
        assert torch.equal(g, a)
    assert y.grad_fn.saved_tensors[1] is not None
    first, second = (
        [t.data_ptr() for t in out.grad_fn.saved_tensors if t is not None and t.dim() == 2][-1]
        for out in (y, z)
    )
    assert first == second


def test_probabilities(lane):
    x, w, b, dy = (lane.put(t) for t in layer(20))
    p = torch.zeros(20, dtype=torch.float64)
    p[4] = 1.0
    got = gradients(
        lambda *t: randomized_linear.linear(
            *t, sketch="crs", seed=4, probabilities=lane.put(p), backend=lane.backend
        ),
        x, w, b, dy=dy,
    )  # fmt: skip
    torch.testing.assert_close(got[2], torch.outer(dy[4], x[4]))


@pytest.mark.parametrize("sketch", reference.SKETCHES)
def test_nan_is_not_hidden(sketch, lane):
    x, w, b, dy = (lane.put(t) for t in layer(12))
    x[:, 3] = torch.nan
    got = gradients(
        lambda *t: randomized_linear.linear(
            *t, ratio=0.5, sketch=sketch, seed=4, backend=lane.backend
        ),
        x, w, b, dy=dy,
    )  # fmt: skip
    assert bool(got[0].isnan().all()) and bool(got[2][:, 3].isnan().all())


@pytest.mark.parametrize("sketch", reference.OBLIVIOUS)
def test_project(sketch, lane):
    x = lane.put(torch.randn(33, 6, dtype=torch.float64))
    for k in (0, 1, 10, 33, 80):
        got = randomized_linear.project(x, sketch, k, 7, backend=lane.backend)
        due = reference.project(x.cpu(), sketch, k, 7)
        torch.testing.assert_close(got.cpu(), due)
    leaf = x.clone().requires_grad_()
    g = lane.put(torch.randn(10, 6, dtype=torch.float64))
    y = randomized_linear.project(leaf, sketch, 10, 7, backend=lane.backend)
    (dx,) = torch.autograd.grad(y, leaf, g)
    due = reference.sketch_matrix(sketch, 33, 10, 7) @ g.cpu()
    torch.testing.assert_close(dx.cpu(), due)


def test_project_and_hadamard_are_linear():
    x = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    for backend in ("cpu", "reference"):
        for sketch in reference.OBLIVIOUS:
            project = lambda t, s=sketch, b=backend: randomized_linear.project(  # noqa: E731
                t, s, 4, 1, backend=b
            )
            assert torch.autograd.gradcheck(project, x)
        transform = lambda t, b=backend: randomized_linear.hadamard_transform(  # noqa: E731
            t, 0.5, backend=b
        )
        assert torch.autograd.gradcheck(transform, x)
        assert torch.autograd.gradgradcheck(transform, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (0, 5), (3, 2, 100), (5, 256), (2, 0)])
def test_hadamard(shape, dtype, lane):
    x = lane.put(torch.randn(shape, dtype=torch.float64).to(dtype))
    got = randomized_linear.hadamard_transform(x, 0.125, backend=lane.backend)
    wide = x.cpu().double()
    due = reference.hadamard_transform(wide, 0.125)
    plain = reference.hadamard_transform(x.cpu(), 0.125)
    size = 0.125 * wide.abs().sum(-1, keepdim=True).expand(due.shape)
    assert_parity(got, due, plain, scale=size)
    strided = randomized_linear.hadamard_transform(
        torch.stack((x, x), -1)[..., 0], 0.125, backend=lane.backend
    )
    assert torch.equal(strided, got)
    if lane.backend != "reference" and x.numel() == 0:
        randomized_linear.project(lane.put(torch.ones(2, 2)), "rows", 1, 1, backend=lane.backend)
