"""Estimates of the weight's gradient: unbiased, and of the variance that the formulas say."""

from __future__ import annotations

import pytest
import torch
from helpers.randomized_linear_cases import KINDS, K, dense_gradients, inputs
from sublimate import randomized_linear
from sublimate.randomized_linear import moments, reference

DRAWS = 2000
#: For the variance, which must be known to 5 %.
MANY = 6000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sketch", reference.SKETCHES)
def test_reference(sketch, kind):
    """Mean of 2,000 draws within 4 standard errors; measured variance within 5 %."""
    x, dy = inputs(kind)
    exact = dy.T @ x
    drawn = dense_gradients(x, dy, sketch, K, torch.arange(MANY))
    first = drawn[:DRAWS]
    error = first.std(0) / DRAWS**0.5
    assert bool(((first.mean(0) - exact).abs() <= 4 * error).all())
    measured = (drawn - exact).square().sum((1, 2))
    formula = float(randomized_linear.variance(x, dy, sketch, K))
    # 5 % is more than two standard errors of what these draws give, and the seeds are fixed.
    assert 2 * float(measured.std()) / MANY**0.5 < 0.05 * formula
    assert abs(float(measured.mean()) / formula - 1) < 0.05


@pytest.mark.parametrize("sketch", reference.SKETCHES)
def test_public_function(sketch, calls):
    """The same through ``linear`` and its backward on the compiled backend."""
    x, dy = inputs("heavy", 40)
    weight = torch.zeros(dy.shape[1], x.shape[1], dtype=x.dtype, requires_grad=True)
    found = []
    for seed in range(DRAWS):
        y = randomized_linear.linear(x, weight, ratio=0.25, sketch=sketch, seed=seed, backend="cpu")
        found.append(torch.autograd.grad(y, weight, dy)[0])
    drawn, exact = torch.stack(found), dy.T @ x
    error = drawn.std(0) / DRAWS**0.5
    assert bool(((drawn.mean(0) - exact).abs() <= 4 * error).all())
    measured = (drawn - exact).square().sum((1, 2))
    formula = float(randomized_linear.variance(x, dy, sketch, 10))
    assert abs(float(measured.mean()) - formula) < 4 * float(measured.std()) / DRAWS**0.5
    assert calls["cpu"] >= 2 * DRAWS


@pytest.mark.parametrize(("sketch", "n"), [("srht", 1100), ("srht", 2051), ("dct", 1100)])
def test_variance_of_several_blocks(sketch, n):
    x, dy = inputs("correlated", n)
    k, draws = 200, 500
    drawn = dense_gradients(x, dy, sketch, k, torch.arange(draws))
    measured = (drawn - dy.T @ x).square().sum((1, 2))
    formula = float(randomized_linear.variance(x, dy, sketch, k))
    assert abs(float(measured.mean()) - formula) < 4 * float(measured.std()) / draws**0.5
    assert 4 * float(measured.std()) / draws**0.5 < 0.3 * formula


def test_formula_of_one_block_is_the_table():
    x, dy = inputs("heavy", 64)
    a = float(x.square().sum() * dy.square().sum())
    b = float((x.T @ dy).square().sum())
    c = float((x.square().sum(1) * dy.square().sum(1)).sum())
    got = {s: float(randomized_linear.variance(x, dy, s, 16)) for s in reference.SKETCHES}
    assert got["gaussian"] == pytest.approx((a + b) / 16, rel=1e-6)
    assert got["rademacher"] == pytest.approx((a + b - 2 * c) / 16)
    assert got["srht"] == pytest.approx((a + b - 2 * c) / 16 * 48 / 63)
    assert got["rows"] == pytest.approx((64 * c - b) / 16 * 48 / 63)
    # k divides N: two rows share a bucket with probability (q - 1) / (N - 1).
    assert got["countsketch"] == pytest.approx((a + b - 2 * c) * 3 / 63)


@pytest.mark.parametrize("sketch", ["crs", "wta"])
def test_optimal_probabilities(sketch):
    """p ~ |x_n| |dy_n|: the published formula ((sum |x||dy|)^2 - B) / k, or better for wta."""
    x, dy = inputs("heavy")
    size = x.norm(dim=1) * dy.norm(dim=1)
    p = size / size.sum()
    formula = float((size.sum() ** 2 - (x.T @ dy).square().sum()) / K)
    got = float(randomized_linear.variance(x, dy, sketch, K, p))
    assert got == pytest.approx(formula) if sketch == "crs" else got < formula
    assert got < float(randomized_linear.variance(x, dy, sketch, K))


@pytest.mark.parametrize("sketch", ["rows", "dct", "srht", "countsketch", "wta"])
def test_no_variance_where_nothing_is_left_out(sketch):
    x, dy = inputs("iid", 64)
    assert float(randomized_linear.variance(x, dy, sketch, 64)) == pytest.approx(0, abs=1e-9)


def test_rows_that_weigh_nothing():
    x, dy = inputs("iid")
    x[3:] = 0
    for sketch in reference.SAMPLERS:
        assert bool(randomized_linear.variance(x, dy, sketch, 8).isfinite())
    assert float(randomized_linear.variance(x[:0], dy[:0], "srht", 1)) == 0


def test_three_dimensions_and_dtypes():
    x, dy = inputs("iid")
    due = randomized_linear.variance(x, dy, "srht", K)
    got = randomized_linear.variance(x.reshape(8, 12, -1), dy.reshape(8, 12, -1), "srht", K)
    assert got.dtype == torch.float64 and got == due
    single = randomized_linear.variance(x.float(), dy.float(), "srht", K)
    assert float(single) == pytest.approx(float(due), rel=1e-5)


def test_kurtosis_is_that_of_the_table():
    from sublimate import _normal

    z = _normal.from_words(torch.arange(2**23) << 9).double()
    assert abs(float(z.pow(4).mean()) - moments.KURTOSIS) < 1e-7
