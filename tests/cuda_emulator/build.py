"""Compile the emulator's test kernels with the ordinary C++ compiler, once per content."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
CXX = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++17",
    "-x",
    "c++",
    "-DSUBLIMATE_CUDA_EMULATOR=1",
    f"-I{HERE}",
    f"-I{CSRC}",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]
#: name -> (compile flags, link flags). ``race`` links without the thread sanitizer on purpose: the
#: emulator has its own hooks, see racecheck.h.
SANITIZERS = {
    "plain": ([], []),
    "asan": (
        [
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
        ],
        ["-fsanitize=address,undefined"],
    ),
    "race": (["-fsanitize=thread"], []),
    "ucontext": (["-DSUBLIMATE_EMULATOR_UCONTEXT=1"], []),
}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _build(target: str, sources: list[str], compile_flags: list[str], link: list[str]) -> Path:
    """Objects in parallel, then one link. The folder's name is a hash of all that goes in."""
    digest = hashlib.sha256(repr((CXX, FLAGS, compile_flags, link, sys.version)).encode())
    for file in sorted([*HERE.glob("*.h"), *HERE.glob("kernels/*"), *CSRC.glob("common/*.h")]):
        digest.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"sublimate-emulator-{os.getuid()}"
    result = folder / digest.hexdigest()[:16] / target
    if result.exists():
        return result
    result.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
        objects = [str(Path(scratch) / f"{source}.o") for source in sources]
        commands = [
            [CXX, *FLAGS, *compile_flags, "-c", str(HERE / "kernels" / source), "-o", output]
            for source, output in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_run, commands))
        linked = Path(scratch) / target
        _run([CXX, *objects, *link, "-o", str(linked)])
        linked.rename(result)  # atomic: another process may build the same
    return result


def module() -> Path:
    """Path of the Python module ``emulator_kernels``, with the race detector off."""
    import pybind11

    flags = ["-fPIC", "-fvisibility=hidden", f"-I{pybind11.get_include()}"]
    flags.append(f"-I{sysconfig.get_paths()['include']}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sources = ["basics.cu", "faults.cu", "module.cu"]
    return _build(f"emulator_kernels{suffix}", sources, flags, ["-shared"])


def program(kind: str) -> Path:
    """Path of the test program built with one of ``SANITIZERS``."""
    compile_flags, link_flags = SANITIZERS[kind]
    return _build(f"main-{kind}", ["basics.cu", "faults.cu", "main.cu"], compile_flags, link_flags)
