"""The CPU kernels under ThreadSanitizer: their threads, and several callers at once.

Minutes to build, so it runs with ``make threads`` and not with the suite (it skips where the
module was not built). libgomp is replaced by plain threads (openmp_threads.cpp), because
ThreadSanitizer does not see libgomp's synchronisation; nothing is suppressed. Planted races show
that those inside a region and between callers are seen, and that a region by itself is not one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import native_build
from helpers.kernel_calls import KERNELS
from helpers.processes import environment
from helpers.sanitizers import runtimes

CASES = Path(__file__).with_name("thread_cases.py")
NAME = "tsan"
OPTIONS = ("-DSUBLIMATE_SANITIZE=thread", "-DSUBLIMATE_MULTIVERSION=OFF", "-DSUBLIMATE_WERROR=OFF")
#: Sequential by nature, or called with too little for a second thread.
ALONE = {"graph", "contraction"}


@pytest.fixture(scope="module")
def folder():
    missing = native_build.missing_compiler()
    if missing:
        pytest.skip(missing)
    if not os.environ.get("SUBLIMATE_TEST_THREADS"):
        pytest.skip("takes minutes to build; run `make threads`")
    with native_build.locked(NAME) as found:
        native_build.configure(found, *OPTIONS)
        for target in ("_C", "_planted_races"):
            native_build.build(found, target)
        return found


def run(folder, *arguments):
    preload = runtimes("libtsan.so")
    if preload is None:
        pytest.skip("the compiler has no ThreadSanitizer runtime (install libtsan)")
    env = environment(
        LD_PRELOAD=preload,
        # Of Python and torch only what synchronises counts: they are not instrumented.
        TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66",
    )
    command = [sys.executable, str(CASES), str(folder), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=560)


@pytest.mark.parametrize("race", ["in_region", "between_calls"])
def test_planted_races_are_reported(folder, race):
    done = run(folder, "--planted", race)
    assert done.returncode == 66, done.stderr[-3000:]
    assert re.search(r"SUMMARY: ThreadSanitizer: data race .*planted_races.cpp", done.stderr)


def test_a_region_alone_is_no_race(folder):
    done = run(folder, "--planted", "none")
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]


def test_kernels(folder):
    done = run(folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-6000:]
    told = re.search(
        r"^(\d+) kernels, (\d+) parallel regions; without one: (.*)$", done.stdout, re.M
    )
    assert told and int(told[1]) == len(KERNELS), done.stdout
    assert set(re.findall(r"'([^']+)'", told[3])) <= ALONE, told[3]
