"""The compiled CPU kernels, read from their objects: levels stay apart, hot loops are vectorised.

Sources whose loops are looked at are compiled here once per level by the very commands that CMake
gives (common/isa.h), with the compiler's vectorisation report switched on; of the others, the
objects of the installed build are read where it is up to date.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import native_build
from sublimate.fewbit import reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"),
        reason="instruction-set levels exist on x86-64 only",
    ),
    native_build.needs_compiler,
    pytest.mark.skipif(
        not (shutil.which("nm") and shutil.which("objdump")), reason="no nm (install binutils)"
    ),
]
#: Level -> bytes of its widest vector.
WIDTH = {"base": 16, "v3": 32, "v4": 64}


@dataclass(frozen=True)
class Object:
    level: str
    source: Path
    file: Path
    report: str  # -fopt-info-vec-optimized; empty where the object was there already


#: Sources whose vectorisation report is read, at v3 and v4.
REPORTED = (
    "fewbit/cpu",
    *(f"randomized_linear/{stem}" for stem in ("cpu", "cpu_dense", "cpu_srht")),
    *(f"path_integral/{stem}" for stem in ("cpu", "cpu_mask")),
)


def built_already() -> Path | None:
    """CMake's folder of the installed build (make keeps it), if that is an optimised one and its
    build tool finds nothing to do."""
    kept = os.environ.get("SUBLIMATE_BUILD_DIR") or native_build.ROOT / "build" / "native"
    folder = Path(kept) / str(native_build.SUFFIX).removeprefix(".").removesuffix(".so") / "_C"
    cache = folder / "CMakeCache.txt"
    if not cache.is_file() or "CMAKE_BUILD_TYPE:STRING=Release" not in cache.read_text():
        return None
    dry_run = [
        str(native_build.tool("cmake")),
        "--build",
        str(folder),
        "--target",
        "_C",
        "--",
        "-n",
    ]
    done = subprocess.run(dry_run, capture_output=True, text=True, check=False)
    return folder if "no work to do" in done.stdout else None


def compile_one(entry: dict[str, str], folder: Path, built: Path | None) -> Object:
    match = re.search(r"kernels_(base|v3|v4)\.dir", entry["command"])
    assert match is not None
    source = Path(entry["file"])
    name = str(source.relative_to(native_build.ROOT / "csrc").with_suffix(""))
    command = shlex.split(entry["command"])
    target = command.index("-o") + 1
    if built and (match[1] == "base" or name not in REPORTED):
        return Object(match[1], source, built / command[target], "")
    stem = folder / f"{match[1]}-{source.parent.name}-{source.stem}"
    command[target] = f"{stem}.o"
    report = Path(f"{stem}.txt")
    report.touch()
    native_build.run([*command, f"-fopt-info-vec-optimized={report}"], cwd=entry["directory"])
    return Object(match[1], source, Path(f"{stem}.o"), report.read_text())


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    folder = tmp_path_factory.mktemp("levels")
    native_build.configure(folder / "cmake")
    entries = json.loads((folder / "cmake" / "compile_commands.json").read_text())
    entries = [e for e in entries if "kernels_" in e["command"]]
    built = built_already()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda e: compile_one(e, folder, built), entries))
    sources = {o.source for o in found}
    assert native_build.ROOT / "csrc" / "fewbit" / "cpu.cpp" in sources
    assert {(o.level, o.source) for o in found} == {(lv, s) for lv in WIDTH for s in sources}
    return found


def weak_symbols(file: Path) -> list[str]:
    """Symbols that a linker may merge with another level's: weak, unique or common."""
    listed = native_build.run(["nm", "-C", "--defined-only", str(file)])
    return [line for line in listed.splitlines() if re.search(r"^\S+ [WwVvuC] ", line)]


