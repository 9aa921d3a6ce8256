"""Every way to install the package gives one that is whole.

One copy of the tree is built natively for the wheel and the editable installations, and a second
time from the sdist; builds are unoptimised (helpers/install.py).
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import native_build
from helpers.install import Room, copy_tree
from helpers.native_build import BuildFailed

pytestmark = [
    pytest.mark.slow,
    native_build.needs_compiler,
]

#: What a user's first minutes need, from wherever the package was installed.
WHOLE = """
import importlib.metadata, importlib.resources, importlib.util, pathlib
import torch, sublimate
from sublimate import _native, fewbit
from sublimate._backends import resolve
files = importlib.resources.files("sublimate")
x = torch.linspace(-4, 4, 1000, requires_grad=True)
grads = {}
for backend in ("cpu", "reference"):
    if backend == "reference" or _native.CPU.reason() is None:
        y = fewbit.gelu(x, bits=3, backend=backend)
        grads[backend] = torch.autograd.grad(y.sum(), x)[0]
kernels = None
if importlib.util.find_spec("triton"):
    import sublimate.kernels.fewbit.fwd, sublimate.kernels.common.launch
    kernels = sublimate.kernels.fewbit.fwd.__file__
answer = {
    "version": sublimate.__version__,
    "recorded": importlib.metadata.version("sublimate"),
    "file": sublimate.__file__,
    "kernels": kernels,
    "reason": _native.CPU.reason(),
    "cuda": _native.CUDA.reason(),
    "auto": resolve("fewbit", None, x),
    "equal": "cpu" in grads and torch.equal(grads["cpu"], grads["reference"]),
    "present": [n for n in ("py.typed", "fewbit/codebooks.json") if (files / n).is_file()],
    "codebook": len(fewbit.fit_codebook("gelu", 3).levels),
}
"""


def check(answer: dict[str, object], inside: Path, native: bool = True) -> None:
    assert answer["version"] == answer["recorded"] and answer["version"]
    assert Path(str(answer["file"])).is_relative_to(inside), answer["file"]
    if answer["kernels"] is not None:
        assert Path(str(answer["kernels"])).is_relative_to(inside)
    assert answer["present"] == ["py.typed", "fewbit/codebooks.json"]
    assert answer["codebook"] == 8
    assert "SUBLIMATE_BUILD_CUDA" in str(answer["cuda"])
    if native:
        assert answer["reason"] is None and answer["equal"] and answer["auto"] == "cpu"
    else:
        assert "was not built" in str(answer["reason"]) and answer["auto"] == "reference"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("builder") / "room")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree") / "sublimate")


@pytest.fixture(scope="module")
def kept(tree: Path) -> dict[str, str]:
    """Builds of ``tree`` share CMake's folder."""
    return {"SUBLIMATE_BUILD_DIR": str(tree.parent / "cmake")}


@pytest.fixture(scope="module")
def sdist(room: Room, tree: Path) -> Path:
    return room.sdist(tree, tree.parent / "sdist")


@pytest.fixture(scope="module")
def wheel(room: Room, tree: Path, kept: dict[str, str]) -> Path:
    return room.wheel(tree, tree.parent / "wheel", **kept)


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def check_contents(names: list[str], native: bool) -> None:
    tops = {name.split("/")[0] for name in names}
    assert all(top == "sublimate" or top.endswith(".dist-info") for top in tops), tops
    assert not [n for n in names if "__pycache__" in n or n.endswith((".cu", ".cpp", ".h", ".o"))]
    for needed in (
        "fewbit/codebooks.json",
        "py.typed",
        "kernels/fewbit/fwd.py",
        "_native/__init__.py",
    ):
        assert f"sublimate/{needed}" in names
    shared = [n for n in names if n.endswith(".so")]
    assert shared == ([f"sublimate/_C{native_build.SUFFIX}"] if native else [])


def test_wheel(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.endswith("_x86_64.whl") or "-any" not in wheel.name
    check_contents(contents(wheel), native=True)
    room = Room(tmp_path / "room")
    room.install(wheel)
    check(room.ask(WHOLE), room.packages)


def test_editable(tree: Path, kept: dict[str, str], wheel: Path, tmp_path: Path) -> None:
    room = Room(tmp_path / "room")
    room.install(tree, "-e", **kept)
    check(room.ask(WHOLE), tree)


def test_editable_compat(tree: Path, kept: dict[str, str], wheel: Path, tmp_path: Path) -> None:
    room = Room(tmp_path / "room")
    room.install(tree, "--config-settings", "editable_mode=compat", "-e", **kept)
    check(room.ask(WHOLE), tree)


def test_sdist_has_what_it_takes(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2]: m for m in archive.getmembers()}
    for needed in (
        "CMakeLists.txt", "setup.py", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE",
        "README.md", "csrc/common/launch.h", "csrc/fewbit/cpu.cpp", "csrc/fewbit/cuda.cu",
        "csrc/module_cuda.cu", "kernels/fewbit/fwd.py", "kernels/common/launch.py",
        "python/sublimate/fewbit/codebooks.json", "tests/conftest.py",
        "tests/cuda_emulator/emulator.h",
    ):  # fmt: skip
        assert needed in names, needed
    # Without the link a build from the sdist would have no Triton kernels.
    assert "python/sublimate/kernels/fewbit/fwd.py" in names or names["python/sublimate/kernels"]
    assert not [n for n in names if n.endswith((".so", ".pyc")) or n.startswith(("build", ".venv"))]


