"""Lower bounds: below the optimum always, whatever labels guide them; and how tight they are."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.mixtures import mixture
from hypothesis import given
from hypothesis import strategies as st
from sublimate import multicut
from sublimate.multicut import bound
from sublimate.multicut import reference as R

D = torch.float64


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("q", [0, 2])
def test_trivial_bound_is_its_definition(lane, q, weighted):
    x, _ = mixture(61, 5, 0, 0.8)
    w = torch.rand(61) + 0.5 if weighted else None
    x, w = lane.put(x), None if w is None else lane.put(w)
    got = multicut.lower_bound(x, 0.2, weights=w, negative_dims=q, backend=lane.backend)
    s = R.pair_values(x.double(), None if w is None else w.double(), 0.2, q)
    torch.testing.assert_close(got, s.clamp(max=0).triu(1).sum(), rtol=1e-6, atol=1e-6)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 9),
    alpha=st.floats(-1, 1),
    guide=st.integers(1, 9),
    q=st.integers(0, 1),
)
def test_never_above_the_optimum(seed, n, alpha, guide, q):
    """With random labels, with the best ones, and without."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, dtype=D, generator=g)
    w = torch.rand(n, dtype=D, generator=g) + 0.5
    optimum, best = R.brute_force(R.pair_values(x, w, alpha, q))
    random = torch.randint(0, guide, (n,), generator=g)
    call = lambda labels: float(  # noqa: E731
        multicut.lower_bound(x, alpha, labels=labels, weights=w, negative_dims=q)
    )
    slack = 1e-9 * (1 + abs(optimum))
    trivial = call(None)
    assert trivial <= optimum + slack
    for labels in (random, best):
        assert trivial - slack <= call(labels) <= optimum + slack


def _packs_no_pair_twice(s: torch.Tensor, labels: torch.Tensor, gain: float, block: int) -> None:
    """Solves the packing's own linear program: no valid packing can gain more."""
    from scipy.optimize import linprog

    n = len(labels)
    pair = {}
    for i in range(n):
        for j in range(i + 1, n):
            pair[i, j] = len(pair)
    rows, columns = [], []
    triangles = 0
    for i in range(n):
        for j in range(i + 1, n):
            for k in range(j + 1, n):
                values = [float(s[i, j]), float(s[i, k]), float(s[j, k])]
                if sum(v < 0 for v in values) == 1 and sum(v > 0 for v in values) == 2:
                    rows += [pair[i, j], pair[i, k], pair[j, k]]
                    columns += [triangles] * 3
                    triangles += 1
    if triangles == 0:
        assert gain == 0
        return
    from scipy.sparse import coo_matrix

    matrix = coo_matrix(([1.0] * len(rows), (rows, columns)), shape=(len(pair), triangles))
    limit = [abs(float(s[i, j])) for i, j in pair]
    best = linprog([-1.0] * triangles, A_ub=matrix.tocsr(), b_ub=limit).fun
    assert 0 <= gain <= -best + 1e-7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [4, 7, 256])
def test_gain_is_that_of_a_valid_packing(seed, block, monkeypatch):
    monkeypatch.setattr(bound, "BLOCK", block)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(14, 3, dtype=D, generator=g)
    labels = torch.randint(0, 1 + seed, (14,), generator=g)
    gain = bound.triangle_gain(x, labels, 0.1, None, 0)
    _packs_no_pair_twice(R.pair_values(x, None, 0.1), labels, gain, block)


def test_a_triangle_is_closed():
    """One repulsive and two attractive pairs: the bound is the optimum where the trivial is not."""
    # s01 = s02 = 1, s12 = -2: the best cuts 1 from 0 and 2, or 2 from 0 and 1.
    x = torch.tensor([[1.0, 0.0], [1.0, 3**0.5], [1.0, -(3**0.5)]], dtype=D)
    s = R.pair_values(x)
    assert s[0, 1] == s[0, 2] == 1 and float(s[1, 2]) == pytest.approx(-2)
    optimum, best = R.brute_force(s)
    assert float(multicut.lower_bound(x)) == pytest.approx(-2)
    assert optimum == pytest.approx(-1)
    assert float(multicut.lower_bound(x, labels=best)) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("n", "d", "seed", "sigma", "alpha", "gap"),
    [(200, 16, 1, 0.7, 0.4, 0.004), (500, 32, 4, 1.3, 0.25, 0.006)],
)
def test_tightens(n, d, seed, sigma, alpha, gap):
    """Most of the gap of the trivial bound closes on mixtures, with the planted labels' moves."""
    x, _ = mixture(n, d, seed, sigma)
    labels = multicut.dense_multicut(x, alpha=alpha, restarts=4)
    cost = float(multicut.objective(x, labels, alpha))
    trivial = float(multicut.lower_bound(x, alpha))
    tight = float(multicut.lower_bound(x, alpha, labels=labels))
    assert trivial < tight <= cost
    assert (cost - tight) / abs(cost) < gap < (cost - trivial) / abs(cost)


def test_tiny_products_do_not_overflow():
    """Attraction used up to the last bits divides by next to nothing: still a number."""
    wrong = torch.rand(40, 40)
    faint = torch.rand(40, 40) * 1e-38
    attract = faint + faint.t()
    for gain, *left in (
        bound.pack_inside(wrong + wrong.t(), attract),
        bound.pack_across(wrong, faint, attract, attract),
        bound.pack_across(wrong + wrong.t(), attract, attract, None),
    ):
        assert 0 <= gain < 1e-30 and all(bool(t.isfinite().all()) for t in left)


def test_blocks_do_not_matter_much(monkeypatch):
    x, z = mixture(300, 16, 5, 0.8)
    whole = float(multicut.lower_bound(x, 0.3, labels=z))
    monkeypatch.setattr(bound, "BLOCK", 64)
    parts = float(multicut.lower_bound(x, 0.3, labels=z))
    trivial = float(multicut.lower_bound(x, 0.3))
    assert trivial < parts and abs(parts - whole) < 0.3 * (whole - trivial)


def test_batch_equals_one_by_one(lane):
    x, z = mixture(60, 4, 2, 0.8)
    x, z = lane.put(x), lane.put(z)
    rows = [0, 20, 20, 33, 60]
    for labels in (None, z):
        got = multicut.lower_bound(x, 0.3, labels=labels, offsets=rows, backend=lane.backend)
        each = [
            multicut.lower_bound(
                x[a:b], 0.3, labels=None if labels is None else z[a:b], backend=lane.backend
            )
            for a, b in itertools.pairwise(rows)
        ]
        # Equal but for rounding: a GPU adds tiles in float32, divided by their place in the batch.
        torch.testing.assert_close(got, torch.stack(each), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny(n):
    x = torch.ones(n, 2)
    labels = torch.arange(n)
    due = pytest.approx(-1.0 if n == 2 else 0.0, abs=1e-6)
    assert float(multicut.lower_bound(x, 3.0)) == due
    assert float(multicut.lower_bound(x, 3.0, labels=labels)) == due
