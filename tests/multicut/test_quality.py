"""What the solver finds, against optima, greedy contraction, scipy and published objectives."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import mixture
from multicut.test_reference import EXAMPLES, MIXTURES, features_of, sha256
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sublimate.multicut import dense_multicut, objective
from sublimate.multicut import reference as R

EASY, HARD = (0.7, 0.4), (1.3, 0.25)  # (noise, alpha)


def cost(x: torch.Tensor, labels: torch.Tensor, alpha: float) -> float:
    return float(objective(x.double(), labels, alpha))


@pytest.mark.parametrize("m", MIXTURES, ids=lambda m: f"n{m['n']}")
def test_examples(m):
    x, alpha = features_of(m), m["alpha"]
    found = dense_multicut(x, alpha=alpha, restarts=4)
    assert cost(x, found, alpha) <= m["best_known"] * (1 - 1e-4)
    assert cost(x, found, alpha) >= m["lower_bound_trivial"]
    assert cost(x, dense_multicut(x, alpha=alpha), alpha) <= m["gaec"]["obj"]
    for dtype, rel in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        greedy = dense_multicut(x.to(dtype), alpha=alpha, method="gaec", refine=None)
        assert cost(x, greedy, alpha) == pytest.approx(m["gaec"]["obj"], rel=rel)
    assert (
        sha256(dense_multicut(x.double(), alpha=alpha, method="gaec", refine=None))
        == (m["gaec"]["labels_sha256"])
    )
    average = dense_multicut(x, alpha=alpha, method="average", refine=None)
    assert sha256(average) == m["average_linkage"]["labels_sha256"]


def test_counterexample():
    example = EXAMPLES["nonreducible"]
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor(example["features_alpha0"], dtype=dtype)
        for options in ({"method": "gaec", "refine": None}, {"restarts": 4}):
            labels = dense_multicut(x, **options)
            assert labels.tolist() == [0, 0, 0, 1]
            assert cost(x, labels, 0.0) == pytest.approx(-7, abs=1e-4)
        pairs = dense_multicut(x, method="reciprocal", refine=None)
        assert pairs.tolist() == [0, 0, 1, 1]


def test_tiny_instances_are_solved():
    """Optimal on nearly all, and never worse than greedy contraction."""
    optimal = 0
    for seed in range(40):
        n, d, sigma = (6, 8, 10, 11)[seed % 4], (3, 4, 6)[seed % 3], (1.0, 1.6, 2.5)[seed % 3]
        alpha = (0.05, 0.2, 0.0, -0.1)[seed // 4 % 4]
        x = mixture(n, d, 100 + seed, sigma, 3)[0].double()
        v = R.pair_values(x, None, alpha)
        found = float(R.objective(v, dense_multicut(x, alpha=alpha, restarts=4)))
        best, _ = R.brute_force(v)
        assert found >= best - 1e-9
        assert found <= float(R.objective(v, R.greedy_contraction(v)[0])) + 1e-9
        optimal += found <= best + 1e-9
    assert optimal >= 38


@pytest.mark.parametrize(("seed", "kind"), [(0, EASY), (1, HARD)], ids=["easy", "hard"])
def test_average_linkage_is_scipys(seed, kind):
    sigma, alpha = kind
    x, _ = mixture(1200, 32, seed, sigma)
    # Distances 1 - <x, y>, as inner products of float32 rows have them.
    tree = linkage(pdist(x.double().numpy(), lambda a, b: 1 - a @ b), "average")
    due = R.by_first_appearance(torch.tensor(fcluster(tree, 1 - alpha, "distance")))
    assert torch.equal(dense_multicut(x, alpha=alpha, method="average", refine=None), due)


#: The lowest objective of published solvers at n = 5000, d = 32, seed 0: greedy contraction and
#: Kernighan-Lin on the explicit graph of 12.5 million edges.
@pytest.mark.parametrize(
    ("kind", "published"), [(EASY, -4897949.18), (HARD, -3066138.49)], ids=["easy", "hard"]
)
def test_five_thousand(kind, published):
    sigma, alpha = kind
    x, _ = mixture(5000, 32, 0, sigma)
    found = cost(x, dense_multicut(x, alpha=alpha, restarts=4), alpha)
    assert found <= published + 0.01
    once = cost(x, dense_multicut(x, alpha=alpha), alpha)
    assert once <= published * (1 - 1e-5)


@pytest.mark.parametrize("refine", ["moves", "kernighan-lin"])
def test_no_single_move_or_join_is_left(refine):
    x, _ = mixture(300, 10, 5, 1.2)
    v = R.pair_values(x.double(), None, 0.2)
    labels = dense_multicut(x, alpha=0.2, refine=refine)
    clusters = int(labels.max()) + 1
    worth = v.fill_diagonal_(0) @ torch.nn.functional.one_hot(labels, clusters + 1).double()
    stay = worth.gather(1, labels[:, None])[:, 0]
    assert float((worth.max(1).values - stay).max()) <= 1e-4
    between = R.contract_values(v, labels).fill_diagonal_(0)
    assert float(between.max()) <= 1e-4


def test_more_restarts_are_never_worse():
    x, _ = mixture(400, 12, 9, 1.4)
    costs = [cost(x, dense_multicut(x, alpha=0.15, restarts=r), 0.15) for r in (2, 4, 6)]
    assert costs[0] >= costs[1] - 1e-9 and costs[1] >= costs[2] - 1e-9
