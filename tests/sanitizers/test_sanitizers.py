"""Every CUDA kernel, emulated, once under AddressSanitizer and UndefinedBehaviorSanitizer and once
under the emulator's data race detector, on small cases against the reference (cases.py).

That the detectors catch what they should is shown by planted faults in tests/cuda_emulator.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import native_build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lane("emulator"),
    pytest.mark.skipif(
        native_build.missing_compiler() is not None, reason=str(native_build.missing_compiler())
    ),
]
CASES = Path(__file__).with_name("cases.py")


def run_cases(module: Path, *arguments: str, **variables: str) -> int:
    """Number of cases that agreed; fails with what the sanitizer said."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables}
    done = subprocess.run(
        [sys.executable, str(CASES), "--emulated", str(module), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    agreed = re.search(r"^(\d+) cases agree$", done.stdout, re.MULTILINE)
    assert agreed, done.stdout
    return int(agreed[1])


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


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_races(order):
    module = native_build.emulated_module("emulated-race", "-DSUBLIMATE_RACECHECK=ON")
    stride = () if order == "forward" else ("--stride", "3")
    agreed = run_cases(module, *stride, SUBLIMATE_EMULATOR_ORDER=order)
    assert agreed > 150
