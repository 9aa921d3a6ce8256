"""The CPU kernels of families that have no CUDA ones, under AddressSanitizer and
UndefinedBehaviorSanitizer, on small cases against float64 (cases.py).

Minutes to build, so it runs with ``make address`` and not with the suite. That the sanitizers see
these kernels is shown by a call with a table that says more than there is.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import native_build
from helpers.processes import environment
from helpers.sanitizers import ADDRESS, NATIVE_OPTIONS, run_address, runtimes

pytestmark = [pytest.mark.slow, native_build.needs_compiler]


@pytest.fixture(scope="module")
def module():
    if not os.environ.get("SUBLIMATE_TEST_ADDRESS"):
        pytest.skip("takes minutes to build; run `make address`")
    with native_build.locked("asan") as folder:
        native_build.configure(folder, *NATIVE_OPTIONS)
        native_build.build(folder, "_C")
        return folder / f"_C{native_build.SUFFIX}"


def test_address_and_undefined(module):
    agreed = run_address(module, kind="--native")
    if agreed is None:
        pytest.skip("the compiler has no sanitizer runtimes (install libasan and libubsan)")
    assert agreed > 130


PLANTED = """
import sys, torch
from sublimate import _native
from sublimate._native import kronecker_attention as N
_native.CPU = _native.Library("sublimate._C", "cpu", file=sys.argv[1])
q, k, v, out = (torch.zeros(1, 1, 300, 8) for _ in range(4))
short = torch.zeros(1, 1, 100, 8)
honest = N._operand
N._operand = lambda op, lib, argument, t, *rest: (
    (short.data_ptr(), *honest(op, lib, argument, t, *rest)[1:])
    if argument == "k2" else honest(op, lib, argument, t, *rest)
)
N.attention("cpu", q, k, k, v, v, None, None, out, torch.zeros(1, 1, 300), 1.0, False, [])
"""


def test_a_planted_fault_is_reported(module):
    preload = runtimes(*ADDRESS)
    if preload is None:
        pytest.skip("the compiler has no sanitizer runtimes (install libasan and libubsan)")
    env = environment(LD_PRELOAD=preload, ASAN_OPTIONS="detect_leaks=0")
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, os.fspath(module)],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "kronecker_attention" in done.stderr
