"""Every instruction-set level of the CPU module gives the same codes and gradients.

A level is picked once, when the module loads, so each runs in a process of its own
(helpers/isa_worker.py).
"""

from __future__ import annotations

import pytest
import torch
from helpers import isa_levels
from helpers.fewbit_cases import (
    CANCELLING,
    CODED,
    DTYPES,
    EAGER,
    SMOOTH,
    code_of,
    default_tables,
    exact_product,
    odd_tables,
    samples,
    truth_of,
    upstream,
    variant_id,
)
from helpers.isa_levels import LEVELS
from helpers.isa_worker import N
from helpers.parity import assert_parity, assert_same_bits
from sublimate import _philox
from sublimate.fewbit import reference as R


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(level in use, results) by the level asked for."""
    return isa_levels.run("isa_worker", tmp_path_factory.mktemp("isa"))


@pytest.fixture(params=LEVELS)
def results(request, found):
    isa, results = found[request.param]
    if isa != request.param:
        pytest.skip(f"this processor runs {isa} at most; {request.param} needs one that has it")
    return results


def test_base_level_always_runs(found):
    """The environment variable lowers the level; it cannot raise it past the processor's."""
    assert found["base"][0] == "base"
    assert LEVELS.index(found["v3"][0]) <= LEVELS.index(found["v4"][0])


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_functions(results, dtype):
    x, grad = samples(N, dtype), upstream(N, dtype)
    for name, params, bits in CODED:
        key = name, params, bits, dtype
        what = f"{name}{params} {bits} bits"
        borders, codes, levels = default_tables(name, params, bits, dtype)
        code = code_of(name, params, x, borders, codes)
        assert_same_bits(results[("words", *key)], R.pack(code, bits), what)
        assert_same_bits(results[("gradient", *key)], exact_product(code, levels, grad), what)
        eager = EAGER[name](x, *params)
        scale = x.nan_to_num(0.0, 0.0, 0.0) if name in CANCELLING else None
        truth = truth_of(name, params, x)
        assert_parity(results[("value", *key)], truth, eager, scale=scale, what=what)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_encode(results, dtype):
    x = samples(N, dtype)
    for bits, m in ((1, 0), (2, 9), (3, 31), (4, 255)):
        borders, codes, _ = odd_tables(bits, m, dtype)
        assert_same_bits(
            results["encode", bits, m, dtype], R.pack(R.encode(x, borders, codes), bits)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_stochastic(results, found, dtype):
    """Codes of a given derivative are exact; of our own f', but for near ties between levels."""
    acc = R.accumulator(dtype)
    levels = torch.linspace(-0.3, 1.3, 8, dtype=acc)
    given = torch.rand(N, generator=torch.Generator().manual_seed(2)).to(dtype)
    u = _philox.uniform(2**40 + 17, N).to(acc)
    expected = R.encode_stochastic(given.to(acc), levels, u)
    assert_same_bits(results["given", dtype], R.pack(expected, 3))
    x = samples(N, dtype)
    ordinary = x.isfinite() & (x.abs() < 1e4)
    for name in SMOOTH:
        v = R.FUNCTIONS[name].derivative(x.double(), *R.FUNCTIONS[name].defaults).to(acc)
        due = R.encode_stochastic(v, levels, u)
        got = R.unpack(results["stochastic", name, dtype], N, 3)
        different = (got != due) & ordinary
        assert different.sum() <= (0 if dtype == torch.float64 else 2), name
        assert ((got - due).abs()[different] <= 1).all(), name
        assert len(got.unique()) > 2


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("keep", ["up", "gate"])
def test_gated(results, found, keep, dtype):
    base = found["base"][1]
    gate, up, dy = (samples((29, 43), dtype, seed=s, odd=False) for s in (1, 2, 3))
    assert_same_bits(results["gated words", keep, dtype], base["gated words", keep, dtype])
    gelu = torch.nn.functional.gelu
    truth, eager = gelu(gate.double()) * up.double(), gelu(gate) * up
    scale = gate * up
    assert_parity(results["gated value", keep, dtype], truth, eager, scale=scale)
    borders, codes, levels = odd_tables(3, 7, dtype)
    wide = [t.to(levels.dtype) for t in (gate, up, dy)]
    if keep == "up":
        code = R.encode(gate, borders, codes)
        dgate = (wide[2] * wide[1] * levels[code]).to(dtype)
        assert_same_bits(results["gated dgate", keep, dtype], dgate)
        dup = (wide[2] * levels.flip(0)[code]).to(dtype)
        assert_same_bits(results["gated dup", keep, dtype], dup)
    else:
        truth, eager = dy.double() * gelu(gate.double()), dy * gelu(gate)
        dup = results["gated dup", keep, dtype]
        assert_parity(dup, truth, eager, gradient=True, scale=dy * gate)
        torch.testing.assert_close(
            results["gated dgate", keep, dtype], base["gated dgate", keep, dtype]
        )
        assert results["gated dgate", keep, dtype].count_nonzero() > 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=variant_id)
def test_every_16_bit_number(results, dtype):
    """All 65,536 numbers in and out, and narrowed from products that round in each direction."""
    assert_same_bits(results["all values", dtype], results["expected values", dtype])
    for k in range(8):
        assert_same_bits(results["all products", k, dtype], results["expected products", k, dtype])
