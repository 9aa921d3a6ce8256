"""Every Triton kernel of the family compiles ahead of time, without spills, for each target."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="pip install triton")

from helpers import triton_aot
from sublimate.kernels.randomized_linear import configs

CONFIGS = "sublimate.kernels.randomized_linear.configs"
CASES = configs.aot_cases()
WANTED = [
    (case.name, target)
    for target in triton_aot.TARGETS
    for case in CASES
    if case.common or target == "sm_90"
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
    """Each kernel and kind meets each dtype, config and target."""
    by_name = {case.name: case for case in CASES}

    def kind(case):
        c = case.constexprs
        tile = [c.get(key) for key in ("SKETCH", "OUTPUTS", "COLUMNS", "BLOCK")]
        return case.kernel.__name__, c.get("KIND"), *tile

    met = {(kind(by_name[name]), by_name[name].dtype, target) for name, target in WANTED}
    every = {(kind(case), case.dtype) for case in CASES}
    assert met == {(*pair, target) for pair in every for target in triton_aot.TARGETS}
    kernels = {name for (name, *_), _ in every}
    assert kernels == {
        "project_dense_kernel",
        "project_srht_kernel",
        "select_kernel",
        "hadamard_kernel",
        "hadamard_columns_kernel",
    }
    kinds = {kind for (_, kind, *_), _ in every}
    assert kinds == {None, "gaussian", "rademacher", "index", "rows", "countsketch"}
    for name in kernels:
        dtypes = {dtype for (kernel, *_), dtype in every if kernel == name}
        assert dtypes == {"fp32", "fp16", "bf16", "fp64"}, name
