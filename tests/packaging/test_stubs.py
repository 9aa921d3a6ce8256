"""The hand-written stubs of the compiled modules say what the bindings say."""

from __future__ import annotations

import ast
import re

import pytest
from helpers.native_build import ROOT
from sublimate import _native

PACKAGE = ROOT / "python" / "sublimate"


def stub(module: str) -> dict[str, list[tuple[str, str]] | None]:
    """Name -> [(argument, type)] of functions, None of the rest; imported names are looked up."""
    found: dict[str, list[tuple[str, str]] | None] = {}
    for node in ast.parse((PACKAGE / f"{module}.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args]
            found[node.name] = [(a.arg, ast.unparse(a.annotation)) for a in arguments]
        elif isinstance(node, ast.AnnAssign):
            found[ast.unparse(node.target)] = None
        elif isinstance(node, ast.ImportFrom):
            other = stub(node.module)
            found.update({alias.name: other[alias.name] for alias in node.names})
    return found


def bound(module: str) -> dict[str, list[tuple[str, str]]]:
    """Name -> [(argument, type)] of every kernel that a module binds.

    Both have those of csrc/*/bind.h of families with CUDA kernels; the CPU module alone has the
    others', and what a .cpp binds itself.
    """
    python = {"double": "float", "bool": "bool", "int": "int", "int64_t": "int", "Address": "int"}
    found = {}
    folders = ROOT / "csrc"
    headers = [h for h in folders.glob("*/bind.h") if module == "_C" or any(h.parent.glob("*.cu"))]
    for source in [*headers, *(folders.glob("*/*.cpp") if module == "_C" else [])]:
        kernel = r'm\.def\(\s*"(\w+)",\s*\[t?\]\(([^)]*)\)'
        for name, arguments in re.findall(kernel, source.read_text()):
            pairs = [argument.split() for argument in arguments.split(",")]
            found[name] = [(argument, python[kind]) for kind, argument in pairs]
    return found


@pytest.mark.parametrize("module", ["_C", "_C_cuda"])
def test_signatures(module):
    kernels = {n: a for n, a in stub(module).items() if a and n != "error_text"}
    assert len(kernels) >= 4 and kernels == bound(module)


@pytest.mark.parametrize("library", [_native.CPU, _native.CUDA], ids=["_C", "_C_cuda"])
def test_names(library):
    """All of the module's names and no other."""
    if library.reason() is not None:
        pytest.skip(library.reason())
    module = library.load()
    names = {name for name in vars(module) if not name.startswith("__")}
    assert names == set(stub(library.module.rpartition(".")[2]))
    for name, arguments in stub(library.module.rpartition(".")[2]).items():
        if arguments is not None:
            assert len(re.findall(r"\barg\d+:", getattr(module, name).__doc__)) == len(arguments)
