"""The keyed bijection: against plain integers, as a bijection, and as a uniform random order."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from sublimate import _permutation, _philox

MASK = 0xFFFFFFFF
SIZES = [1, 2, 3, 31, 32, 255, 256, 257, 1000, 1024, 4097]


def plain(seed: int, m: int, i: int) -> int:
    """The definition, in Python integers."""
    h = 4
    while 4**h < m:
        h += 1
    keys = _philox.words(seed, 8, stream=2).tolist()
    while True:
        left, right = i >> h, i & (2**h - 1)
        for key in keys:
            x = (right * 0x9E3779B1 + key) & MASK
            x ^= x >> 16
            x = (x * 0x85EBCA6B) & MASK
            x ^= x >> 13
            x = (x * 0xC2B2AE35) & MASK
            x ^= x >> 16
            left, right = right, left ^ (x & (2**h - 1))
        i = (left << h) | right
        if i < m:
            return i


@pytest.mark.parametrize("m", [1, 5, 256, 257, 70_000, 2**31 - 5, 2**31])
@pytest.mark.parametrize("seed", [0, 2**40 + 17])
def test_is_the_definition(m, seed):
    index = torch.tensor(sorted({0, min(1, m - 1), m // 3, m // 2, m - 1}))
    images = _permutation.permute(seed, m, index)
    assert images.tolist() == [plain(seed, m, int(i)) for i in index]
    assert torch.equal(_permutation.unpermute(seed, m, images), index)


@pytest.mark.parametrize("m", SIZES)
def test_is_a_bijection(m):
    index = torch.arange(m)
    order = _permutation.permute(7, m, index)
    assert torch.equal(order.sort().values, index)
    assert torch.equal(_permutation.permutation(7, m), order)
    assert torch.equal(_permutation.unpermute(7, m, order), index)
    assert m < 31 or not torch.equal(_permutation.permute(8, m, index), order)


@pytest.mark.parametrize("m", [3, 31, 257])
def test_inclusion_is_uniform(m):
    """Which rows, and which pairs of rows, are among the first k: chi-square over seeds."""
    k, repeats = (m + 1) // 2, 4000
    seeds = torch.arange(repeats)
    order = torch.vmap(lambda s: _permutation.permutation(s, m))(seeds)
    taken = torch.zeros(repeats, m).scatter_(1, order[:, :k], 1.0)
    counts = taken.sum(0)
    p = k / m
    # Sampling without replacement: the covariance of counts has m - 1 equal eigenvalues.
    score = float(((counts - repeats * p) ** 2).sum() / (repeats * p * (1 - p)) * (m - 1) / m)
    assert 1e-4 < stats.chi2.sf(score, m - 1) < 1 - 1e-4
    pairs = (taken.T @ taken)[torch.triu_indices(m, m, 1).unbind()]
    together = k * (k - 1) / (m * (m - 1))
    error = (repeats * together * (1 - together)) ** 0.5
    # Pairs are dependent, so only the largest and the spread are held: 5 sigma, 15 %.
    z = (pairs - repeats * together) / error
    assert z.abs().max() < 5.5
    if m > 3:
        assert abs(float(z.square().mean()) - 1) < (0.15 if m > 100 else 0.5)


@pytest.mark.parametrize("m", [5, 64, 1000])
def test_every_place_is_uniform(m):
    """The image of one point over seeds, and its distance to its neighbour's."""
    repeats, bins = 6000, min(m, 40)
    seeds = torch.arange(1000, 1000 + repeats)
    order = torch.vmap(lambda s: _permutation.permutation(s, m)[: min(m, 4)])(seeds)
    cells = (order * bins) // m
    sizes = torch.bincount((torch.arange(m) * bins) // m, minlength=bins) / m
    for column in cells.unbind(1):
        counts = torch.bincount(column, minlength=bins)
        assert stats.chisquare(counts.numpy(), (sizes.double() * repeats).numpy()).pvalue > 1e-5
    step = (order[:, 1] - order[:, 0]) % m  # 1 .. m - 1, uniform
    counts = torch.bincount(((step - 1) * (bins - 1)) // (m - 1), minlength=bins - 1)
    due = torch.bincount((torch.arange(m - 1) * (bins - 1)) // (m - 1)).double()
    assert stats.chisquare(counts.numpy(), (due / due.sum() * repeats).numpy()).pvalue > 1e-5


def test_seed_tensor_and_size():
    seed = torch.tensor([3])
    assert torch.equal(_permutation.permutation(seed, 40), _permutation.permutation(3, 40))
    with pytest.raises(ValueError, match=r"m: expected at most 2\*\*31, got 2147483649"):
        _permutation.permute(0, 2**31 + 1, torch.tensor([0]))
