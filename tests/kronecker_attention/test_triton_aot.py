"""Every Kronecker attention Triton kernel compiles ahead of time, without spills, for each target.

Compiled: all cases for sm_90 in bf16; the ``common`` cases (every kernel, D = 64 but for norms) for
the other dtypes and for sm_80, sm_100 and gfx942, there without fp64.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="pip install triton")

from helpers import triton_aot
from sublimate.kernels.kronecker_attention import configs

CONFIGS = "sublimate.kernels.kronecker_attention.configs"
CASES = configs.aot_cases()


def wanted(case, target):
    if case.name.endswith(configs.HIP) != (target == "gfx942"):
        return False
    return case.common or (target == "sm_90" and case.dtype == "bf16")


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


def test_subset_covers_everything():
    """Each kernel meets each dtype and target."""
    by_name = {case.name: case for case in CASES}
    met = {(by_name[name].kernel.__name__, by_name[name].dtype, t) for name, t in WANTED}
    kernels = {case.kernel.__name__ for case in CASES}
    assert kernels == {
        "forward_kernel",
        "query_kernel",
        "key_kernel",
        "moment_kernel",
        "evaluate_kernel",
        "gradient_kernel",
        "norm_kernel",
    }
    for target in triton_aot.TARGETS:
        for dtype in ("fp32", "fp16", "bf16") + (() if target == "gfx942" else ("fp64",)):
            assert {k for k, d, t in met if (d, t) == (dtype, target)} == kernels
