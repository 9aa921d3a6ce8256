"""A part that is missing or broken: the package imports, works without it, and says why."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
from helpers.install import Room, copy_tree
from helpers.native_build import SUFFIX

pytestmark = pytest.mark.slow

USE = """
import torch, sublimate
from sublimate import fewbit
x = torch.linspace(-4, 4, 70, requires_grad=True)
y = fewbit.gelu(x, bits=2)
(dx,) = torch.autograd.grad(y.sum(), x)
errors = {}
for backend in ("cpu", "cuda", "triton"):
    try:
        fewbit.gelu(x, bits=2, backend=backend)
    except sublimate.BackendUnavailable as error:
        errors[backend] = str(error)
from sublimate import _info, _native
try:
    _native.CPU.load()
except sublimate.NativeError as error:
    errors["load"] = str(error)
answer = {"finite": bool(dx.isfinite().all()), "errors": errors, "info": _info.report()}
"""


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel without the compiled part."""
    base = tmp_path_factory.mktemp("pure")
    room = Room(base / "room")
    return room.wheel(copy_tree(base / "tree"), base / "wheel", SUBLIMATE_SKIP_NATIVE="1")


@pytest.fixture
def room(pure: Path, tmp_path: Path) -> Room:
    room = Room(tmp_path / "room")
    room.install(pure)
    return room


def test_missing(room: Room) -> None:
    answer = room.ask(USE)
    assert answer["finite"]
    for text in (
        answer["errors"]["cpu"],
        answer["errors"]["load"],
        answer["info"]["cpu"]["reason"],
    ):
        assert "sublimate._C was not built" in text and "pip install" in text
    assert "SUBLIMATE_BUILD_CUDA=1" in answer["errors"]["cuda"]
    assert "Would work: reference" in answer["errors"]["cpu"]


def plant_garbage(package: Path) -> str:
    (package / f"_C{SUFFIX}").write_bytes(b"\x7fELF" + bytes(range(256)) * 16)
    return "does not load"


def plant_other_library(package: Path) -> str:
    """A sound shared object that is not this module: a build for something else."""
    extensions = sorted(Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so"))
    assert extensions, "this Python has no extension module to take for a wrong one"
    shutil.copy2(extensions[0], package / f"_C{SUFFIX}")
    return "PyInit__C"


def plant_raising(package: Path) -> str:
    (package / "_C.py").write_text("raise RuntimeError('symbol lookup: version GLIBC_9.9 missing')")
    return "version GLIBC_9.9 missing"


def plant_missing_dependency(package: Path) -> str:
    (package / "_C.py").write_text("import a_library_that_is_not_there")
    return "a_library_that_is_not_there"


@pytest.mark.parametrize(
    "plant", [plant_garbage, plant_other_library, plant_raising, plant_missing_dependency]
)
def test_broken(room: Room, plant) -> None:
    said = plant(room.packages / "sublimate")
    answer = room.ask(USE)
    assert answer["finite"]
    for text in (
        answer["errors"]["cpu"],
        answer["errors"]["load"],
        answer["info"]["cpu"]["reason"],
    ):
        assert said in text and "sublimate._C" in text
    assert answer["info"]["cpu"]["kernels"] is None


def test_reason_is_remembered(room: Room) -> None:
    """A broken part is tried once; "auto" says at DEBUG why it was passed over."""
    plant_raising(room.packages / "sublimate")
    answer = room.ask(
        "import logging, io, torch; stream = io.StringIO()\n"
        "logging.basicConfig(stream=stream, level=logging.DEBUG)\n"
        "from sublimate import fewbit\n"
        "for _ in range(3): fewbit.relu(torch.ones(4))\n"
        "answer = stream.getvalue().splitlines()"
    )
    said = [line for line in answer if "auto passes over cpu" in line]
    assert len(said) == 1 and "GLIBC_9.9" in said[0]


# As if it were not installed: nothing on any path is found under its name.
HIDE_TRITON = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name == "triton" else found(name, *more)
"""


def test_without_triton(room: Room) -> None:
    answer = room.ask(HIDE_TRITON + USE)
    assert answer["finite"]
    assert "triton is not installed" in answer["errors"]["triton"]
    assert "pip install triton" in answer["errors"]["triton"]
    assert answer["info"]["families"]["fewbit"]["triton"].startswith("triton is not installed")


def test_without_cuda(room: Room) -> None:
    """No device to be seen (the variable hides one that is there): importing asks for none."""
    answer = room.ask(USE, CUDA_VISIBLE_DEVICES="")
    assert answer["finite"] and answer["info"]["cuda"]["devices"] == []
    assert "cuda" in answer["errors"]
    code = "import torch, sublimate; answer = torch.cuda.is_initialized()"
    assert room.ask(code, CUDA_VISIBLE_DEVICES="") is False
