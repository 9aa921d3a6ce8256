"""The import rule of the package, read from its sources: imports run downhill only.

    modules -> functional -> autograd -> ops -> {_native, kernels}

A family's files of other names (codebook, convert, ...) stand where their imports put them: what is
reached through them counts too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "sublimate"
KERNELS = f"{PACKAGE}.kernels"
#: Roles of a family's files, from the top.
ROLES = ("modules", "functional", "autograd", "ops")
#: What only ``ops`` may import.
BOTTOM = (f"{PACKAGE}._native", KERNELS)
#: All that reference.py may import besides the standard library and files of its family that keep
#: the same rule.
REFERENCE = (
    "torch",
    *(f"{PACKAGE}.{m}" for m in ("_autograd", "_dtypes", "_normal", "_permutation", "_philox")),
)


def sources(root: Path) -> dict[str, str]:
    """Module name -> source, of python/sublimate and of kernels/ below ``sublimate.kernels``.

    Packages appear as ``name.__init__``, so that relative imports resolve alike everywhere.
    """
    found = {}
    for top, prefix in ((root / "python" / PACKAGE, PACKAGE), (root / "kernels", KERNELS)):
        for path in sorted(top.rglob("*.py")):
            below = path.relative_to(top).with_suffix("")
            if below.parts[0] != "kernels":  # the link, met under its own top
                found[".".join((prefix, *below.parts))] = path.read_text()
    return found


def families(modules: Mapping[str, str]) -> set[str]:
    """Packages of the family form: those with a reference.py."""
    return {name.split(".")[1] for name in modules if name.endswith(".reference")}


def imported(name: str, source: str, known: Mapping[str, str]) -> Iterator[str]:
    """Absolute names that a module imports anywhere, functions and TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: -node.level]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known or f"{full}.__init__" in known else base


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    return {name: set(imported(name, text, modules)) for name, text in modules.items()}


def _below(name: str, top: str) -> bool:
    return name == top or name.startswith(top + ".")


def _inner(name: str, edges: Mapping[str, set[str]]) -> str | None:
    """The node of a package-internal import: the module, or the package's __init__."""
    return next((n for n in (name, f"{name}.__init__") if n in edges), None)


def _reached(start: str, edges: Mapping[str, set[str]]) -> dict[str, str]:
    """Internal modules reached from ``start`` -> the path there, for messages."""
    paths, open_ends = {start: start.removeprefix(PACKAGE + ".")}, [start]
    while open_ends:
        here = open_ends.pop()
        for name in sorted(edges[here]):
            there = _inner(name, edges)
            if there is not None and there not in paths:
                paths[there] = f"{paths[here]} -> {there.removeprefix(PACKAGE + '.')}"
                open_ends.append(there)
    return paths


def _family_violations(family: str, edges: Mapping[str, set[str]]) -> Iterator[str]:
    home = f"{PACKAGE}.{family}"
    members = [n for n in edges if _below(n, home) and n != f"{home}.__init__"]
    others = families(dict.fromkeys(edges, "")) - {family}
    reference = [n for n in _reached(f"{home}.reference", edges) if n in members]
    for name in members:
        role = name.removeprefix(home + ".")
        reached = _reached(name, edges)
        for there, path in reached.items():
            if there == f"{home}.__init__" or there == f"{PACKAGE}.__init__":
                yield f"{path}: a package is not imported from inside"
            if any(
                _below(there, f"{PACKAGE}.{o}") or _below(there, f"{KERNELS}.{o}") for o in others
            ):
                yield f"{path}: families do not import one another"
            if there != name and name in _reached(there, edges):
                yield f"{path}: imports go round in a circle"
        if role in ROLES:
            for above in ROLES[: ROLES.index(role)]:
                if f"{home}.{above}" in reached:
                    yield f"{reached[f'{home}.{above}']}: uphill"
        for there in edges[name]:
            if role != "ops" and any(_below(there, bottom) for bottom in BOTTOM):
                yield f"{name} imports {there}: only ops does"
            if name in reference:
                top = there.partition(".")[0]
                if top not in sys.stdlib_module_names and not any(
                    _below(there, a) for a in (*REFERENCE, *members)
                ):
                    yield f"{name} imports {there}: reference.py imports torch alone"


def _kernel_violations(edges: Mapping[str, set[str]]) -> Iterator[str]:
    for name, imports in edges.items():
        if not _below(name, KERNELS):
            continue
        family = name.removeprefix(KERNELS + ".").partition(".")[0]
        for there in imports:
            if _below(there, PACKAGE) and not any(
                _below(there, f"{KERNELS}.{room}") for room in ("common", family)
            ):
                yield f"{name} imports {there}: kernels know their family and common alone"


def _common_violations(edges: Mapping[str, set[str]]) -> Iterator[str]:
    """Underscore modules that families stand on know no family."""
    all_families = families(dict.fromkeys(edges, ""))
    used = set()
    for name in edges:
        if name.split(".")[1] in all_families:
            inner = (_inner(n, edges) for n in edges[name])
            used |= {n for n in inner if n and n.count(".") == 1 and n.split(".")[1][0] == "_"}
    for name in sorted(used):
        for there, path in _reached(name, edges).items():
            if there.split(".")[1] in all_families:
                yield f"{path}: what families share knows none of them"


def violations(modules: Mapping[str, str]) -> list[str]:
    """Each breach of the rule, in words; empty if there is none."""
    edges = graph(modules)
    found = [v for f in sorted(families(modules)) for v in _family_violations(f, edges)]
    found += _kernel_violations(edges)
    found += _common_violations(edges)
    return sorted(set(found))
