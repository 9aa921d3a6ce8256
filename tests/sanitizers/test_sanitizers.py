"""Every CUDA kernel, emulated, under AddressSanitizer and UndefinedBehaviorSanitizer, on small
cases against the reference (cases.py).

That the sanitizers catch what they should is shown by planted faults in tests/cuda_emulator.
"""

from __future__ import annotations

import pytest
from helpers import native_build
from helpers.sanitizers import ADDRESS, run_cases, runtimes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lane("emulator"),
    native_build.needs_compiler,
]


def test_address_and_undefined():
    preload = runtimes(*ADDRESS)
    if preload is None:
        pytest.skip("the compiler has no sanitizer runtimes (install libasan and libubsan)")
    module = native_build.emulated_module("emulated-asan", "-DSUBLIMATE_SANITIZE=address,undefined")
    agreed = run_cases(
        module,
        # The interpreter itself is not instrumented: the runtimes come first, and what Python
        # keeps until its end is no leak of ours.
        LD_PRELOAD=preload,
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert agreed > 460
