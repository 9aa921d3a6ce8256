"""Build driver: Python packaging here, compilation in CMakeLists.txt.

Switches (environment):
  SUBLIMATE_BUILD_CUDA=auto|0|1   auto (default) builds the CUDA module when nvcc is found and goes
                                  on without it if that build fails; 1 makes a failure fatal.
  SUBLIMATE_CUDA_ARCHS=80;90;100  real architectures; PTX of the last one is added.
  SUBLIMATE_SKIP_NATIVE=1         no compiled part at all: reference and Triton backends only.

Neither torch nor a GPU is needed to build, and neither is looked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SKIP_NATIVE = os.environ.get("SUBLIMATE_SKIP_NATIVE", "0") not in ("", "0")
BUILD_CUDA = os.environ.get("SUBLIMATE_BUILD_CUDA", "auto").lower()
if BUILD_CUDA not in ("auto", "0", "1"):
    sys.exit(f"SUBLIMATE_BUILD_CUDA must be auto, 0 or 1, got {BUILD_CUDA!r}")


def find_nvcc() -> str | None:
    """Path of nvcc, by CUDACXX, PATH or CUDA_HOME; nothing is asked about devices."""
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    candidates.append(os.path.join(home, "bin", "nvcc"))
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


class CMakeExtension(Extension):
    def __init__(self, name: str, target: str) -> None:
        super().__init__(name, sources=[], optional=False)
        self.target = target


class CMakeBuild(build_ext):
    """Configures once per module and installs what CMake built where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        assert isinstance(ext, CMakeExtension)
        destination = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve() / ext.target
        try:
            self._cmake(ext.target, build_dir)
        except (subprocess.CalledProcessError, OSError) as error:
            if ext.target == "_C_cuda" and BUILD_CUDA == "auto":
                self.warn(f"the CUDA module was not built ({error}); SUBLIMATE_BUILD_CUDA=1 insists")
                self.extensions.remove(ext)
                return
            raise
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_dir / destination.name, destination)

    def run(self) -> None:
        # `build_extension` may drop an optional module from the list while it is walked.
        self.extensions = list(self.extensions)
        super().run()

    def build_extensions(self) -> None:
        for ext in list(self.extensions):
            self.build_extension(ext)

    def _cmake(self, target: str, build_dir: Path) -> None:
        import pybind11

        cmake = shutil.which("cmake") or "cmake"
        suffix = Path(self.get_ext_filename("x")).name[1:]
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build_dir}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSUBLIMATE_MODULE_SUFFIX={suffix}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DSUBLIMATE_CUDA={'ON' if target == '_C_cuda' else 'OFF'}",
        ]
        if shutil.which("ninja"):
            configure.append("-GNinja")
        if target == "_C_cuda":
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
            archs = os.environ.get("SUBLIMATE_CUDA_ARCHS")
            if archs:
                configure.append(f"-DSUBLIMATE_CUDA_ARCHS={archs}")
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run([cmake, "--build", str(build_dir), "--target", target, "-j", jobs], check=True)


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
        print("warning: python/sublimate/kernels is not a link to kernels/; mapping it", file=sys.stderr)
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
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
