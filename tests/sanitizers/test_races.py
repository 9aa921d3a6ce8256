"""Every CUDA kernel, emulated, under the emulator's data race detector, on small cases against the
reference (cases.py).

A file of its own, beside that of the sanitizers: either takes minutes to build, on a worker each.
That the detector catches what it should is shown by planted faults in tests/cuda_emulator.
"""

from __future__ import annotations

import pytest
from helpers import native_build
from helpers.sanitizers import run_cases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lane("emulator"),
    native_build.needs_compiler,
]


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_races(order):
    module = native_build.emulated_module("emulated-race", "-DSUBLIMATE_RACECHECK=ON")
    stride = () if order == "forward" else ("--stride", "3")
    agreed = run_cases(module, *stride, SUBLIMATE_EMULATOR_ORDER=order)
    assert agreed > 150
