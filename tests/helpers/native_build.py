"""CMake builds that tests share: done once, kept in build/tests, safe among parallel workers."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "tests"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class BuildFailed(RuntimeError):
    """A command ended badly; the message has the end of what it printed, ``output`` all."""

    def __init__(self, command: list[str], code: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}\nended with {code}:\n{output[-6000:]}")
        self.output = output


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Folder build/tests/<name>, for this process alone."""
    folder = KEPT / f"{name}-{sysconfig.get_config_var('SOABI')}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def run(command: list[str], **options: object) -> str:
    """Output (both streams) of a command that must succeed."""
    done = subprocess.run(  # type: ignore[call-overload]
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        raise BuildFailed(command, done.returncode, done.stdout)
    return done.stdout


@functools.cache
def tool(name: str) -> str | None:
    """Path of cmake or ninja: beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def missing_compiler() -> str | None:
    """Why nothing can be compiled here, or None."""
    if shutil.which(os.environ.get("CXX") or "g++") is None and shutil.which("c++") is None:
        return "no C++ compiler on PATH (install g++)"
    return None if tool("cmake") else "no cmake (pip install cmake ninja)"


#: Mark of tests that compile.
needs_compiler = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


def nvcc() -> str | None:
    """Path of the CUDA compiler, if there is one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    known = (os.environ.get("CUDACXX"), shutil.which("nvcc"), os.path.join(home, "bin", "nvcc"))
    return next((path for path in known if path and os.access(path, os.X_OK)), None)


def configure(folder: Path, *options: str) -> None:
    """Configures the project in ``folder``; options are -D definitions."""
    import pybind11

    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None, "missing_compiler() says so first"
    command = [cmake, f"-S{ROOT}", f"-B{folder}", f"-DSUBLIMATE_MODULE_SUFFIX={SUFFIX}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", "-DSUBLIMATE_WERROR=ON"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options]
    if ninja:
        command += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    try:
        run(command)
    except BuildFailed:
        if not (folder / "CMakeCache.txt").exists():
            raise
        shutil.rmtree(folder)  # kept from another toolchain: once more from nothing
        run(command)


def build(folder: Path, target: str, *, clean: bool = False) -> str:
    """Builds a target of a configured folder with two jobs; the output of both streams."""
    cmake = tool("cmake")
    assert cmake is not None
    command = [cmake, "--build", str(folder), "-j", "2", "--target", target]
    return run([*command, "--clean-first"] if clean else command)


def emulated_module(name: str = "emulated", *options: str) -> Path:
    """The CUDA sources as a host module; ``options`` as in -DSUBLIMATE_SANITIZE=address.

    Each set of options needs a ``name`` of its own.
    """
    with locked(name) as folder:
        configure(folder, "-DSUBLIMATE_TESTING=ON", *options)
        build(folder, "_C_cuda_emulated")
        return folder / f"_C_cuda_emulated{SUFFIX}"
