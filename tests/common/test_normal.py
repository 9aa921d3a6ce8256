"""The table of normal numbers: its making, moments, quantiles and exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats
from sublimate import _normal, _philox

#: All 2**23 values of the bits that a word gives to |z|, with bit 0 clear.
ALL = torch.arange(2**23) << 9


@pytest.fixture(scope="module")
def size():
    return _normal.from_words(ALL)


def test_table_is_what_the_function_makes():
    a, b = _normal.fit_table()
    table = _normal.table().numpy()
    np.testing.assert_allclose(table[0], a, rtol=3e-7)
    np.testing.assert_allclose(table[1], b, rtol=2.0**-11)


def test_arithmetic_does_not_depend_on_contraction():
    a, b = _normal.table().double().unbind()
    mantissa, _ = torch.frexp(b)
    assert torch.equal((mantissa * 4096).round(), mantissa * 4096)  # 12 significant bits
    t = torch.arange(4096.0)
    product = b.float()[:, None] * t  # in float32
    assert torch.equal(product.double(), b[:, None] * t.double())
    fused = (a[:, None] + b[:, None] * t.double()).float()  # one rounding: fma
    assert torch.equal(a.float()[:, None] + product, fused)


def test_quantiles(size):
    v = (2 * (ALL >> 9) + 1).double()
    true = torch.from_numpy(np.sqrt(2) * special.erfcinv(v.numpy() / 2**24))
    error = size.double() - true
    assert error.abs().max() < 4e-5
    assert error.square().mean().sqrt() < 8e-6
    assert size.min() >= 0 and 5.41 < size.max() < 5.43


def test_moments(size):
    z = size.double()
    assert abs(z.square().mean() - 1) < 1e-6
    assert abs(z.pow(4).mean() - 3) < 1e-4
    assert abs(z.mean() - (2 / torch.pi) ** 0.5) < 1e-6


def test_sign_is_bit_zero(size):
    assert torch.equal(_normal.from_words(ALL[:1000] + 1), -size[:1000])
    # Bits 1 to 8 are not used.
    assert torch.equal(_normal.from_words(ALL[:1000] + 0xFE), size[:1000])


def test_draws_are_normal():
    z = _normal.normal(11, 200_000).double().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 5 / len(z) ** 0.5


def test_index_and_stream():
    words = _philox.words(5, 100, stream=3)
    assert torch.equal(_normal.normal(5, 100), _normal.from_words(words))
    at = torch.tensor([[3, 99], [0, 50]])
    assert torch.equal(_normal.normal(torch.tensor(5), at), _normal.normal(5, 100)[at])
    assert not torch.equal(_normal.normal(5, 100, stream=4), _normal.normal(5, 100))
