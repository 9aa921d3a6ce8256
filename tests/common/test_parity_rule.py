"""The acceptance rule itself: it passes good results and catches each way of being wrong."""

from __future__ import annotations

import pytest
import torch
from helpers.parity import RMS, assert_parity, assert_same_bits

DTYPES = list(RMS)


def case(dtype: torch.dtype, n: int = 4099) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(good result, truth, eager): eager a little worse than the good result."""
    generator = torch.Generator().manual_seed(n)
    truth = torch.randn(n, dtype=torch.float64, generator=generator)
    return truth.to(dtype, copy=True), truth, (truth * (1 + torch.finfo(dtype).eps)).to(dtype)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accepts_the_rounded_truth(dtype, gradient):
    good, truth, eager = case(dtype)
    assert_parity(good, truth, eager, gradient=gradient)
    for n in (0, 1):
        assert_parity(good[:n], truth[:n], eager[:n], gradient=gradient)
    assert_parity(torch.zeros_like(good), torch.zeros_like(truth), torch.zeros_like(eager))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.zero_(), "error"),
        (lambda r: r[-3:].zero_(), "error"),
        (lambda r: r[-3:].fill_(torch.nan), "3 elements not finite"),
        (lambda r: r[7:8].fill_(torch.inf), "1 elements not finite"),
        (lambda r: r.mul_(1.1), "error"),
        (lambda r: r.neg_(), "error"),
        (lambda r: r.copy_(r.roll(1)), "error"),
    ],
    ids=["zeroed", "zeroed-tail", "unwritten-tail", "infinite", "scaled", "negated", "shifted"],
)
def test_catches(spoil, message, dtype):
    for gradient in (False, True):
        result, truth, eager = case(dtype)
        spoil(result)
        with pytest.raises(AssertionError, match=message):
            assert_parity(result, truth, eager, gradient=gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_catches_a_lost_row_that_a_bad_eager_would_excuse(dtype):
    # One element where eager is far off makes the allowance for the largest error useless.
    result, truth, eager = case(dtype, 64 * 4000)
    eager[0] += 100
    result[640:704] = 0
    with pytest.raises(AssertionError, match=r"relative RMS|magnitude of row 10"):
        assert_parity(result, truth, eager, gradient=True)
    if RMS[dtype][1] > 1e-3:  # 64 of 256,000 elements: under a 16-bit table the RMS sees nothing
        truth[640:704] *= 1e-2
        with pytest.raises(AssertionError, match="magnitude of row 10 is 0 of the true one"):
            assert_parity(result, truth, eager, gradient=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_under_the_largest_error_is_caught(dtype):
    # Every element off by the largest error of eager: allowed one by one, not on the whole.
    result, truth, eager = case(dtype)
    eager[5] += 1
    result = result + torch.tensor(0.5, dtype=dtype)
    with pytest.raises(AssertionError, match="relative RMS"):
        assert_parity(result, truth, eager)


def test_nan_and_infinity_must_stand_where_they_are_due():
    truth = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 1e5], dtype=torch.float64)
    eager = truth.half()
    assert_parity(eager.clone(), truth, eager)  # 1e5 is infinite in fp16
    for at, wrong in [(1, 0.0), (2, -torch.inf), (2, torch.nan), (3, 65504.0), (4, 65504.0)]:
        result = eager.clone()
        result[at] = wrong
        with pytest.raises(AssertionError, match="is due"):
            assert_parity(result, truth, eager)
    result = eager.clone()
    result[0] = torch.nan
    with pytest.raises(AssertionError, match="1 elements not finite, the first at 0"):
        assert_parity(result, truth, eager)


def test_an_eager_that_fails_gives_no_allowance():
    truth = torch.ones(8, dtype=torch.float64)
    eager = torch.full((8,), torch.inf)
    assert_parity(torch.ones(8), truth, eager)
    with pytest.raises(AssertionError, match="error"):
        assert_parity(torch.full((8,), 1.001), truth, eager)


def test_shape_and_dtype_count():
    good, truth, eager = case(torch.float32)
    with pytest.raises(AssertionError, match="shape"):
        assert_parity(good[:-1], truth, eager)
    with pytest.raises(AssertionError, match=r"torch\.float16, eager gives torch\.float32"):
        assert_parity(good.half(), truth, eager)
    with pytest.raises(AssertionError, match="the truth must be float64"):
        assert_parity(good, truth.float(), eager)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits(dtype):
    a = torch.tensor([0.0, -0.0, 1.0, torch.nan, torch.inf], dtype=dtype)
    assert_same_bits(a, a.clone())
    assert_same_bits(a[3:4], -a[3:4])  # NaN of either sign
    b = a.clone()
    b[1] = 0.0
    with pytest.raises(AssertionError, match=r"1 of 5 elements differ, the first at \(1,\): -0.0"):
        assert_same_bits(a, b)
    b = a.clone()
    b[2] = torch.nextafter(b[2], torch.tensor(2.0, dtype=dtype))
    with pytest.raises(AssertionError, match=r"\(2,\)"):
        assert_same_bits(b, a)
    with pytest.raises(AssertionError, match="expected torch"):
        assert_same_bits(a, a.to(torch.float16 if dtype != torch.float16 else torch.float32))
    with pytest.raises(AssertionError, match=r"expected torch\.Size"):
        assert_same_bits(a[:4], a)


def test_same_bits_of_integers():
    words = torch.tensor([-1, 2**31 - 1], dtype=torch.int32)
    assert_same_bits(words, words.clone())
    with pytest.raises(AssertionError, match="1 of 2"):
        assert_same_bits(words, torch.tensor([-1, 0], dtype=torch.int32))
