"""Average linkage for every alpha, held to scipy; and the alphas suggested from it."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import mixture, separated
from scipy.cluster.hierarchy import fcluster, linkage
from sublimate import multicut
from sublimate.multicut import reference as R


def scipy_tree(x):
    """Linkage of distances 4 - <x, y>: cut at 4 - alpha."""
    s = (x.double() @ x.double().T).cpu()
    i, j = torch.triu_indices(len(x), len(x), 1)
    return linkage(4 - s[i, j].numpy(), "average")


def scipy_labels(tree, alpha):
    return R.by_first_appearance(torch.from_numpy(fcluster(tree, 4 - alpha, "distance")).long())


@pytest.mark.parametrize(("n", "d", "seed", "sigma"), [(150, 8, 1, 0.7), (700, 32, 2, 1.3)])
def test_equals_scipy_for_every_alpha(lane, n, d, seed, sigma):
    if lane.emulated:
        n = 60
    x, _ = mixture(n, d, seed, sigma)
    path = multicut.alpha_path(lane.put(x), backend=lane.backend)
    tree = scipy_tree(x)
    heights = torch.from_numpy(4 - tree[:, 2]).sort(descending=True).values
    torch.testing.assert_close(path.heights.cpu(), heights, rtol=0, atol=1e-6)
    for alpha in (-1.0, -0.1, 0.0, 0.2, 0.4, 0.6, 0.9, 1.1):
        due = scipy_labels(tree, alpha)
        assert torch.equal(path.labels(alpha).cpu(), due), alpha
        assert torch.equal(path(alpha), path.labels(alpha))
        assert path.n_clusters(alpha) == int(due.max()) + 1


def test_weights_and_negative_dims():
    """A node of weight 3 is three nodes with a third of its features each."""
    x, _ = mixture(40, 6, 3, 0.9)
    w = torch.ones(40)
    w[5], w[17] = 3.0, 2.0
    rows = torch.repeat_interleave(torch.arange(40), w.long())
    one = multicut.alpha_path(x * w[:, None], weights=w, negative_dims=2)
    many = multicut.alpha_path(x[rows].double(), negative_dims=2)
    for alpha in (-0.3, 0.0, 0.3):  # copies are together at any of these
        assert torch.equal(one.labels(alpha)[rows], many.labels(alpha))


def test_every_number_of_clusters():
    x, _ = mixture(60, 5, 4, 0.8)
    path = multicut.alpha_path(x.double())
    before = x.clone()
    for k in range(1, 61):
        assert path.n_clusters(path.alpha_for(k)) == k
        assert int(path.labels(path.alpha_for(k)).max()) + 1 == k
    assert torch.equal(x, before)
    assert "n=60" in repr(path)
    with pytest.raises(ValueError, match="n_clusters: expected 1 to 60, got 61"):
        path.alpha_for(61)


def test_input_is_left_alone():
    x, _ = mixture(50, 5, 4, 0.8)
    x = x.double()
    before = x.clone()
    multicut.alpha_path(x)
    assert torch.equal(x, before)


def test_ties_do_not_stop_it():
    """All inner products equal, and pairs of copies: still one tree over all nodes."""
    for x in (torch.ones(17, 3), torch.eye(9), torch.eye(6).repeat(3, 1)):
        path = multicut.alpha_path(x)
        assert len(path.heights) == len(x) - 1
        assert int(path.labels(-5.0).max()) == 0
        assert torch.equal(path.labels(5.0), torch.arange(len(x)))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny(n):
    path = multicut.alpha_path(torch.ones(n, 2))
    assert path.n == n and path.labels(0.0).tolist() == [0] * n
    assert path.n_clusters(0.0) == min(n, 1)
    assert path.labels(3.0).tolist() == list(range(n))


# --------------------------------------------------------------------------------- suggest_alpha


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.95, 1.0])
def test_quantile_of_all_pairs(quantile):
    x, _ = mixture(90, 6, 0, 0.7)
    s = (x @ x.T)[tuple(torch.triu_indices(90, 90, 1))]
    got = multicut.suggest_alpha(x, quantile=quantile)
    assert got == pytest.approx(float(s.quantile(quantile)), abs=1e-6)


def test_quantile_of_a_sample():
    x, _ = mixture(3000, 16, 0, 0.7)
    alpha = multicut.suggest_alpha(x, quantile=0.9)
    assert multicut.suggest_alpha(x, quantile=0.9) == alpha
    s = (x @ x.T)[tuple(torch.triu_indices(3000, 3000, 1))]
    assert float((s < alpha).double().mean()) == pytest.approx(0.9, abs=1e-3)


def test_number_of_clusters():
    x, _ = separated(400, 16, 12, 0)
    alpha = multicut.suggest_alpha(x, n_clusters=12)
    labels = multicut.dense_multicut(x, alpha=alpha)
    assert int(labels.max()) + 1 == 12


def test_exactly_one_of_the_two():
    x = torch.ones(5, 2)
    with pytest.raises(ValueError, match="exactly one of quantile and n_clusters, got neither"):
        multicut.suggest_alpha(x)
    with pytest.raises(ValueError, match="got both"):
        multicut.suggest_alpha(x, quantile=0.5, n_clusters=3)
    with pytest.raises(ValueError, match=r"quantile: expected a number from 0 to 1, got 1\.5"):
        multicut.suggest_alpha(x, quantile=1.5)
    with pytest.raises(ValueError, match="n_clusters: expected an int from 1 to 5, got 6"):
        multicut.suggest_alpha(x, n_clusters=6)
    with pytest.raises(ValueError, match="at least two nodes, got 1"):
        multicut.suggest_alpha(x[:1], quantile=0.5)
