"""Every CUDA kernel, emulated, under AddressSanitizer and UndefinedBehaviorSanitizer, on small
cases against the reference (cases.py).

That the sanitizers catch what they should is shown by planted faults in tests/cuda_emulator.
"""

from __future__ import annotations

import pytest
from helpers import native_build
from helpers.sanitizers import run_address

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lane("emulator"),
    native_build.needs_compiler,
]


def test_address_and_undefined():
    module = native_build.emulated_module("emulated-asan", "-DSUBLIMATE_SANITIZE=address,undefined")
    agreed = run_address(module)
    if agreed is None:
        pytest.skip("the compiler has no sanitizer runtimes (install libasan and libubsan)")
    assert agreed > 460
