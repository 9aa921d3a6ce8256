"""Every few-bit Triton kernel compiles ahead of time, without spills, for each supported target.

Compiled: all cases (every function, mode, bit width and operand kept) for sm_90 and bf16 with both
launch configs; the ``common`` cases (every kernel and mode, some functions) for the other dtypes
and for sm_80, sm_100 and gfx942, again with both configs.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="pip install triton")

from helpers import triton_aot
from sublimate.kernels.fewbit import configs

CONFIGS = "sublimate.kernels.fewbit.configs"
CASES = configs.aot_cases()
WANTED = [
    (case.name, target)
    for target in triton_aot.TARGETS
    for case in CASES
    if case.common or (target == "sm_90" and case.dtype == "bf16")
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return triton_aot.compile_all(CONFIGS, WANTED, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize(("name", "target"), WANTED)
def test_compiles(reports, name, target):
    triton_aot.check(reports[name, target], target)


def test_hardly_any_spills(reports):
    triton_aot.check_parked(reports.values())


def test_subset_covers_everything():
    """Each kernel meets each dtype, config and target at least once, and each function sm_90."""
    chosen = {(name, target) for name, target in WANTED}
    by_name = {case.name: case for case in CASES}
    met = {
        (by_name[name].kernel.__name__, by_name[name].dtype, by_name[name].constexprs["BLOCK"], t)
        for name, t in chosen
    }
    kernels = {case.kernel.__name__ for case in CASES}
    dtypes = {case.dtype for case in CASES}
    assert kernels == {
        "activation_fwd_kernel",
        "activation_bwd_kernel",
        "gated_fwd_kernel",
        "gated_bwd_kernel",
    }
    assert dtypes == {"fp32", "fp16", "bf16", "fp64"}
    assert len(met) == len(kernels) * len(dtypes) * 2 * len(triton_aot.TARGETS)