def registers(file: Path) -> set[str]:
    """Which of xmm, ymm and zmm the code touches."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(file)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(re.findall(r"%([xyz]mm)\d", listing))


def test_no_weak_symbols(objects):
    for o in objects:
        assert weak_symbols(o.file) == [], f"{o.source} at {o.level}"


def test_weak_symbols_are_noticed(tmp_path):
    source = tmp_path / "weak.cpp"
    source.write_text("inline int shared(int x) { return x; }\nint (*use)(int) = shared;\n")
    native_build.run(["g++", "-c", str(source), "-o", str(tmp_path / "weak.o")])
    assert "shared(int)" in weak_symbols(tmp_path / "weak.o")[0]


def test_only_entry_points_are_global(objects):
    """What a level exports lies in its own namespace."""
    for o in objects:
        listed = native_build.run(["nm", "-C", "--defined-only", "--extern-only", str(o.file)])
        names = [line.split(maxsplit=2)[2] for line in listed.splitlines()]
        assert names and all(f"::{o.level}::" in name for name in names), names


def test_each_level_uses_its_own_registers(objects):
    """No wide instruction in a level that a lesser processor runs; and each uses all it has."""
    for o in objects:
        found = registers(o.file)
        assert ("ymm" in found) == (o.level != "base"), f"{o.source} at {o.level}: {found}"
        assert ("zmm" in found) == (o.level == "v4"), f"{o.source} at {o.level}: {found}"


def loops(o: Object, text: str, file: Path | None = None) -> int:
    """Loops vectorised with the level's full width, of the first at or after a line with ``text``
    in the source (or in a header that it includes)."""
    file = file or o.source
    lines = file.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if text in line)
    line = next(i for i in range(start, len(lines)) if "for (" in lines[i]) + 1
    wanted = rf"{file.name}:{line}:\d+: optimized: loop vectorized using {WIDTH[o.level]} byte"
    return len(re.findall(wanted, o.report))


#: Level -> arithmetic types whose loops the compiler vectorises. With AVX-512, fp32 goes through
#: vectors written out (common/vec.h), and fp64 alone is left to the compiler.
TYPES = {"v3": 2, "v4": 1}


@pytest.mark.parametrize("level", TYPES)
def test_fewbit_loops_are_vectorised(objects, level):
    """Each function's loop over a block, in every such type, at the level's full width."""
    (o,) = (o for o in objects if o.level == level and o.source.parent.name == "fewbit")
    functions = reference.FUNCTIONS.values()
    exact = sum(f.predicate is not None for f in functions)
    smooth = len(functions) - exact
    assert smooth >= 14 and exact >= 8
    assert loops(o, "struct ValueBlock ") >= TYPES[level] * (smooth + exact)
    assert loops(o, "struct DerivativeBlock ") >= TYPES[level] * smooth
    assert loops(o, "struct ExactBlock ") >= TYPES[level] * exact


@pytest.mark.parametrize("level", ["v3", "v4"])
def test_sketch_loops_are_vectorised(objects, level):
    """Random words and what is made of them; sums of rows and products are vectors as written."""
    family = native_build.ROOT / "csrc" / "randomized_linear"
    found = {o.source.name: o for o in objects if o.level == level and o.source.parent == family}
    header = family / "cpu.h"
    picking, dense = found["cpu.cpp"], found["cpu_dense.cpp"]
    for o in (picking, found["cpu_srht.cpp"]):
        assert loops(o, "while (n > 0)", header) >= 1, "rounds of the permutation"
    assert loops(picking, "uint32_t words[4][INDEX_BLOCK]") >= 2, "words of the signs"
    assert loops(dense, "for (int i = 0; i < inner; ++i) {") >= 2, "words of the Gaussian sketch"
    assert loops(dense, "row[i] = A(normal_of") >= 1, "normal numbers"
    assert loops(dense, "A* row = panel + (j + bit) * INNER") >= 2, "signs of Rademacher's"


#: Sources that multiply register tiles (common/tile.h).
TILED = ("topk", "negative_sum", "clusters", "gaec")


def longest_run_in_registers(file: Path, width: str) -> int:
    """Most multiply-adds (or products) into different registers without the stack between them."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(file)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    best, targets = 0, set()
    for line in listing.splitlines():
        operation = line.partition("\t")[2]
        target = operation.rpartition("%")[2]
        if re.search(r"%[re]sp|\bcall|\bj\w+\s", operation):
            targets = set()
        elif re.match(r"(vfmadd\w+ps|mulps)", operation) and target.startswith(width):
            if operation.startswith("vfmadd") and target in targets:
                targets = set()
            targets.add(target)
            best = max(best, len(targets))
    return best


@pytest.mark.parametrize("level", ["v3", "v4"])
def test_tiles_stay_in_registers(objects, level):
    """The 12 accumulators of a tile are added to one after the other, none through memory."""
    width = {"v3": "ymm", "v4": "zmm"}[level]
    found = {o.source.stem: o for o in objects if o.level == level and o.source.stem in TILED}
    assert set(found) == set(TILED)
    for stem, o in found.items():
        assert longest_run_in_registers(o.file, width) >= 12, f"{stem} at {level}"


@pytest.mark.parametrize("level", ["v3", "v4"])
def test_path_loops_are_vectorised(objects, level):
    """Random words and normal numbers of the noise, and the rows of a mask's gradient; points and
    sums are vectors as written."""
    family = native_build.ROOT / "csrc" / "path_integral"
    found = {o.source.name: o for o in objects if o.level == level and o.source.parent == family}
    straight, mask = found["cpu.cpp"], found["cpu_mask.cpp"]
    for o in (straight, mask):
        for text, what in (
            ("float apart[4][GROUPS]", "words of the noise"),
            ("const uint32_t* word = words[w]", "places in the table"),
            ('asm volatile("")', "normal numbers"),
        ):
            assert loops(o, text, family / "cpu.h") >= 1, what
    assert loops(straight, "void subtract(") >= 2, "x - start"
    assert loops(mask, "const A* row = pixels + y") >= 2, "rows of pixels"
