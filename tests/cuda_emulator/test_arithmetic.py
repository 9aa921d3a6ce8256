"""half and bfloat16 of the emulator: bit for bit against torch and against exact rationals."""

from __future__ import annotations

import math
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

DTYPES = {"half": torch.float16, "bfloat": torch.bfloat16}
PRECISION = {"half": (11, -24), "bfloat": (8, -133)}  # bits, exponent of the last subnormal bit
LARGEST = {"half": Fraction(65504), "bfloat": Fraction(255 * 2**120)}

Array = np.ndarray[Any, Any]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16)


def run(emulated: ModuleType, kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[7, n]: a+b, a-b, a*b, a/b, fma(a, b, a), min, max."""
    out = torch.zeros(7, a.numel(), dtype=DTYPES[kind])
    function = getattr(emulated, f"{kind}_arithmetic")
    assert function(a.data_ptr(), b.data_ptr(), a.numel(), out.data_ptr()) == 0
    return out


def pairs(kind: str, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every bit pattern once on the left, in random order; random bit patterns on the right."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randperm(65536, generator=generator)[:n].to(torch.int16).view(DTYPES[kind])
    b = torch.randint(-32768, 32768, (n,), generator=generator).to(torch.int16).view(DTYPES[kind])
    return a, b


def assert_same(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan), what
    assert torch.equal(bits(got)[~nan], bits(expected)[~nan]), what


@pytest.mark.parametrize("kind", DTYPES)
def test_arithmetic_equals_torch(emulated: ModuleType, kind: str) -> None:
    a, b = pairs(kind, 65536, 0)
    out = run(emulated, kind, a, b)
    for row, expected in enumerate((a + b, a - b, a * b, a / b)):
        assert_same(out[row], expected, f"operation {row}")
    # torch leaves open which zero is the lesser, and lets a signalling NaN through.
    distinct = (a != b) & ~a.isnan() & ~b.isnan()
    assert_same(out[5][distinct], torch.minimum(a, b)[distinct], "min")
    assert_same(out[6][distinct], torch.maximum(a, b)[distinct], "max")
    for left, right in ((a, b), (b, a)):
        lone = left.isnan() & ~right.isnan()
        assert lone.sum() > 100
        assert_same(out[5][lone], right[lone], "min of a number and NaN")
        assert_same(out[6][lone], right[lone], "max of a number and NaN")
    assert out[5][a.isnan() & b.isnan()].isnan().all()


@pytest.mark.parametrize("kind", DTYPES)
def test_zeros_are_ordered(emulated: ModuleType, kind: str) -> None:
    a = torch.tensor([0.0, -0.0], dtype=DTYPES[kind])
    out = run(emulated, kind, a, a.flip(0).contiguous())
    assert out[5].signbit().tolist() == [True, True]
    assert out[6].signbit().tolist() == [False, False]


def rounded(x: Fraction, kind: str) -> float:
    """x rounded to nearest even in the format; exact rational arithmetic."""
    if x == 0:
        return 0.0
    precision, smallest = PRECISION[kind]
    magnitude = abs(x)
    exponent = math.floor(math.log2(magnitude))  # may be off by one near powers of two
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    while Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - precision + 1, smallest)
    value = round(magnitude / unit) * unit  # Python rounds half to even
    result = math.inf if value > LARGEST[kind] else float(value)
    return result if x > 0 else -result


@pytest.mark.parametrize("kind", DTYPES)
def test_fma_rounds_once(emulated: ModuleType, kind: str) -> None:
    a, b = pairs(kind, 6000, 1)
    keep = a.isfinite() & b.isfinite() & (a != 0) & (b != 0)
    a, b = a[keep].clone(), b[keep].clone()
    out = run(emulated, kind, a, b)[4]
    exact = [
        Fraction(x) * Fraction(y) + Fraction(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    expected = torch.tensor([rounded(e, kind) for e in exact], dtype=torch.float64).to(DTYPES[kind])
    nonzero = torch.tensor([e != 0 for e in exact])
    assert nonzero.sum() > 5000
    assert_same(out[nonzero], expected[nonzero], "fma")


def test_conversions(emulated: ModuleType) -> None:
    generator = np.random.default_rng(2)
    # fp32: random bit patterns, so every exponent, subnormals, infinities and NaN.
    x = generator.integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    # fp64: around the midpoints of the 16-bit formats, a hair off, where rounding twice goes wrong.
    base = np.ldexp(
        1 + generator.integers(0, 2**13, 50_000) / 2**13, generator.integers(-26, 17, 50_000)
    )
    y = base * (1 + generator.choice([-(2.0**-50), 0, 2.0**-50], 50_000))
    out = np.zeros((4, 50_000), np.uint16)
    assert emulated.narrow(x.ctypes.data, y.ctypes.data, x.size, out.ctypes.data) == 0
    single = torch.from_numpy(x)
    got = torch.from_numpy(out.view(np.int16))
    assert_same(got[0].view(torch.float16), single.to(torch.float16), "fp32 to half")
    assert_same(got[1].view(torch.bfloat16), single.to(torch.bfloat16), "fp32 to bfloat")
    with np.errstate(over="ignore"):
        assert_same(
            got[2].view(torch.float16), torch.from_numpy(y.astype(np.float16)), "fp64 to half"
        )
    sample = slice(0, 5000)
    exact = torch.tensor([rounded(Fraction(float(v)), "bfloat") for v in y[sample]])
    assert_same(got[3][sample].view(torch.bfloat16), exact.to(torch.bfloat16), "fp64 to bfloat")
    twice = torch.from_numpy(y).float().to(torch.bfloat16)[sample]
    assert not torch.equal(bits(twice), bits(exact.to(torch.bfloat16))), "the cases are too easy"
