"""The committed budget of a family's Triton kernels: what each case takes when compiled.

A row names a case and a key, the hash of all that was compiled: the sources of the kernels, types,
constants and options. So a row that is not of today's sources shows without compiling, and what a
run of the tests compiles is a part: it is compared with its rows.

    PYTHONPATH=tests:python python -m helpers.triton_budget kronecker_attention

compiles what has no row and rewrites the file.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from helpers import triton_aot

ROOT = Path(__file__).parents[2]
COLUMNS = ("case", "registers", "shared", "spilled", "key")


@dataclass(frozen=True)
class Row:
    key: str
    registers: int
    shared: int
    spilled: int


def path_of(family: str) -> Path:
    return ROOT / "tests" / family / "triton_budget.csv"


@functools.cache
def _sources(module: str) -> str:
    """Sources of the jitted functions that kernels of a module can call, and their constants."""
    from triton.language import constexpr
    from triton.runtime.jit import JITFunction

    names, found = [module], {}
    for name in names:
        for label, x in vars(sys.modules[name]).items():
            if isinstance(x, JITFunction):
                found[x.fn.__module__, x.fn.__name__] = x.src
                names += [x.fn.__module__] if x.fn.__module__ not in names else []
            elif isinstance(x, constexpr):
                found[name, label] = repr(x)
    return repr(sorted(found.items()))


def key(case: Any, target: str) -> str:
    said = (
        _sources(case.kernel.fn.__module__),
        case.kernel.fn.__name__,
        sorted(case.full_signature().items()),
        sorted((name, str(value)) for name, value in case.full_constexprs().items()),
        sorted(case.options.items()),
        sorted(case.aligned()),
        target,
    )
    return hashlib.sha256(repr(said).encode()).hexdigest()[:10]


def target_of(case: Any) -> str:
    """Names of cases end in it."""
    return str(case.name.rpartition("-")[2])


def compiler(family: str) -> str:
    """Version of Triton that the rows are of."""
    return path_of(family).read_text().partition("\n")[0].removeprefix("# triton ")


def read(family: str) -> dict[str, Row]:
    """Rows by the name of the case."""
    with path_of(family).open(newline="") as file:
        next(file)
        return {
            row["case"]: Row(
                row["key"], int(row["registers"]), int(row["shared"]), int(row["spilled"])
            )
            for row in csv.DictReader(file)
        }


def write(family: str, rows: dict[str, Row], names: Iterable[str]) -> None:
    """The rows of ``names``, in that order."""
    with path_of(family).open("w", newline="") as file:
        file.write(f"# triton {triton.__version__}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for name in names:
            if name in rows:
                row = rows[name]
                table.writerow((name, row.registers, row.shared, row.spilled, row.key))


def main(family: str, only: str = "", at_once: int = 60) -> None:
    """``only``: a regular expression for the names of what is compiled."""
    module = f"sublimate.kernels.{family}.configs"
    cases = import_module(module).aot_cases()
    targets = {case.name: target_of(case) for case in cases}
    keys = {case.name: key(case, targets[case.name]) for case in cases}
    rows = read(family) if path_of(family).exists() else {}
    known = {row.key: row for row in rows.values()}
    rows = {name: known[found] for name, found in keys.items() if found in known}
    # Cases that come to the same are compiled once.
    missing = list({keys[n]: n for n in keys if n not in rows and re.search(only, n)}.values())
    missing.sort(key=keys.get)  # a sample of everything comes first
    for at in range(0, len(missing), at_once):
        some = [(name, targets[name]) for name in missing[at : at + at_once]]
        with tempfile.TemporaryDirectory() as cache:
            reports = triton_aot.compile_all(module, some, Path(cache))
        for (name, target), report in reports.items():
            if report.error:
                print(f"{name}: {report.error}")
                continue
            row = Row(keys[name], report.registers, report.shared, report.spilled)
            rows |= {n: row for n in keys if keys[n] == row.key}
            try:
                triton_aot.check(report, target)
            except AssertionError as error:
                print(f"{name}: {error}", flush=True)
        write(family, rows, keys)
        print(f"{at + len(some)} of {len(missing)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
