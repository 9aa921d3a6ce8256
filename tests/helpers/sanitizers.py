"""Sanitizers' runtimes for processes that are not instrumented themselves, and what runs there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.native_build import ROOT
from helpers.native_build import run as output_of
from helpers.processes import environment

CASES = ROOT / "tests" / "sanitizers" / "cases.py"
#: AddressSanitizer and UndefinedBehaviorSanitizer, and what their reports call.
ADDRESS = ("libasan.so", "libubsan.so", "libstdc++.so")


def runtimes(*names: str) -> str | None:
    """LD_PRELOAD of a process that loads instrumented modules; None if the compiler lacks one."""
    compiler = os.environ.get("CXX", "g++")
    paths = [output_of([compiler, f"-print-file-name={name}"]).strip() for name in names]
    return ":".join(paths) if all(map(os.path.isabs, paths)) else None


#: Of the CPU module under them: the baseline instruction set, every line of the kernels.
NATIVE_OPTIONS = (
    "-DSUBLIMATE_SANITIZE=address,undefined", "-DSUBLIMATE_WERROR=OFF",
    "-DSUBLIMATE_MULTIVERSION=OFF",
)  # fmt: skip


def run_cases(module: Path, *arguments: str, kind: str = "--emulated", **variables: str) -> int:
    """Number of the small calls of cases.py that agreed in a process of their own; fails with what
    the sanitizer said. kind: what ``module`` is, "--emulated" or "--native"."""
    done = subprocess.run(
        [sys.executable, str(CASES), kind, str(module), *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    agreed = re.search(r"^(\d+) cases agree$", done.stdout, re.MULTILINE)
    assert agreed, done.stdout
    return int(agreed[1])


def run_address(module: Path, *arguments: str, kind: str = "--emulated") -> int | None:
    """``run_cases`` under AddressSanitizer and UndefinedBehaviorSanitizer; None without their
    runtimes."""
    preload = runtimes(*ADDRESS)
    if preload is None:
        return None
    return run_cases(
        module,
        *arguments,
        kind=kind,
        # The interpreter itself is not instrumented: the runtimes come first, and what Python
        # keeps until its end is no leak of ours.
        LD_PRELOAD=preload,
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
