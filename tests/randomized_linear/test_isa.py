"""Every instruction-set level of the CPU kernels gives the same sketch.

A level is picked once, when the module loads, so each runs in a process of its own
(helpers/sketch_isa_worker.py).
"""

from __future__ import annotations

import pytest
from helpers import isa_levels
from helpers.isa_levels import LEVELS
from helpers.parity import assert_parity, assert_same_bits
from helpers.sketch_isa_worker import LENGTHS, OUTPUTS, matrix
from helpers.sketch_kernels import DENSE, DTYPES, SEED, SPARSE
from sublimate import _native
from sublimate.randomized_linear import reference as R

pytestmark = pytest.mark.skipif(
    _native.CPU.reason() is not None, reason=f"no CPU module: {_native.CPU.reason()}"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(level in use, results) by the level asked for."""
    return isa_levels.run("sketch_isa_worker", tmp_path_factory.mktemp("isa"))


@pytest.fixture(params=LEVELS)
def results(request, found):
    isa, results = found[request.param]
    if isa != request.param:
        pytest.skip(f"this processor runs {isa} at most; {request.param} needs one that has it")
    return results


def test_base_level_always_runs(found):
    assert found["base"][0] == "base"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sketch", (*DENSE, *SPARSE))
def test_projections(results, sketch, dtype):
    x = matrix(dtype)
    truth = R.project(x.double(), sketch, OUTPUTS, SEED)
    size = x.double().square().sum(0).sqrt().expand(truth.shape)
    eager = R.project(x, sketch, OUTPUTS, SEED)
    assert_parity(results[sketch, dtype], truth, eager, scale=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits(results, found, dtype):
    """But for the dense sketches, sums are in one order and products are by 1 or -1: fused or not,
    on wide or narrow registers, they round alike."""
    base = found["base"][1]
    for key in (*SPARSE, "gather"):
        assert_same_bits(results[key, dtype], base[key, dtype], key)
    for _, length in LENGTHS:
        key = "hadamard", length, dtype
        assert_same_bits(results[key], base[key], f"hadamard {length}")
