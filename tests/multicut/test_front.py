"""The front of ``dense_multicut``: forms of input, batches, must-link, what it returns."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.mixtures import mixture, separated
from sublimate import multicut
from sublimate.multicut import link, ops
from sublimate.multicut import reference as R

D = torch.float64
METHODS = ("auto", "star", "average", "reciprocal", "gaec", "lazy")


def first_appearance(labels):
    assert labels.dtype == torch.int64
    assert torch.equal(labels, R.by_first_appearance(labels))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("refine", ["moves", "kernighan-lin", None])
def test_labels_of_every_method(method, refine):
    x, _ = mixture(120, 8, 0, 0.7)
    before = x.clone()
    labels = multicut.dense_multicut(x, alpha=0.4, method=method, refine=refine)
    assert labels.shape == (120,)
    first_appearance(labels)
    assert torch.equal(x, before)
    cost = multicut.objective(x, labels, 0.4)
    assert cost < multicut.objective(x, torch.arange(120), 0.4) and cost < 0
    assert torch.equal(labels, multicut.dense_multicut(x, alpha=0.4, method=method, refine=refine))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny(method, n):
    for x, alpha, due in (
        (torch.ones(n, 3), 1.0, [0] * n),
        (torch.ones(n, 3), 9.0, list(range(n))),
    ):
        labels, info = multicut.dense_multicut(x, alpha=alpha, method=method, return_info=True)
        assert labels.tolist() == due
        assert float(info.objective) == pytest.approx(-6.0 if n == 2 and alpha == 9 else 0.0)
        assert multicut.dense_multicut(x[None], alpha=alpha, method=method).tolist() == [due]


@pytest.mark.parametrize("alpha", [-3.0, 0.0, 3.0])
def test_alpha_of_any_sign(alpha):
    """Below every inner product all are together, above every one all are apart."""
    x, _ = mixture(50, 4, 1, 0.8)
    labels = multicut.dense_multicut(x, alpha=alpha)
    if alpha < 0:
        assert labels.tolist() == [0] * 50
    if alpha > 1:
        assert labels.tolist() == list(range(50))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_agree_on_a_clear_instance(dtype):
    x, _ = separated(200, 16, 8, 0)
    due = multicut.dense_multicut(x, alpha=0.5)
    assert torch.equal(multicut.dense_multicut(x.to(dtype), alpha=0.5), due)
    assert int(due.max()) + 1 == 8


def test_strides():
    x, _ = mixture(120, 8, 0, 0.7)
    due = multicut.dense_multicut(x, alpha=0.4)
    for view in (x.t().contiguous().t(), torch.stack([x, -x], 1).reshape(240, 8)[::2]):
        assert torch.equal(multicut.dense_multicut(view, alpha=0.4), due)
    same = multicut.dense_multicut(x[:1].expand(7, 8), alpha=0.4)
    assert same.tolist() == [0] * 7


def test_history_is_ignored():
    x, _ = mixture(40, 4, 0, 0.7)
    due = multicut.dense_multicut(x, alpha=0.4)
    assert torch.equal(multicut.dense_multicut(x.requires_grad_(), alpha=0.4), due)


# -------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("restarts", [1, 4])
def test_batch_equals_one_by_one(method, restarts):
    x = torch.stack([mixture(60, 6, seed, 0.8)[0] for seed in range(5)])
    options = {"alpha": 0.35, "method": method, "restarts": restarts}
    each = [multicut.dense_multicut(t, **options) for t in x]
    assert torch.equal(multicut.dense_multicut(x, **options), torch.stack(each))
    rows = [0, 0, 7, 8, 60, 61, 200, 300, 300]
    flat = x.reshape(300, 6)
    for offsets in (rows, torch.tensor(rows), torch.tensor(rows, dtype=torch.int32)):
        got = multicut.dense_multicut(flat, offsets=offsets, **options)
        due = [multicut.dense_multicut(flat[a:b], **options) for a, b in itertools.pairwise(rows)]
        assert torch.equal(got, torch.cat(due))


def test_batch_is_one_call_per_phase(calls):
    """Sixteen instances launch what one of them launches, not sixteen times as much."""
    x = torch.stack([mixture(40, 6, seed, 0.8)[0] for seed in range(16)])
    multicut.dense_multicut(x, alpha=0.35, method="gaec", refine=None)
    together = calls["multicut_gaec"]
    for t in x:
        multicut.dense_multicut(t, alpha=0.35, method="gaec", refine=None)
    assert together == 1 and calls["multicut_gaec"] == 17


@pytest.mark.parametrize("method", ["star", "average", "reciprocal"])
def test_rounds_of_a_batch_are_those_of_its_slowest_instance(method, calls):
    x = torch.stack([mixture(60, 6, seed, 0.8)[0] for seed in range(8)])

    def passes(t):
        before = calls["multicut_topk"]
        multicut.dense_multicut(t, alpha=0.35, method=method, refine=None)
        return calls["multicut_topk"] - before

    assert passes(x) == max(passes(t) for t in x) > 2


def test_batch_with_weights_and_empty():
    x = torch.randn(3, 10, 4)
    w = torch.rand(3, 10) + 0.5
    got = multicut.dense_multicut(x, alpha=0.1, weights=w)
    for b in range(3):
        assert torch.equal(got[b], multicut.dense_multicut(x[b], alpha=0.1, weights=w[b]))
    assert multicut.dense_multicut(torch.zeros(0, 5, 4)).shape == (0, 5)
    assert multicut.dense_multicut(torch.zeros(4, 0, 4)).shape == (4, 0)
    assert multicut.dense_multicut(torch.zeros(0, 4), offsets=[0]).shape == (0,)


def test_info_of_a_batch():
    x = torch.stack([mixture(60, 6, seed, 0.8)[0] for seed in range(3)])
    labels, info = multicut.dense_multicut(x, alpha=0.35, return_info=True)
    torch.testing.assert_close(
        torch.as_tensor(info.objective).double(), multicut.objective(x, labels, 0.35)
    )
    bound = multicut.lower_bound(x, 0.35)
    torch.testing.assert_close(torch.as_tensor(info.bound).double(), bound)


# ------------------------------------------------------------------------------------ must-link


def test_components():
    pairs = torch.tensor([[7, 3], [3, 9], [1, 2], [2, 1], [5, 5], [9, 8]])
    assert link.components(10, pairs).tolist() == [0, 1, 1, 3, 4, 5, 6, 3, 3, 3]
    chain = torch.stack([torch.arange(999, 0, -1), torch.arange(998, -1, -1)], 1)
    assert link.components(1000, chain[torch.randperm(999)]).tolist() == [0] * 1000
    assert link.components(3, pairs[:0]).tolist() == [0, 1, 2]


def test_must_link_is_kept_and_costs_what_it_costs():
    x, _ = mixture(80, 5, 0, 0.9)
    pairs = torch.randint(0, 80, (25, 2))
    free = multicut.dense_multicut(x, alpha=0.3, restarts=4)
    labels = multicut.dense_multicut(x, alpha=0.3, restarts=4, must_link=pairs)
    assert torch.equal(labels[pairs[:, 0]], labels[pairs[:, 1]])
    assert not torch.equal(free[pairs[:, 0]], free[pairs[:, 1]])
    first_appearance(labels)
    assert multicut.objective(x, labels, 0.3) >= multicut.objective(x, free, 0.3)


def test_must_link_is_the_constrained_optimum():
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(9, 3, dtype=D, generator=g)
        w = torch.rand(9, dtype=D, generator=g) + 0.5
        pairs = torch.tensor([[0, 4], [4, 7], [2, 3]])
        s = R.pair_values(x, w, 0.2)
        forced = s.clone()
        for i, j in [*pairs.tolist(), (0, 7)]:
            forced[i, j] = forced[j, i] = 1e4
        optimum, _ = R.brute_force(forced)
        labels, info = multicut.dense_multicut(
            x, alpha=0.2, weights=w, must_link=pairs, restarts=8, refine="kernighan-lin",
            return_info=True,
        )  # fmt: skip
        assert torch.equal(labels[pairs[:, 0]], labels[pairs[:, 1]])
        cost = float(R.objective(s, labels))
        assert cost == pytest.approx(optimum, abs=1e-9)
        assert float(info.objective) == pytest.approx(cost, abs=1e-9)
        assert float(info.bound) <= cost + 1e-9


def test_must_link_in_batches():
    x = torch.stack([mixture(30, 5, seed, 0.9)[0] for seed in range(3)])
    pairs = torch.tensor([[0, 9], [35, 40], [36, 59], [40, 36]])
    got = multicut.dense_multicut(x, alpha=0.3, must_link=pairs)
    each = [
        multicut.dense_multicut(x[0], alpha=0.3, must_link=pairs[:1]),
        multicut.dense_multicut(x[1], alpha=0.3, must_link=pairs[1:] - 30),
        multicut.dense_multicut(x[2], alpha=0.3),
    ]
    assert torch.equal(got, torch.stack(each))
    ragged = multicut.dense_multicut(
        x.reshape(90, 5), alpha=0.3, must_link=pairs, offsets=[0, 30, 60, 90]
    )
    assert torch.equal(ragged, got.flatten())


def test_no_pairs_is_no_constraint():
    x, _ = mixture(40, 5, 0, 0.9)
    none = torch.zeros(0, 2, dtype=torch.int64)
    due = multicut.dense_multicut(x, alpha=0.3)
    assert torch.equal(multicut.dense_multicut(x, alpha=0.3, must_link=none), due)


# ---------------------------------------------------------------------------- weights, signature


def test_weights_stand_for_copies():
    """A node of weight 2 with twice the features is two equal nodes that stay together."""
    x, _ = mixture(50, 5, 2, 0.8)
    double = torch.arange(50) % 3 == 0
    rows = torch.repeat_interleave(torch.arange(50), 1 + double.long())
    scale = 1 + double.float()
    one = multicut.dense_multicut(x * scale[:, None], alpha=0.3, weights=scale, restarts=4)
    pairs = (rows[1:] == rows[:-1]).nonzero()
    many = multicut.dense_multicut(
        x[rows], alpha=0.3, must_link=torch.cat([pairs, pairs + 1], 1), restarts=4
    )
    costs = [float(multicut.objective(x[rows], t, 0.3)) for t in (one[rows], many)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6)


def test_alpha_is_a_negative_coordinate():
    """alpha as a coordinate sqrt(alpha) that counts negatively: the same instance."""
    x, _ = mixture(90, 6, 3, 0.8)
    x = x.double()
    wide = torch.cat([x, torch.full((90, 1), 0.3**0.5, dtype=D)], 1)
    due, info = multicut.dense_multicut(x, alpha=0.3, return_info=True)
    got, other = multicut.dense_multicut(wide, negative_dims=1, return_info=True)
    assert torch.equal(got, due)
    assert float(other.objective) == pytest.approx(float(info.objective), rel=1e-12)


def test_info_tells_whose_kernels_ran():
    x, _ = mixture(60, 5, 0, 0.9)
    _, info = multicut.dense_multicut(x, alpha=0.2, restarts=4, return_info=True, backend="cpu")
    assert set(info.backends) == set(info.seconds) and set(info.backends.values()) == {"cpu"}


def test_gpu_tells_what_ran_on_the_host(emulated_cuda):
    x, _ = mixture(60, 5, 0, 0.9)
    _, info = multicut.dense_multicut(
        x, alpha=0.2, restarts=4, refine="kernighan-lin", return_info=True, backend="cuda"
    )
    assert info.backends["star"] == info.backends["gaec"] == info.backends["moves"] == "cuda"
    assert info.backends["kernighan-lin"] == "cpu"
    assert info.backends["fusion"] == "cuda, cpu"
    assert ops.runs_on("gaec", "triton") == "cpu" and ops.runs_on("lazy", "cpu") == "cpu"
