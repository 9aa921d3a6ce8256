"""Build driver: Python packaging here, compilation in CMakeLists.txt.

Switches (environment):
  SUBLIMATE_BUILD_CUDA=auto|0|1   auto (default) builds the CUDA module when nvcc is found and goes
                                  on without it if that build fails; 1 makes a failure fatal.
  SUBLIMATE_CUDA_ARCHS=80;90;100  real architectures; PTX of the last one is added.
  SUBLIMATE_SKIP_NATIVE=1         no compiled part at all: reference and Triton backends only.
  SUBLIMATE_BUILD_DIR=folder      keep CMake's folder here, so that a second build (an editable one,
                                  say) compiles only what changed.
  SUBLIMATE_BUILD_TYPE=Debug      CMake's build type; default Release.
  SUBLIMATE_MULTIVERSION=0        CPU kernels for the baseline instruction set only: a third of the
                                  compiling, and slower kernels.
  CMAKE_BUILD_PARALLEL_LEVEL=n    compile n files at a time; default: all cores.

Neither torch nor a GPU is needed to build, and neither is looked for.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
SKIP_NATIVE = os.environ.get("SUBLIMATE_SKIP_NATIVE", "0") not in ("", "0")
BUILD_CUDA = os.environ.get("SUBLIMATE_BUILD_CUDA", "auto").lower()
BUILD_TYPE = os.environ.get("SUBLIMATE_BUILD_TYPE") or "Release"
MULTIVERSION = os.environ.get("SUBLIMATE_MULTIVERSION", "1") != "0"
if BUILD_CUDA not in ("auto", "0", "1"):
    sys.exit(f"SUBLIMATE_BUILD_CUDA must be auto, 0 or 1, got {BUILD_CUDA!r}")


def find_nvcc() -> str | None:
    """Path of nvcc, by CUDACXX, PATH or CUDA_HOME; nothing is asked about devices."""
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    candidates.append(os.path.join(home, "bin", "nvcc"))
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def tool(name: str, folder: str) -> str | None:
    """cmake or ninja: the one installed as a Python package where it is, else the one on PATH."""
    try:
        found = Path(getattr(importlib.import_module(name), folder), name)
    except (ImportError, AttributeError):
        return shutil.which(name)
    return str(found) if os.access(found, os.X_OK) else shutil.which(name)


class FreshBuild(build_py):
    """Begins from an empty folder: a wheel is packed from all of it, so whatever an earlier build
    left in build/lib (a deleted file, a CUDA module that is not wanted now) would be installed."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "sublimate", ignore_errors=True)
        super().run()


class CMakeExtension(Extension):
    def __init__(self, name: str, target: str) -> None:
        super().__init__(name, sources=[], optional=False)
        self.target = target


class CMakeBuild(build_ext):
    """Configures once per module and installs what CMake built where setuptools expects it."""

    def build_extensions(self) -> None:
        for ext in list(self.extensions):  # an optional module that fails is taken off the list
            assert isinstance(ext, CMakeExtension)
            try:
                self.build_extension(ext)
            except (subprocess.CalledProcessError, OSError) as error:
                if ext.target != "_C_cuda" or BUILD_CUDA != "auto":
                    raise
                self.warn(
                    f"the CUDA module was not built ({error}); going on without it. "
                    "SUBLIMATE_BUILD_CUDA=1 makes this an error, =0 does not try"
                )
                self.extensions.remove(ext)
                # What an earlier build left is of other sources than those installed now.
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)

    def build_extension(self, ext: CMakeExtension) -> None:
        destination = Path(self.get_ext_fullpath(ext.name)).resolve()
        kept = os.environ.get("SUBLIMATE_BUILD_DIR")
        if kept:  # one folder per module and Python
            build_dir = Path(kept).resolve() / sysconfig.get_config_var("SOABI") / ext.target
        else:
            build_dir = Path(self.build_temp).resolve() / ext.target
        self._cmake(ext.target, build_dir)
        destination.parent.mkdir(parents=True, exist_ok=True)
        # A process may have the old file mapped: replaced, not overwritten.
        new = destination.with_suffix(".new")
        shutil.copy2(build_dir / destination.name, new)
        new.replace(destination)

    def _cmake(self, target: str, build_dir: Path) -> None:
        import pybind11

        cmake, ninja = tool("cmake", "CMAKE_BIN_DIR"), tool("ninja", "BIN_DIR")
        if cmake is None:
            raise FileNotFoundError("cmake was not found; pip install cmake ninja")
        suffix = Path(self.get_ext_filename("x")).name[1:]
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build_dir}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSUBLIMATE_MODULE_SUFFIX={suffix}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else BUILD_TYPE}",
            f"-DSUBLIMATE_MULTIVERSION={'ON' if MULTIVERSION else 'OFF'}",
            f"-DSUBLIMATE_CUDA={'ON' if target == '_C_cuda' else 'OFF'}",
        ]
        if ninja:
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if target == "_C_cuda":
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
            archs = os.environ.get("SUBLIMATE_CUDA_ARCHS")
            if archs:
                configure.append(f"-DSUBLIMATE_CUDA_ARCHS={archs}")
        fresh = not (build_dir / "CMakeCache.txt").exists()
        try:
            subprocess.run(configure, check=True)
        except subprocess.CalledProcessError:
            if fresh:
                raise
            # A kept folder of another checkout, generator or toolchain: begin again.
            shutil.rmtree(build_dir)
            subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run(
            [cmake, "--build", str(build_dir), "--target", target, "-j", jobs], check=True
        )


def extensions() -> list[Extension]:
    if SKIP_NATIVE:
        return []
    found: list[Extension] = [CMakeExtension("sublimate._C", "_C")]
    nvcc = find_nvcc()
    if BUILD_CUDA == "1" and nvcc is None:
        sys.exit("SUBLIMATE_BUILD_CUDA=1 but no nvcc was found (CUDACXX, PATH, CUDA_HOME)")
    if BUILD_CUDA != "0" and nvcc is not None:
        found.append(CMakeExtension("sublimate._C_cuda", "_C_cuda"))
    return found


def packages() -> tuple[list[str], dict[str, str]]:
    """All of python/, with python/sublimate/kernels -> ../../kernels as a link.

    Where a checkout lost the link (no symlink support), map the folder explicitly: enough for a
    wheel; an editable install needs the link.
    """
    names = find_namespace_packages("python", include=["sublimate*"])
    package_dir = {"": "python"}
    if not (ROOT / "python" / "sublimate" / "kernels").is_dir():
        print(
            "warning: python/sublimate/kernels is not a link to kernels/; mapping it",
            file=sys.stderr,
        )
        package_dir["sublimate.kernels"] = "kernels"
        names += ["sublimate.kernels"]
        names += [f"sublimate.kernels.{n}" for n in find_namespace_packages("kernels")]
    names = [n for n in names if "__pycache__" not in n]
    return names, package_dir


found_packages, found_package_dir = packages()
setup(
    packages=found_packages,
    package_dir=found_package_dir,
    package_data={"sublimate": ["py.typed", "*.pyi", "**/*.json", "**/*.md", "**/*.html.j2"]},
    ext_modules=extensions(),
    cmdclass={"build_py": FreshBuild, "build_ext": CMakeBuild},
    zip_safe=False,
)
