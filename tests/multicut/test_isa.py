"""Every instruction-set level of the CPU module finds the same clusters.

The levels with fused multiply-add give the same bits; the base level rounds twice. A level is
picked once, when the module loads, so each runs in a process of its own
(helpers/multicut_isa_worker.py).
"""

from __future__ import annotations

import pytest
import torch
from helpers import isa_levels
from helpers.isa_levels import LEVELS
from helpers.multicut_cases import assert_same_choice, tolerance
from helpers.multicut_isa_worker import DTYPES, case_of
from sublimate.multicut import reference as R
from sublimate.multicut.reference_kernighan_lin import kernighan_lin

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results by level, of the levels that this processor has."""
    running = isa_levels.run("multicut_isa_worker", tmp_path_factory.mktemp("isa"))
    return {level: results for level, (isa, results) in running.items() if isa == level}


@each_dtype
@pytest.mark.parametrize("level", LEVELS)
def test_against_the_reference(found, level, dtype):
    if level not in found:
        pytest.skip(f"this processor has no {level}")
    results, case = found[level], case_of(dtype)
    x, w, *rest = case.nodes
    wide = x.double(), w.double(), *rest
    atol = tolerance(dtype)
    for key, k, self_offset in (("partner", 1, 0), ("topk", 5, None)):
        due = R.topk(*wide, None, None, None, k, self_offset)
        assert_same_choice(*results[key, dtype], *due, atol)
    torch.testing.assert_close(
        results["negative sum", dtype], R.negative_sum(*wide), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(results["labels", dtype], found["base"]["labels", dtype])
    if dtype == torch.float64:
        for got, due in zip(results["gaec", dtype][:2], R.gaec(*wide)[:2], strict=True):
            assert torch.equal(got, due)
        chained, _ = kernighan_lin(*wide, torch.arange(len(x)), 4, 3)
        assert torch.equal(results["chains", dtype][0], chained)


@each_dtype
def test_fused_levels_agree_bit_for_bit(found, dtype):
    if "v4" not in found or "v3" not in found:
        pytest.skip("this processor has one level with fused multiply-add at most")
    v3, v4 = found["v3"], found["v4"]
    for key in ("partner", "topk", "move", "gaec", "chains"):
        for one, other in zip(v3[key, dtype], v4[key, dtype], strict=True):
            assert torch.equal(one, other), key
    # What a node is worth to its own cluster is left to the compiler to fuse.
    (target, gain), (other_target, other_gain) = (v["best cluster", dtype] for v in (v3, v4))
    assert torch.equal(target, other_target)
    torch.testing.assert_close(gain, other_gain, rtol=0, atol=tolerance(dtype))
