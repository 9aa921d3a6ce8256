"""Planted faults are caught, and their correct twins pass."""

from __future__ import annotations

import os
import re
import subprocess
from types import ModuleType

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.orders import ORDERS, VARIABLE, order, outcomes

# Faults that leave launch() as an exception in the plain build: name -> what the message says.
THROWN = {
    "divergence_exit": r"barrier divergence: .*exited.*__syncthreads at .*faults\.cu:\d+",
    "divergence_sites": r"barrier divergence: .*__syncthreads at .*, thread .* in __syncthreads at",
    "absent_lane": r"__shfl_down_sync\(mask 0xffffffff\).*names lane \d+, which .*exited",
    "mask_without_self": r"__ballot_sync\(mask 0x7fffffff\).*does not name the calling lane 31",
    "warp_against_block": r"deadlock in block .*__any_sync\(mask 0xffffffff\).*__syncthreads",
    "bad_width": r"__shfl_xor_sync .*width 6 is no power of two",
    "grid_sync": r"grid_group::sync .*needs launch_cooperative",
    "block_leaves_grid": r"1 blocks ended while others wait in grid_group::sync",
    "spin": r"no progress: thread \(0,0,0\)",
    "shared_overrun": r"wrote past the end of its dynamic shared memory",
    "trap": r"thread \(7,0,0\) of block \(0,0,0\) called __trap",
}
# Data races: the detector's words. They need the build with -fsanitize=thread.
RACES = {
    "missing_barrier": r"data race on shared variable .*missing_barrier.*::s, byte",
    "missing_syncwarp": r"data race on dynamic shared memory, byte",
    "overlapping_blocks": r"data race on global address",
    "missing_fence": r"data race on global address",
}
# Memory errors: the sanitizers' words. They need the build with address and undefined.
MEMORY = {
    "global_overrun": r"heap-buffer-overflow",
    "shared_overrun": r"heap-buffer-overflow",
    "static_overrun": r"index 256 out of bounds for type 'int \[256\]'",
    "misaligned": r"misaligned address",
}


def attempt(emulated: ModuleType, name: str, fixed: bool) -> np.ndarray:
    x = np.arange(256, dtype=np.int32) * 3 + 1
    out = np.zeros(256, np.int32)
    assert emulated.fault(name, fixed, x.ctypes.data, out.ctypes.data) == 0
    return out


@pytest.mark.parametrize("under", ORDERS)
@pytest.mark.parametrize("name", THROWN)
def test_fault_reaches_python(emulated: ModuleType, name: str, under: str) -> None:
    with order(under):
        with pytest.raises(RuntimeError, match=THROWN[name] if under == "forward" else None) as e:
            attempt(emulated, name, False)
        # Whatever the order, the message names the kernel and the line that launched it.
        assert f"::{name}(bool, int const*, int*) launched at " in str(e.value)
        assert "faults.cu:" in str(e.value)
        attempt(emulated, name, True)  # the twin passes, and the emulator has recovered


@pytest.mark.parametrize("name", [*THROWN, *RACES, "uninitialised_shared"])
def test_correct_twin_gives_one_result(emulated: ModuleType, name: str) -> None:
    results = outcomes(lambda: attempt(emulated, name, True).tobytes())
    assert len(set(results.values())) == 1


def test_orders_disagree_without_barrier(emulated: ModuleType) -> None:
    results = outcomes(lambda: attempt(emulated, "missing_barrier", False).tobytes())
    assert len(set(results.values())) > 1
    x = np.arange(256, dtype=np.int32) * 3 + 1
    np.testing.assert_array_equal(attempt(emulated, "missing_barrier", True), np.roll(x, -1))


def test_shared_memory_starts_poisoned(emulated: ModuleType) -> None:
    """The second block finds nothing of the first in static (odd) or dynamic (even) memory."""
    assert (attempt(emulated, "uninitialised_shared", False) == 0x7FFF7FFF).all()


def run(kind: str, *arguments: str, under: str = "forward") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, VARIABLE: under}
    return subprocess.run(
        [str(build.program(kind)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


@pytest.mark.parametrize("under", ORDERS)
@pytest.mark.parametrize("kind", ("asan", "race", "ucontext"))
def test_correct_kernels_pass_instrumented(kind: str, under: str) -> None:
    done = run(kind, "all", under=under)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all passed\n", "")


def test_stack_use_after_return_detection_follows_the_fibers() -> None:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1"}
    program = str(build.program("asan"))
    done = subprocess.run(
        [program, "all"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "all passed\n", "")


@pytest.mark.parametrize("name", MEMORY)
def test_sanitizers_catch_memory_errors(name: str) -> None:
    assert_caught(run("asan", "fault", name, "0"), MEMORY[name], aborts=True)
    assert run("asan", "fault", name, "1").returncode == 0


@pytest.mark.parametrize("under", ORDERS)
@pytest.mark.parametrize("name", RACES)
def test_detector_catches_races(name: str, under: str) -> None:
    assert_caught(run("race", "fault", name, "0", under=under), RACES[name], aborts=False)
    twin = run("race", "fault", name, "1", under=under)
    assert twin.returncode == 0, twin.stdout


@pytest.mark.parametrize("name", THROWN)
def test_faults_are_clean_under_sanitizers(name: str) -> None:
    """Abandoned fibers leave nothing behind that a sanitizer objects to."""
    if name not in MEMORY:
        assert_caught(run("asan", "fault", name, "0"), THROWN[name], aborts=False)
    twin = run("asan", "fault", name, "1")
    assert (twin.returncode, twin.stderr) == (0, "")


def assert_caught(done: subprocess.CompletedProcess[str], pattern: str, *, aborts: bool) -> None:
    text = done.stderr if aborts else done.stdout
    assert re.search(pattern, text, re.DOTALL), done.stdout + done.stderr
    assert done.returncode != 0 if aborts else done.returncode == 2
