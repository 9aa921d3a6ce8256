"""The CUDA sources under nvcc, without a GPU: no warning, no spill, registers within the budget."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import cuda_budget, native_build
from helpers.cuda_budget import Use
from sublimate import _backends, _native, fewbit

BUDGET = json.loads(cuda_budget.FILE.read_text())
needs_nvcc = [
    pytest.mark.slow,
    pytest.mark.skipif(
        native_build.nvcc() is None, reason="no nvcc on PATH or under CUDA_HOME (CUDA toolkit)"
    ),
    native_build.needs_compiler,
    pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt (install binutils)"),
]


def lane(function):
    for mark in needs_nvcc:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def built() -> tuple[Path, str]:
    return cuda_budget.build()


@lane
def test_kernels_keep_to_the_budget(built):
    uses = cuda_budget.parse(built[1])
    archs = {f"sm_{arch}" for arch in cuda_budget.ARCHS}
    assert uses and all(set(by_arch) == archs for by_arch in uses.values())
    assert cuda_budget.breaches(uses, BUDGET, cuda_budget.release()) == []


@lane
@pytest.mark.parametrize("family", ["fewbit", "randomized_linear"])
def test_every_element_type_is_compiled(built, family):
    """Each kernel exists for the four element types; one that is no template is for one type."""
    names = [n for n in cuda_budget.parse(built[1]) if n.startswith(f"{family}::")]
    kernels = {name.partition("<")[0] for name in names if "<" in name}
    known = {
        "fewbit": {"forward", "backward", "gated_forward", "gated_backward"},
        "randomized_linear": {"dense", "srht", "select", "hadamard"},
    }
    assert kernels == {f"{family}::{k}_kernel" for k in known[family]}
    for kernel in kernels:
        for dtype in ("float", "half_t", "bfloat_t", "double"):
            assert any(n.startswith(f"{kernel}<{dtype}") for n in names), (kernel, dtype)


@lane
def test_module_needs_no_cuda_library(built):
    """The runtime is inside: nothing of CUDA is looked for when the module loads."""
    module, _ = built
    needed = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed and "cuda" not in needed.replace(str(module), "").lower()
    assert "not found" not in needed


@lane
def test_module_without_a_driver(built, monkeypatch):
    """It imports, and a call ends in an error that names op, shape and CUDA's reason."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver; make gpu runs the kernels on it")
    library = _native.Library("sublimate._C_cuda", "cpu", file=built[0])
    assert library.reason() is None
    module = library.load()
    assert module.architectures == " ".join(cuda_budget.ARCHS) + " +PTX"
    assert module.fewbit_functions() == _native.CPU.load().fewbit_functions()
    assert module.error_text(0) == "success" and "dtype" not in module.error_text(35)
    monkeypatch.setattr(_native, "CUDA", library)
    _backends.forget()
    x = torch.randn(5, 7, requires_grad=True)
    try:
        with pytest.raises(
            _native.NativeError,
            match=r"_C_cuda\.fewbit_fwd failed on shape \(5, 7\), torch\.float32: .*CUDA driver",
        ):
            fewbit.gelu(x, bits=3, backend="cuda")
    finally:
        monkeypatch.undo()
        _backends.forget()


# ---------------------------------------------------------------------- the checker itself

NAME = "_ZN9sublimate6fewbit4cuda12_GLOBAL__N_11fIdEEvPd"
LOG = f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{NAME}' for 'sm_80'
ptxas info    : Function properties for {NAME}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '{NAME}' for 'sm_90'
ptxas info    : Function properties for {NAME}
    48 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 48 bytes cumulative stack size
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt (install binutils)")
def test_log_is_read():
    uses = cuda_budget.parse(LOG)
    assert uses == {"fewbit::f<double>": {"sm_80": Use(40, 0, 256), "sm_90": Use(255, 48, 0)}}
    with pytest.raises(ValueError, match="ptxas says something new"):
        cuda_budget.parse(LOG.replace("Used 40 registers", "Took 40 registers"))


def test_breaches_are_found():
    uses = {
        name: {arch: Use(u["registers"], 0, u["shared"]) for arch, u in archs.items()}
        for name, archs in BUDGET["kernels"].items()
    }
    name, same = next(iter(uses)), BUDGET["nvcc"]
    assert cuda_budget.breaches(uses, BUDGET, same) == []

    def changed(use: Use | None) -> dict[str, dict[str, Use]]:
        copied = copy.deepcopy(uses)
        if use is None:
            del copied[name]["sm_90"]
        else:
            copied[name]["sm_90"] = use
        return copied

    old = uses[name]["sm_90"]
    more = changed(Use(old.registers + 1, 0, old.shared))
    assert [b for b in cuda_budget.breaches(more, BUDGET, same) if "registers" in b]
    assert cuda_budget.breaches(more, BUDGET, "99.0") == []
    much = changed(Use(old.registers + cuda_budget.OTHER_RELEASE + 1, 0, old.shared))
    assert cuda_budget.breaches(much, BUDGET, "99.0")
    assert cuda_budget.breaches(changed(Use(old.registers, 8, old.shared)), BUDGET, "99.0")
    assert cuda_budget.breaches(changed(Use(old.registers, 0, old.shared + 1)), BUDGET, same)
    assert cuda_budget.breaches(changed(None), BUDGET, same)
    assert "not in cuda_budget.json" in cuda_budget.breaches({**uses, "new": {}}, BUDGET, same)[0]
    del uses[name]
    assert "not compiled" in cuda_budget.breaches(uses, BUDGET, same)[0]
