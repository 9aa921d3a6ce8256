"""Correct kernels on the emulator: every capability against numpy, under every thread order."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.orders import ORDERS, VARIABLE, order, outcomes

SIZES = (0, 1, 31, 255, 256, 257, 5003, 65536)
SHARED_OPTIN = 227 * 1024


def ptr(x: np.ndarray[Any, Any]) -> int:
    assert x.flags.c_contiguous
    return int(x.ctypes.data)


@pytest.fixture(params=ORDERS)
def any_order(request: pytest.FixtureRequest) -> Any:
    with order(request.param):
        yield request.param


@pytest.mark.parametrize("n", SIZES)
def test_block_sum(emulated: ModuleType, any_order: str, n: int) -> None:
    x = np.random.default_rng(n).integers(-50, 50, n).astype(np.float32)  # sums are exact
    out = np.full(-(-n // 256), np.nan, np.float32)
    assert emulated.block_sum(ptr(x), n, ptr(out)) == 0
    expected = np.pad(x, (0, -n % 256)).reshape(-1, 256).sum(1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n", SIZES)
def test_ballot_packer(emulated: ModuleType, any_order: str, n: int) -> None:
    x = np.random.default_rng(n).integers(-2, 3, n).astype(np.int32)
    words = np.full(-(-n // 32), 0xDEADBEEF, np.uint32)
    assert emulated.ballot_pack(ptr(x), n, ptr(words)) == 0
    bits = np.pad(x > 0, (0, -n % 32))
    np.testing.assert_array_equal(words, np.packbits(bits, bitorder="little").view(np.uint32))


@pytest.mark.parametrize("n", SIZES)
def test_shuffle_scan(emulated: ModuleType, any_order: str, n: int) -> None:
    x = np.random.default_rng(n).integers(-100, 100, n).astype(np.int32)
    out = np.zeros(n, np.int32)
    assert emulated.block_scan(ptr(x), n, ptr(out)) == 0
    expected = np.pad(x, (0, -n % 256)).reshape(-1, 256).cumsum(1).reshape(-1)[:n]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("bins", (1, 97, 20000))  # the last needs more than 48 KiB
def test_histogram(emulated: ModuleType, any_order: str, bins: int) -> None:
    x = np.random.default_rng(bins).integers(0, bins, 7001).astype(np.int32)
    out = np.zeros(bins, np.int32)
    assert emulated.histogram(ptr(x), x.size, bins, ptr(out)) == 0
    np.testing.assert_array_equal(out, np.bincount(x, minlength=bins))


def test_float_atomics(emulated: ModuleType, any_order: str) -> None:
    x = np.random.default_rng(0).integers(-400, 400, 1000).astype(np.float32)
    out = np.zeros(4, np.float32)
    assert emulated.float_atomics(ptr(x), x.size, ptr(out)) == 0
    np.testing.assert_array_equal(out, [x.sum(), x.max(), 1, 1])


@pytest.mark.parametrize("n", (1, 4000, 65536))
def test_cooperative_grid_sum(emulated: ModuleType, any_order: str, n: int) -> None:
    x = np.random.default_rng(n).integers(-50, 50, n).astype(np.float32)
    partial, out, blocks = np.zeros(64), np.full(1, np.nan), np.zeros(1, np.int32)
    assert emulated.grid_sum(ptr(x), n, ptr(partial), ptr(out), ptr(blocks)) == 0
    assert blocks[0] == min(-(-n // 256), 32)  # 4 multiprocessors of 2048 threads
    assert out[0] == x.sum(dtype=np.float64)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_static_and_dynamic_shared(emulated: ModuleType, any_order: str, dtype: type) -> None:
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(dtype)
    out = np.full_like(x, np.nan)
    run = emulated.reverse_rows_float if dtype is np.float32 else emulated.reverse_rows_double
    assert run(ptr(x), 5, ptr(out)) == 0
    np.testing.assert_array_equal(out, x[:, ::-1])


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((3, 1, 1), (8, 4, 1)),
        ((2, 3, 5), (4, 3, 2)),
        ((1, 2, 2), (16, 8, 8)),
    ],
)
def test_three_dimensions(
    emulated: ModuleType, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> None:
    out = np.full(int(np.prod(grid) * np.prod(block)), -1, np.int32)
    sizes = np.array(grid, np.int32), np.array(block, np.int32)
    assert emulated.ranks(ptr(out), ptr(sizes[0]), ptr(sizes[1])) == 0
    # Axes (bz, by, bx, tz, ty, tx) to (bz, tz, by, ty, bx, tx).
    rank = np.arange(out.size).reshape(*grid[::-1], *block[::-1]).transpose(0, 3, 1, 4, 2, 5)
    np.testing.assert_array_equal(out, rank.reshape(-1))


def test_collectives(emulated: ModuleType, any_order: str) -> None:
    """One warp of values v: row by row what collectives_kernel in kernels/basics.cu puts."""
    v = np.random.default_rng(5).integers(-500, 500, 32).astype(np.int32)
    out = np.zeros((emulated.collective_rows, 32), np.int64)
    assert emulated.collectives(ptr(v), ptr(out)) == 0
    lane = np.arange(32)
    segment, place = lane & ~7, lane & 7
    u = v.view(np.uint32).astype(np.int64)
    wide = v.astype(np.int64)
    words = [int(x) for x in u]
    same_low = np.array([sum(1 << int(m) for m in lane if v[m] & 3 == v[k] & 3) for k in lane])
    expected = {
        "shfl8": wide[segment + (place + 3) % 8],
        "up8": wide[np.where(place >= 3, lane - 3, lane)],
        "down8": wide[np.where(place < 5, lane + 3, lane)],
        "xor8": wide[lane ^ 5],
        # Lane 16 onwards reads the earlier half; the earlier half may not read the later one.
        "xor_far": wide[np.where(lane >= 16, lane - 16, lane)],
        "shfl_double": (wide[::-1] * 2.0**40).view(np.int64),
        "shfl_long": np.full(32, wide[7] * 2**33),
        "any": np.full(32, 0),
        "all": np.full(32, 1),
        "match_any": same_low,
        "match_all": np.full(32, 0xFFFFFFFF),
        "same": np.full(32, 1),
        "reduce_half": np.where(lane < 16, wide[:16].sum(), wide[16:].min()),
        "max_int": np.full(32, wide.max()),
        "max_uint": np.full(32, u.max()),
        "and": np.full(32, np.bitwise_and.reduce(u)),
        "or": np.full(32, np.bitwise_or.reduce(u)),
        "xor": np.full(32, np.bitwise_xor.reduce(u)),
        "count": np.full(32, (v > 0).sum()),
        "syncthreads_and": np.full(32, 1),
        "syncthreads_or": np.full(32, 0),
        # popc + 100 clz + 10000 ffs
        "bits": [
            x.bit_count() + 100 * (32 - x.bit_length()) + 10000 * (x & -x).bit_length()
            for x in words
        ],
        "brev": [int(f"{x:032b}"[::-1], 2) for x in words],
        "umulhi": [x * 0x9E3779B9 >> 32 for x in words],
    }
    assert len(expected) == len(out)
    for got, (name, row) in zip(out, expected.items(), strict=True):
        np.testing.assert_array_equal(got, row, err_msg=name)


def test_every_thread_runs_once(emulated: ModuleType, any_order: str) -> None:
    out = np.full(100_003, -1, np.int32)
    assert emulated.fill(ptr(out), out.size) == 0
    np.testing.assert_array_equal(out, np.arange(out.size))


def test_launches_from_two_host_threads(emulated: ModuleType) -> None:
    def one(seed: int) -> bool:
        x = np.random.default_rng(seed).integers(-50, 50, 4096).astype(np.float32)
        out = np.zeros(16, np.float32)
        good = emulated.block_sum(ptr(x), x.size, ptr(out)) == 0
        return good and bool((out == x.reshape(16, 256).sum(1)).all())

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(one, range(40)))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "grant", "cooperative", "error"),
    [
        ((1, 1, 1), (1024, 1, 1), 0, 0, False, None),
        ((1, 1, 1), (1025, 1, 1), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), (32, 32, 2), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), (1, 1, 64), 0, 0, False, None),
        ((1, 1, 1), (1, 1, 65), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), (0, 1, 1), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((1, 65535, 1), (1, 1, 1), 0, 0, False, None),
        ((1, 65536, 1), (1, 1, 1), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((1, 1, 65536), (1, 1, 1), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((2**31, 1, 1), (1, 1, 1), 0, 0, False, "cudaErrorInvalidConfiguration"),
        ((0, 1, 1), (1, 1, 1), 0, 0, False, None),  # empty grids are no launch at all
        ((1, 1, 1), (1, 1, 1), SHARED_OPTIN, SHARED_OPTIN + 1, False, "cudaErrorInvalidValue"),
        ((32, 1, 1), (256, 1, 1), 0, 0, True, None),
        ((33, 1, 1), (256, 1, 1), 0, 0, True, "cudaErrorCooperativeLaunchTooLarge"),
    ],
)
def test_configuration(
    emulated: ModuleType,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    grant: int,
    cooperative: bool,
    error: str | None,
) -> None:
    sizes = np.array(grid), np.array(block)
    status = emulated.configured(ptr(sizes[0]), ptr(sizes[1]), shared, grant, cooperative)
    if error is None:
        assert status == 0
    else:
        assert emulated.status_text(status).startswith(error)


def test_large_shared_memory_must_be_granted() -> None:
    """In a process of its own: a grant lasts as long as the process."""
    script = """
