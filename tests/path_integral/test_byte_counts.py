"""Bytes that the CPU kernels move, counted at every load and store, against the floors.

The floor of a kernel is each number of the chunk once and what belongs to samples once; expected
gradients read a reference for each point besides. Allowed is a quarter more. ``byte_counts.cpp``
says how it is counted; the cache is smaller than what any processor core of today has to itself.
"""

from __future__ import annotations

import concurrent.futures
import os
from pathlib import Path

import pytest
from helpers import native_build

HERE, ROOT = Path(__file__).parent, native_build.ROOT
CACHE = 256 * 1024
KERNELS = ROOT / "csrc" / "path_integral"
COMMON = ["-std=c++17", "-O2", f"-I{ROOT / 'csrc'}", "-Wno-psabi", "-fno-exceptions"]
#: As in CMakeLists.txt, and every load and store calls a function. Loops must not become calls of
#: memcpy, some of which the compiler then writes out again, unseen.
WATCHED = [
    "-DSUBLIMATE_ISA=base", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
    "-fsanitize=thread", "-fno-tree-loop-distribute-patterns",
]  # fmt: skip
WRAPPED = "-Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset"

pytestmark = native_build.needs_compiler


def _compiled(source: Path, folder: Path) -> str:
    found = str(folder / f"{source.stem}.o")
    options = WATCHED if source.parent == KERNELS else []
    native_build.run([_compiler(), *COMMON, *options, "-c", str(source), "-o", found])
    return found


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte_counts")
    sources = [KERNELS / "cpu.cpp", KERNELS / "cpu_mask.cpp", HERE / "byte_counts.cpp"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _compiled(source, folder), sources))
    native_build.run([_compiler(), *objects, "-fopenmp", WRAPPED, "-o", str(folder / "program")])
    return folder / "program"


def counted(program: Path, cache: int) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(kernel, dtype) -> bytes moved, the floor, and the chunk's own bytes."""
    found = {}
    for line in native_build.run([str(program), str(cache)]).splitlines():
        kernel, dtype, *numbers = line.split()
        moved, least, chunk = map(int, numbers)
        found[kernel, dtype] = moved, least, chunk
    return found


def test_within_a_quarter_of_the_floor(program: Path) -> None:
    found = counted(program, CACHE)
    assert len(found) == 4 * 14 + 2 * 3
    for case, (moved, least, chunk) in found.items():
        assert chunk <= moved, f"{case}: {moved} bytes counted, the chunk alone has {chunk}"
        # References are read from the cache where two points share one. A hundredth: the compiler
        # writes some copies of a few numbers out itself, unwatched.
        if not case[0].startswith("gathered"):
            assert 0.99 * least <= moved, f"{case}: {moved} bytes counted of at least {least}"
        assert moved <= 1.25 * least, f"{case}: {moved} bytes moved, {least} would do"


def test_a_cache_that_is_too_small_is_seen(program: Path) -> None:
    """What must be kept between points is read again for each: the count can fail."""
    found = counted(program, 4096)
    for kernel in ("points", "points_noise", "gathered_points", "difference", "mask_points"):
        moved, least, _ = found[kernel, "float32"]
        assert moved > 1.7 * least, kernel
    for kernel in ("sums", "moments"):  # these have nothing to keep but the sums, on the stack
        moved, least, _ = found[kernel, "float32"]
        assert moved <= 1.25 * least, kernel
