"""The reference against brute force, scipy and published instances (examples.json beside this)."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers.mixtures import mixture
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sublimate.multicut import reference as R
from sublimate.multicut.reference_kernighan_lin import kernighan_lin

EXAMPLES = json.loads((Path(__file__).parent / "examples.json").read_text())
MIXTURES = EXAMPLES["mixtures"]


def features_of(m: dict) -> torch.Tensor:
    """float32 features of a mixture, as its generator made them elsewhere."""
    x, _ = mixture(m["n"], m["d"], m["seed"], m["sigma"], m["K"])
    assert hashlib.sha256(x.numpy().tobytes()).hexdigest() == m["x_sha256"], "generator drifted"
    return x


def sha256(labels: torch.Tensor) -> str:
    canonical = R.by_first_appearance(labels).numpy().astype("<i8")
    return hashlib.sha256(canonical.tobytes()).hexdigest()


def partitions(n: int):
    """Labels of every partition of n nodes, numbered by first appearance."""
    for labels in itertools.product(range(n), repeat=n):
        if all(c <= max(labels[:i], default=-1) + 1 for i, c in enumerate(labels)):
            yield torch.tensor(labels)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_brute_force_is_the_best_of_all_partitions(n):
    v = R.pair_values(mixture(n, 3, n, 1.5)[0].double(), None, 0.1)
    best, labels = R.brute_force(v)
    every = min(float(R.objective(v, p)) for p in partitions(n))
    assert best == pytest.approx(every, abs=1e-12)
    assert float(R.objective(v, labels)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("t", EXAMPLES["tiny"], ids=lambda t: f"n{t['n']}")
def test_tiny_optima(t):
    v = R.pair_values(torch.tensor(t["x"], dtype=torch.float64), None, t["alpha"])
    best, labels = R.brute_force(v)
    assert best == pytest.approx(t["optimum"], abs=1e-9)
    assert labels.tolist() == t["optimum_labels"]
    greedy, _, _ = R.greedy_contraction(v)
    assert R.by_first_appearance(greedy).tolist() == t["gaec_labels"]
    assert float(R.objective(v, greedy)) == pytest.approx(t["gaec_obj"], abs=1e-9)


@pytest.mark.parametrize("m", MIXTURES, ids=lambda m: f"n{m['n']}")
def test_published_mixtures(m):
    x = features_of(m).double()
    v = R.pair_values(x, None, m["alpha"])
    labels, merges, costs = R.greedy_contraction(v)
    assert float(R.objective(v, labels)) == pytest.approx(m["gaec"]["obj"], rel=1e-9)
    assert sha256(labels) == m["gaec"]["labels_sha256"]
    assert len(merges) == m["gaec"]["contractions"]
    for (i, j), cost, expected in zip(merges, costs, m["gaec"]["first5"], strict=False):
        assert [i, j] == expected[:2] and cost == pytest.approx(expected[2], abs=1e-8)
    average = R.average_linkage(v)
    assert sha256(average) == m["average_linkage"]["labels_sha256"]
    offsets = torch.tensor([0, m["n"]])
    bound = R.negative_sum(x, None, offsets, m["alpha"], 0)
    assert float(bound) == pytest.approx(m["lower_bound_trivial"], rel=1e-10)
    for name, of in (("star", R.round_of_stars), ("recip", R.round_of_reciprocal)):
        labels = R.rounds(v, of)
        assert float(R.objective(v, labels)) == pytest.approx(m["prototypes"][name][0], rel=1e-8)
        assert int(labels.max()) + 1 == m["prototypes"][name][1]


def test_sum_linkage_is_not_reducible():
    """Greedy contraction finds the optimum of -7, reciprocal rounds stop at -4."""
    example = EXAMPLES["nonreducible"]
    v = R.pair_values(torch.tensor(example["features_alpha0"], dtype=torch.float64))
    greedy, _, _ = R.greedy_contraction(v)
    assert R.by_first_appearance(greedy).tolist() == [0, 0, 0, 1]
    assert float(R.objective(v, greedy)) == pytest.approx(-7, abs=1e-4)
    assert R.brute_force(v)[0] == pytest.approx(-7, abs=1e-4)
    pairs = R.rounds(v, R.round_of_reciprocal)
    assert pairs.tolist() == [0, 0, 1, 1]
    assert float(R.objective(v, pairs)) == pytest.approx(-4, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_average_linkage_is_scipys(seed):
    x, _ = mixture(90, 8, seed, 1.0)
    v = x.double() @ x.double().mT
    distances = squareform((1 - v).numpy(), checks=False)
    alpha = 0.3
    due = fcluster(linkage(distances, "average"), 1 - alpha, "distance")
    got = R.average_linkage(v - alpha)
    assert got.tolist() == R.by_first_appearance(torch.tensor(due)).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_chains_only_improve(seed):
    x, _ = mixture(40, 5, seed, 1.5)
    x, offsets = x.double(), torch.tensor([0, 40])
    v = R.pair_values(x, None, 0.1)
    start = torch.arange(40) // 4 * 4
    labels, gain = kernighan_lin(x, None, offsets, 0.1, 0, start, 0, 20)
    fell = float(R.objective(v, start) - R.objective(v, labels))
    assert fell == pytest.approx(float(gain), abs=1e-9) and fell > 0
    again, more = kernighan_lin(x, None, offsets, 0.1, 0, labels, 0, 20)
    assert float(more) == 0 and again.tolist() == labels.tolist()


def test_negative_coordinates():
    x, y = torch.randn(2, 6, 5, dtype=torch.float64)
    due = x[:, :3] @ y[:, :3].mT - x[:, 3:] @ y[:, 3:].mT - 0.5
    torch.testing.assert_close(R.pair_values(x, None, 0.5, 2, y), due)