import sys, numpy as np
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("emulator_kernels", sys.argv[1])
m = module_from_spec(spec)
spec.loader.exec_module(m)
one = np.ones(3, np.int64)
run = lambda shared, grant: m.configured(one.ctypes.data, one.ctypes.data, shared, grant, False)
print(run(48 << 10, 0), run((48 << 10) + 1, 0), run(100 << 10, 99 << 10), run(100 << 10, 100 << 10),
      run(227 << 10, 227 << 10))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(build.module())],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "1", "1", "0", "0"]  # 1 is cudaErrorInvalidValue


def test_grid_for(emulated: ModuleType) -> None:
    grid_for, top = emulated.grid_for, 2**31 - 1
    assert [grid_for(n, 256, top) for n in (-1, 0, 1, 256, 257)] == [0, 0, 1, 1, 2]
    assert grid_for(2**62, 256, top) == top
    assert grid_for(1000, 10, 7) == 7
    assert grid_for(1000, 10, 0) == 1
    assert emulated.ceil_div(2**63 - 1, 2) == 2**62


def test_status_text(emulated: ModuleType) -> None:
    assert emulated.status_text(0) == "success"
    assert (
        emulated.status_text(9) == "cudaErrorInvalidConfiguration: invalid configuration argument"
    )
    assert len({emulated.status_text(code) for code in (-1, -2, -3, -4)}) == 4
    assert emulated.status_text(-99) == "unknown status -99"


def test_unknown_order_is_refused(emulated: ModuleType) -> None:
    out = np.zeros(1, np.int32)
    for wrong in ("sideways", "random:", "random:x"):
        with order(wrong), pytest.raises(RuntimeError, match=VARIABLE):
            emulated.fill(ptr(out), 1)
    assert emulated.fill(ptr(out), 1) == 0


def test_orders_agree_on_a_correct_kernel(emulated: ModuleType) -> None:
    x = np.random.default_rng(1).standard_normal(3000).astype(np.float32)

    def run() -> bytes:
        out = np.zeros(12, np.float32)
        assert emulated.block_sum(ptr(x), x.size, ptr(out)) == 0
        return out.tobytes()

    assert len(set(outcomes(run).values())) == 1


@pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="needs nvcc on PATH: the kernels must be CUDA as well"
)
@pytest.mark.parametrize("source", ("basics.cu", "faults.cu"))
def test_kernels_and_launch_header_compile_with_nvcc(source: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", "-arch=sm_90", f"-I{build.CSRC}", "-Xcompiler=-Wall,-Wextra"]
    command += ["-c", str(build.HERE / "kernels" / source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
