"""Every multicut Triton kernel compiles ahead of time, without spills, for each supported target.

Compiled: all cases for sm_90 in bf16 (or, where a kernel has no 16-bit form, fp32); the ``common``
cases for the other dtypes and for sm_80, sm_100 and gfx942.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="pip install triton")

from helpers import triton_aot
from sublimate.kernels.multicut import configs

CONFIGS = "sublimate.kernels.multicut.configs"
CASES = configs.aot_cases()
PASSES = ("best_kernel", "list_kernel", "negative_kernel")


def wanted(case, target):
    own = case.name.endswith(configs.HIP) == (target == "gfx942")
    if case.kernel.__name__ in PASSES and not own:
        return False
    return case.common or (target == "sm_90" and case.dtype in ("bf16", "fp32"))


WANTED = [(c.name, target) for target in triton_aot.TARGETS for c in CASES if wanted(c, target)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return triton_aot.compile_all(CONFIGS, WANTED, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize(("name", "target"), WANTED)
def test_compiles(reports, name, target):
    triton_aot.check(reports[name, target], target)


def test_hardly_any_spills(reports):
    triton_aot.check_parked(reports.values())


def test_two_blocks_of_the_large_pass_fit(reports):
    """On sm_90 two blocks share a multiprocessor: 128 registers a thread, 113 KiB each."""
    report = reports["best_kernel-2-d128-self-tame-bf16", "sm_90"]
    assert report.registers <= 128 and report.shared <= 113 * 1024


def test_subset_covers_everything():
    by_name = {case.name: case for case in CASES}
    met = {(by_name[name].kernel.__name__, by_name[name].dtype, t) for name, t in WANTED}
    every = {"best_kernel", "list_kernel", "join_kernel"}
    wide = {"negative_kernel", "instance_sums_kernel", "contract_kernel", "gain_kernel"}
    wide.add("move_kernel")
    assert {case.kernel.__name__ for case in CASES} == every | wide
    for target in triton_aot.TARGETS:
        for dtype in ("fp32", "fp16", "bf16", "fp64"):
            for kernel in every | (wide if dtype in ("fp32", "fp64") else set()):
                assert (kernel, dtype, target) in met
