"""Every CUDA kernel, emulated, under AddressSanitizer and UndefinedBehaviorSanitizer, on small
cases against the reference (cases.py).

That the sanitizers catch what they should is shown by planted faults in tests/cuda_emulator.
"""

from __future__ import annotations

import os

import pytest
from helpers import native_build
from helpers.sanitizer_cases import run_cases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lane("emulator"),
    pytest.mark.skipif(
        native_build.missing_compiler() is not None, reason=str(native_build.missing_compiler())
    ),
]


def runtime(name: str) -> str | None:
    """Path of a sanitizer's shared runtime, if the compiler has one."""
    path = native_build.run([os.environ.get("CXX", "g++"), f"-print-file-name={name}"]).strip()
    return path if os.path.isabs(path) else None


def test_address_and_undefined():
    libraries = [runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    if None in libraries:
        pytest.skip("the compiler has no sanitizer runtimes (install libasan and libubsan)")
    module = native_build.emulated_module("emulated-asan", "-DSUBLIMATE_SANITIZE=address,undefined")
    agreed = run_cases(
        module,
        # The interpreter itself is not instrumented: the runtimes come first, and what Python
        # keeps until its end is no leak of ours.
        LD_PRELOAD=":".join(str(path) for path in libraries),
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert agreed > 460