def test_wheel_from_sdist(room: Room, sdist: Path, wheel: Path, tmp_path: Path) -> None:
    built = room.wheel(sdist, tmp_path / "wheel")
    names = contents(built)
    check_contents(names, native=True)
    assert sorted(names) == sorted(contents(wheel))
    target = Room(tmp_path / "room")
    target.install(built)
    check(target.ask(WHOLE), target.packages)


def test_without_native_part(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    room = Room(tmp_path / "room")
    pure = room.wheel(tree, tmp_path / "wheel", SUBLIMATE_SKIP_NATIVE="1")
    assert pure.name.endswith("-py3-none-any.whl")
    check_contents(contents(pure), native=False)
    room.install(pure)
    check(room.ask(WHOLE), room.packages, native=False)


def test_nothing_is_left_of_an_earlier_build(
    room: Room, tree: Path, wheel: Path, tmp_path: Path
) -> None:
    """A wheel without the native part, from a tree where one with it was built before."""
    assert list(tree.glob("build/lib*/sublimate/_C*.so")), "the build no longer leaves a trace"
    stale = next(tree.glob("build/lib*/sublimate")) / "deleted_since.py"
    stale.write_text("")
    pure = room.wheel(tree, tmp_path / "wheel", SUBLIMATE_SKIP_NATIVE="1")
    names = contents(pure)
    check_contents(names, native=False)
    assert "sublimate/deleted_since.py" not in names


def test_checkout_without_link(tmp_path: Path) -> None:
    """Where a checkout turned the link into a text file, a wheel still has the Triton kernels."""
    tree = copy_tree(tmp_path / "tree")
    link = tree / "python" / "sublimate" / "kernels"
    link.unlink()
    link.write_text("../../kernels")
    room = Room(tmp_path / "room")
    pure = room.wheel(tree, tmp_path / "wheel", SUBLIMATE_SKIP_NATIVE="1")
    check_contents(contents(pure), native=False)


# ------------------------------------------------------------------------------------- switches


def fake_nvcc(folder: Path) -> str:
    """A CUDA compiler that is there and fails."""
    path = folder / "nvcc"
    path.write_text("#!/bin/sh\necho 'nvcc fatal: no licence today' >&2\nexit 3\n")
    path.chmod(0o755)
    return str(path)


def test_auto_goes_on_without_cuda(
    tree: Path, kept: dict[str, str], wheel: Path, tmp_path: Path
) -> None:
    room = Room(tmp_path / "room")
    variables = {**kept, "SUBLIMATE_BUILD_CUDA": "auto", "CUDACXX": fake_nvcc(tmp_path)}
    output = room.install(tree, "-v", **variables)
    assert "the CUDA module was not built" in output and "going on without it" in output
    check(room.ask(WHOLE), room.packages)
    editable = Room(tmp_path / "editable")
    editable.install(tree, "-e", **variables)
    check(editable.ask(WHOLE), tree)


def test_one_insists_on_cuda(tree: Path, kept: dict[str, str], wheel: Path, tmp_path: Path) -> None:
    room = Room(tmp_path / "room")
    variables = {**kept, "SUBLIMATE_BUILD_CUDA": "1"}
    with pytest.raises(BuildFailed) as caught:
        room.install(tree, "-v", **variables, CUDACXX=fake_nvcc(tmp_path))
    assert "is not able to compile" in caught.value.output
    nowhere = {"PATH": os.path.dirname(room.python), "CUDA_HOME": "/nowhere"}
    with pytest.raises(BuildFailed, match=r"SUBLIMATE_BUILD_CUDA=1 but no nvcc was found"):
        room.install(tree, **variables, **nowhere, CUDACXX="")
    assert not list(room.packages.glob("sublimate*"))


def test_bad_switch(tree: Path, tmp_path: Path) -> None:
    room = Room(tmp_path / "room")
    with pytest.raises(BuildFailed, match="SUBLIMATE_BUILD_CUDA must be auto, 0 or 1, got 'yes'"):
        room.install(tree, SUBLIMATE_BUILD_CUDA="yes")
