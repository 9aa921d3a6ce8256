"""Every Triton kernel of the family compiles ahead of time, without spills, for each target."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="pip install triton")

from helpers import triton_aot
from sublimate.kernels.path_integral import configs

CONFIGS = "sublimate.kernels.path_integral.configs"
CASES = configs.aot_cases()
WANTED = [(case.name, target) for target in triton_aot.TARGETS for case in CASES]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return triton_aot.compile_all(CONFIGS, WANTED, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize(("name", "target"), WANTED)
def test_compiles(reports, name, target):
    triton_aot.check(reports[name, target], target)


def test_hardly_any_spills(reports):
    triton_aot.check_parked(reports.values())


def test_every_kernel_is_there():
    from sublimate.kernels.path_integral import bwd, fwd

    found = {case.kernel for case in CASES}
    for module in (fwd, bwd):
        kernels = {v for name, v in vars(module).items() if name.endswith("_kernel")}
        assert kernels <= found
    for case in CASES:
        case.full_constexprs()
