"""The reference of the family against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import fft, linalg
from sublimate import _normal, _permutation, _philox
from sublimate.randomized_linear import reference

SIZES = [(1, 1), (5, 2), (37, 8), (64, 64), (70, 9), (3, 7)]


@pytest.mark.parametrize("length", [1, 2, 8, 64])
def test_hadamard_is_scipys(length):
    x = torch.randn(3, length, dtype=torch.float64)
    due = x @ torch.from_numpy(linalg.hadamard(length).astype(float)).T
    torch.testing.assert_close(reference.hadamard_transform(x), due, rtol=1e-13, atol=1e-13)


def test_hadamard_pads_and_scales():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    y = reference.hadamard_transform(x, 0.25)
    full = torch.nn.functional.pad(x, (0, 3))
    torch.testing.assert_close(y, 0.25 * reference.hadamard_transform(full))
    assert y.shape == (2, 3, 8)
    back = reference.hadamard_transform(y, 0.5)[..., :5]
    torch.testing.assert_close(back, x)  # H H = P


def test_dct_is_scipys():
    x = torch.randn(11, 3, dtype=torch.float64)
    due = torch.from_numpy(fft.dct(x.numpy(), axis=0, norm="ortho"))
    torch.testing.assert_close(reference.dct_matrix(11, x) @ x, due)


@pytest.mark.parametrize("sketch", reference.OBLIVIOUS)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_second_moment_is_identity(sketch, n, k):
    """E[S S^T] = I: each entry of the mean of 1,200 draws within 5.5 standard errors."""
    repeats = 1200
    draw = torch.vmap(lambda seed: reference.sketch_matrix(sketch, n, k, seed))
    s = draw(torch.arange(repeats))  # [repeats, n, k]
    gram = s @ s.transpose(1, 2)
    mean, error = gram.mean(0), gram.std(0) / repeats**0.5
    off = (mean - torch.eye(n, dtype=torch.float64)).abs()
    assert bool((off <= 5.5 * error + 1e-12).all()), float((off / (error + 1e-12)).max())


@pytest.mark.parametrize("sketch", reference.SAMPLERS)
@pytest.mark.parametrize(("n", "k"), [(5, 2), (37, 8), (16, 16)])
def test_sampler_second_moment_is_identity(sketch, n, k):
    repeats = 3000
    p = torch.rand(n, dtype=torch.float64) ** 3 + 0.05
    p /= p.sum()
    draw = torch.vmap(lambda seed: reference.sample(sketch, p, k, seed))
    index, square = draw(torch.arange(repeats))
    weight = torch.zeros(repeats, n, dtype=torch.float64)
    weight.scatter_add_(1, index.long(), square)
    mean, error = weight.mean(0), weight.std(0) / repeats**0.5
    assert bool(((mean - 1).abs() <= 4.5 * error + 1e-12).all())


@pytest.mark.parametrize("n", [40, 1025, 2500])
def test_blocks_mix_apart(n):
    nb, chunk = reference.blocks(n)
    assert (nb - 1) * chunk < n <= nb * chunk and chunk <= reference.BLOCK
    m = reference.power_of_two(chunk)
    assert reference.transformed_rows("srht", n) == nb * m
    assert reference.transformed_rows("dct", n) == nb * chunk
    if n > 40:
        s = reference.sketch_matrix("srht", n, 64, 3)
        owner = torch.arange(n) // chunk
        for column in s.T:
            assert len(owner[column != 0].unique()) == 1


def test_entries_are_the_definition():
    n, k, seed = 21, 6, 2**35 + 3
    s = reference.sketch_matrix("gaussian", n, k, seed)
    z = _normal.from_words(_philox.words(seed, 4 * n * 2, stream=3))
    for row, j in [(0, 0), (3, 5), (20, 2)]:
        at = 4 * (row * 2 + (j >> 2)) + (j & 3)
        assert s[row, j] == z[at].double() / math.sqrt(k)
    s = reference.sketch_matrix("rademacher", n, 200, seed)
    word = _philox.words(seed, 4 * n * 2, stream=4)
    for row, j in [(0, 0), (7, 127), (20, 128), (5, 199)]:
        bit = int(word[4 * (row * 2 + (j >> 7)) + ((j >> 5) & 3)]) >> (j & 31) & 1
        assert s[row, j] == (1 - 2 * bit) / math.sqrt(200)
    order = _permutation.permutation(seed, n)
    d = reference.signs(seed, n, s)
    bit = int(_philox.words(seed, 1, stream=1)[0]) >> 17 & 1
    assert d[17] == 1 - 2 * bit
    s = reference.sketch_matrix("countsketch", n, k, seed)
    for place in range(n):  # PERM takes a row to its place, place mod k is the bucket
        row = int(_permutation.unpermute(seed, n, torch.tensor(place)))
        assert s[row].tolist() == [float(d[row]) * (j == place % k) for j in range(k)]
    s = reference.sketch_matrix("rows", n, k, seed)
    for j in range(k):
        assert s[:, j].nonzero().tolist() == [[int(order[j])]]
        assert s[order[j], j] == math.sqrt(n / k)


def test_srht_is_the_definition():
    n, k, seed = 1100, 50, 9
    nb, chunk, m = 2, 550, 1024
    d = reference.signs(seed, n, torch.zeros(0, dtype=torch.float64))
    x = torch.randn(n, 2, dtype=torch.float64)
    h = torch.from_numpy(linalg.hadamard(m).astype(float)) / math.sqrt(m)
    z = torch.zeros(nb * m, 2, dtype=torch.float64)
    for b in range(nb):
        part = (d[:, None] * x)[b * chunk : (b + 1) * chunk]
        z[b * m : (b + 1) * m] = h[:, : len(part)] @ part
    order = _permutation.permutation(seed, nb * m)
    due = math.sqrt(nb * m / k) * z[order[:k]]
    torch.testing.assert_close(reference.project(x, "srht", k, seed), due)


@pytest.mark.parametrize("sketch", reference.OBLIVIOUS)
def test_more_rows_than_there_are(sketch):
    n, k = 6, 40
    s = reference.sketch_matrix(sketch, n, k, 4)
    if sketch in ("rows", "dct", "srht", "countsketch"):
        torch.testing.assert_close(s @ s.T, torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("sketch", reference.OBLIVIOUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(sketch, dtype):
    x = torch.randn(70, 5).to(dtype)
    s = reference.project(x, sketch, 12, 5)
    assert s.dtype == dtype and s.shape == (12, 5)
    due = reference.project(x.double(), sketch, 12, 5)
    tol = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(s.double(), due, rtol=tol, atol=tol)


@pytest.mark.parametrize("sketch", reference.OBLIVIOUS)
def test_nothing(sketch):
    assert reference.project(torch.zeros(0, 3), sketch, 0, 1).shape == (0, 3)
    assert torch.equal(reference.project(torch.zeros(0, 3), sketch, 2, 1), torch.zeros(2, 3))
    assert reference.project(torch.zeros(5, 0), sketch, 2, 1).shape == (2, 0)


@pytest.mark.parametrize("sketch", reference.OBLIVIOUS)
def test_project_is_linear(sketch):
    x = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: reference.project(t, sketch, 7, 3), x)


@pytest.mark.parametrize("ratio", [1e-9, 0.1, 0.2, 0.5, 1.0])
def test_rows_kept(ratio):
    assert reference.rows_kept(0, ratio) == 0
    for n in (1, 2, 7, 4096):
        k = reference.rows_kept(n, ratio)
        assert 1 <= k <= n
        assert k == 1 or abs(k - ratio * n) <= 0.5


def test_winners_are_taken_for_certain():
    p = torch.tensor([0.02, 0.5, 0.02, 0.4, 0.06], dtype=torch.float64)
    index, square = reference.sample("wta", p, 3, 8)
    assert index[:2].tolist() == [1, 3] and square[:2].tolist() == [1.0, 1.0]
    drawn = int(index[2])
    assert drawn in (0, 2, 4)
    torch.testing.assert_close(square[2], 0.1 / p[drawn])
    # All the mass in one row: what is drawn besides weighs nothing.
    index, square = reference.sample("wta", torch.tensor([0.0, 1.0, 0.0]).double(), 2, 8)
    assert index[0] == 1 and square.tolist() == [1.0, 0.0]


def test_zero_rows_are_sampled_evenly():
    p = reference.row_probabilities(torch.zeros(4, 3))
    assert p.tolist() == [0.25] * 4
    _, square = reference.sample("crs", p, 8, 1)
    torch.testing.assert_close(square, torch.full((8,), 0.5, dtype=torch.float64))
    assert reference.row_probabilities(torch.zeros(0, 3)).shape == (0,)


def test_a_row_that_weighs_nothing_is_never_drawn():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    for sketch in reference.SAMPLERS:
        index, square = reference.sample(sketch, p, 400, 2)
        assert set(index[square > 0].tolist()) == {1, 3}
        assert bool(square.isfinite().all())
