"""The public top-k and assignment to clusters, against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import mixture
from sublimate import multicut
from sublimate.multicut import reference as R


def due(s, k):
    values, columns = s.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], columns[..., :k]


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_topk(lane, k, dtype):
    x, _ = mixture(70, 9, 0, 0.8)
    x = lane.put(x.to(dtype))
    values, columns = multicut.inner_product_topk(x, k, alpha=0.3, backend=lane.backend)
    s = R.pair_values(x.double(), None, 0.3).fill_diagonal_(-torch.inf)
    best, _ = due(s, k)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert values.dtype == wide and columns.dtype == torch.int64 and values.shape == (70, k)
    torch.testing.assert_close(values.double(), best, rtol=0, atol=1e-6)
    torch.testing.assert_close(s.gather(1, columns), best, rtol=0, atol=1e-6)


def test_other_rows_weights_and_signature(lane):
    x, y = (lane.put(mixture(n, 7, n, 0.8)[0]) for n in (33, 50))
    w, v = lane.put(torch.rand(33) + 0.5), lane.put(torch.rand(50) + 0.5)
    for weights, others in ((w, v), (w, None), (None, v), (None, None)):
        values, columns = multicut.inner_product_topk(
            x, 3, other=y, alpha=0.2, weights=weights, other_weights=others, negative_dims=2,
            backend=lane.backend,
        )  # fmt: skip
        s = R.pair_values(x, weights, 0.2, 2, y, others)
        best, place = due(s, 3)
        torch.testing.assert_close(values, best, rtol=0, atol=1e-6)
        assert (columns == place).double().mean() > 0.95


def test_ties_by_lowest_index(lane):
    x = lane.put(torch.eye(4).repeat(3, 1))  # each row equals two others exactly
    values, columns = multicut.inner_product_topk(x, 5, backend=lane.backend)
    assert columns[0].tolist() == [4, 8, 1, 2, 3]
    assert columns[5].tolist() == [1, 9, 0, 2, 3]
    assert values[0].tolist() == [1, 1, 0, 0, 0]
    _, columns = multicut.inner_product_topk(x, 3, exclude_self=False, backend=lane.backend)
    assert columns[5].tolist() == [1, 5, 9]


def test_fewer_columns_than_k(lane):
    x = lane.put(torch.randn(3, 2))
    values, columns = multicut.inner_product_topk(x, 4, backend=lane.backend)
    assert torch.equal(columns[:, 2:].cpu(), torch.full((3, 2), -1))
    assert bool((values[:, 2:] == -torch.inf).all()) and bool((columns[:, :2] >= 0).all())
    for n in (0, 1):
        values, columns = multicut.inner_product_topk(x[:n], 2, backend=lane.backend)
        assert values.shape == (n, 2) and columns.tolist() == [[-1, -1]] * n


def test_batch_equals_one_by_one(lane):
    x, y = lane.put(torch.randn(3, 8, 5)), lane.put(torch.randn(3, 6, 5))
    for other in (None, y):
        values, columns = multicut.inner_product_topk(x, 7, other=other, backend=lane.backend)
        for b in range(3):
            one = multicut.inner_product_topk(
                x[b], 7, other=None if other is None else other[b], backend=lane.backend
            )
            assert torch.equal(values[b], one[0]) and torch.equal(columns[b], one[1])


def test_strides_and_history():
    x = torch.randn(5, 40).t().requires_grad_()[::2]
    values, columns = multicut.inner_product_topk(x, 2)
    assert not values.requires_grad
    again = multicut.inner_product_topk(x.detach().contiguous(), 2)
    assert torch.equal(values, again[0]) and torch.equal(columns, again[1])


# -------------------------------------------------------------------------------------- assign


@pytest.mark.parametrize("weighted", [False, True])
def test_assign(lane, weighted):
    x, z = mixture(80, 6, 1, 0.6)
    new, _ = mixture(40, 6, 1, 0.9)
    w = torch.rand(80) + 0.5 if weighted else None
    v = torch.rand(40) + 0.5 if weighted else None
    labels = z * 5 - 7
    put = lambda t: None if t is None else lane.put(t)  # noqa: E731
    for reject in (False, True):
        got = multicut.assign(
            put(x), put(labels), put(new), alpha=0.45, weights=put(w), new_weights=put(v),
            negative_dims=1, reject=reject, backend=lane.backend,
        )  # fmt: skip
        sums, masses, _ = R.contract(x, w, z, int(z.max()) + 1)
        s = R.pair_values(new.double(), v, 0.45, 1, sums, masses)
        s[:, [c for c in range(len(masses)) if masses[c] == 0]] = -torch.inf
        best, place = s.max(1)
        expected = place * 5 - 7
        if reject:
            expected = torch.where(best > 0, expected, -1)
            assert (expected == -1).any()
        assert torch.equal(got.cpu(), expected)


def test_assign_nothing_to_nothing():
    empty = torch.zeros(0, 3)
    none = torch.zeros(0, dtype=torch.int64)
    assert multicut.assign(empty, none, empty).shape == (0,)
    assert multicut.assign(torch.ones(2, 3), torch.tensor([4, 4]), empty).shape == (0,)
    assert multicut.assign(torch.ones(2, 3), torch.tensor([4, 4]), torch.ones(1, 3)).item() == 4
    with pytest.raises(ValueError, match="features: expected at least one node"):
        multicut.assign(empty, none, torch.ones(1, 3))
