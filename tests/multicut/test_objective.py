"""Cost of a clustering: the sum over cut pairs, in every form of batch, and its derivatives."""

from __future__ import annotations

import itertools

import pytest
import torch
from sublimate import multicut
from sublimate.multicut import reference as R

D = torch.float64


def instance(n=23, d=5, seed=0, clusters=6):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=D)
    return (
        x,
        torch.randint(0, clusters, (n,), generator=g),
        torch.rand(n, generator=g, dtype=D) + 0.5,
    )


def truth(x, labels, alpha, w=None, q=0):
    return R.objective(
        R.pair_values(x.double(), None if w is None else w.double(), alpha, q), labels
    )


@pytest.mark.parametrize("q", [0, 2, 5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3, -0.7])
def test_sum_over_cut_pairs(lane, q, weighted, alpha):
    x, labels, w = (lane.put(t) for t in instance())
    w = w if weighted else None
    got = multicut.objective(x, labels, alpha, weights=w, negative_dims=q, backend=lane.backend)
    assert got.dtype == D and got.shape == ()
    torch.testing.assert_close(got, truth(x, labels, alpha, w, q), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_the_value_of_the_rounded_features(lane, dtype):
    """Sums are kept in float64, so nothing is lost beyond the rounding of the input."""
    x, labels, _ = instance(200, 8)
    x = lane.put(x.to(dtype))
    got = multicut.objective(x, lane.put(labels), 0.2, backend=lane.backend)
    torch.testing.assert_close(got, truth(x, labels, 0.2), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    "rename",
    [
        lambda t: t * 7 - 3,
        lambda t: (t * 2**40).neg(),
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.uint8),
        lambda t: torch.where(t == 0, 2**62, -(2**61)),
    ],
)
def test_any_numbering(rename):
    x, labels, _ = instance()
    labels = rename(labels)
    got = multicut.objective(x, labels, 0.1)
    torch.testing.assert_close(got, truth(x, labels.long(), 0.1))


def test_one_cluster_is_zero_and_singletons_are_everything():
    x, _, _ = instance()
    assert multicut.objective(x, torch.full((23,), 4), 0.3).abs() < 1e-9
    torch.testing.assert_close(
        multicut.objective(x, torch.arange(23), 0.3), R.pair_values(x, None, 0.3).triu(1).sum()
    )


def test_batch_equals_one_by_one(lane):
    x, labels, w = instance(24)
    x, labels, w = (lane.put(t) for t in (x, labels, w))
    shapes = [(3, 8), (24,)]
    for shape, offsets in zip(shapes, (None, [0, 5, 5, 17, 24]), strict=True):
        bx, bl, bw = x.reshape(*shape, 5), labels.reshape(shape), w.reshape(shape)
        got = multicut.objective(
            bx, bl, 0.2, weights=bw, offsets=offsets, negative_dims=1, backend=lane.backend
        )
        rows = offsets or [0, 8, 16, 24]
        each = torch.stack(
            [truth(x[a:b], labels[a:b], 0.2, w[a:b], 1) for a, b in itertools.pairwise(rows)]
        )
        torch.testing.assert_close(got, each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny(n):
    x = torch.randn(n, 3, dtype=D, requires_grad=True)
    cost = multicut.objective(x, torch.arange(n), 0.3)
    (grad,) = torch.autograd.grad(cost, x)
    assert grad.shape == (n, 3)
    x = x.detach()
    assert float(cost.detach()) == pytest.approx(
        float(x[0] @ x[1]) - 0.3 if n == 2 else 0.0, abs=1e-12
    )
    assert multicut.objective(
        x.detach().reshape(0, n, 3) if n == 0 else x[None],
        torch.zeros((0, n) if n == 0 else (1, n), dtype=torch.int64),
    ).shape == (int(n > 0),)


def test_strides():
    x, labels, _ = instance(46)
    for view, names in (
        (x[::2], labels[::2]),
        (x.t().contiguous().t(), labels),
        (x[:1].expand(9, 5), labels[:9]),
    ):
        torch.testing.assert_close(multicut.objective(view, names, 0.1), truth(view, names, 0.1))


# ------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("q", [0, 2])
def test_gradcheck(lane, q):
    x, labels, w = (lane.put(t) for t in instance(9, 3, clusters=4))
    alpha = lane.put(torch.tensor(0.3, dtype=D))
    leaves = tuple(t.requires_grad_() for t in (x, alpha, w))

    def cost(x, alpha, w):
        return multicut.objective(
            x, labels, alpha, weights=w, negative_dims=q, backend=lane.backend
        )

    assert torch.autograd.gradcheck(cost, leaves)
    assert torch.autograd.gradgradcheck(cost, leaves)


def test_gradcheck_batch():
    x, labels, _ = instance(12, 3, clusters=3)
    scale = torch.randn(3, dtype=D)

    def cost(x, alpha):
        return multicut.objective(x.reshape(3, 4, 3), labels.reshape(3, 4), alpha) * scale

    alpha = torch.tensor([0.2], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(cost, (x.requires_grad_(), alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_form(lane, dtype):
    """d/df_i = T - S_c(i), d/dalpha = -(number of cut pairs), in the dtype of the input."""
    x, labels, _ = instance(60, 4)
    x = lane.put(x.to(dtype)).requires_grad_()
    alpha = lane.put(torch.tensor(0.3)).requires_grad_()
    cost = multicut.objective(x, lane.put(labels), alpha, backend=lane.backend)
    dx, dalpha = torch.autograd.grad(3 * cost, (x, alpha))
    sums = torch.zeros(6, 4, dtype=D).index_add(0, labels, x.detach().cpu().double())
    due = 3 * (sums.sum(0) - sums[labels])
    assert dx.dtype == dtype and dalpha.dtype == torch.float32
    torch.testing.assert_close(
        dx.cpu(), due.to(dtype), rtol=4e-7 if dtype == torch.float32 else 8e-3, atol=1e-6
    )
    assert float(dalpha) == -3 * int((labels[:, None] != labels).triu(1).sum())


def test_no_gradient_is_recorded_without_need():
    x, labels, _ = instance()
    assert not multicut.objective(x, labels).requires_grad
    with torch.no_grad():
        assert not multicut.objective(x.requires_grad_(), labels).requires_grad


def test_vmap_is_refused():
    x, labels, _ = instance(12)
    with pytest.raises(RuntimeError, match=r"vmap is not supported|Pass a batch|vmap"):
        torch.func.vmap(lambda t: multicut.objective(t, labels[:6]))(x.reshape(2, 6, 5))


def test_autocast_changes_nothing():
    x, labels, _ = instance()
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = multicut.objective(x, labels, 0.2)
    assert torch.equal(inside, multicut.objective(x, labels, 0.2))


def test_threads_do_not_matter():
    x, labels, _ = instance(5000, 17, clusters=90)
    two = multicut.objective(x.float(), labels, 0.2)
    torch.set_num_threads(1)
    try:
        assert torch.equal(multicut.objective(x.float(), labels, 0.2), two)
    finally:
        torch.set_num_threads(2)
