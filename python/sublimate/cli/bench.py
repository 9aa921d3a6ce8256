"""``sublimate bench``: the repository's benchmarks, from a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

_HARNESS = Path("bench") / "harness" / "run.py"


def checkout() -> Path | None:
    """Root of the checkout: where this file lies in one, else the current folder if it is one."""
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        if (root / _HARNESS).is_file():
            return root
    return None


def bench(
    family: Annotated[
        list[str] | None, typer.Option("--family", help="Only this family; may be repeated.")
    ] = None,
    case: Annotated[
        str, typer.Option("--case", help="Pattern of case ids, e.g. '*/gelu/*'.")
    ] = "*",
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider", help="Only eager, compile or sublimate-<backend>[-<variant>]; repeatable."
        ),
    ] = None,
    allocator: Annotated[
        str, typer.Option("--allocator", help="CPU memory: warm (reused), cold (fresh) or both.")
    ] = "both",
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: all.")] = 0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved CPU rounds.")] = 15,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny data: tests the harness, measures nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV to append to; default one per device.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Draw pictures from the CSV into this folder.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Also show this run against that CSV.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Measure nothing; write this page from bench/results."),
    ] = None,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh",
            help="Measure nothing; rewrite docs/performance.md and README.md's table and chart.",
        ),
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time kernels against eager and compiled torch and the machine's own ceilings.

    Parity is checked first: a red kernel is not timed, has no speed-up, and the exit status is 1.
    """
    if allocator not in ("warm", "cold", "both"):
        raise typer.BadParameter(
            f"expected warm, cold or both, got {allocator!r}", param_hint="--allocator"
        )
    root = checkout()
    if root is None:
        _stop(
            "the benchmarks are not part of the installed package: run this in a checkout of the "
            "repository (its folder bench/ holds them)"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    run = importlib.import_module("bench.harness.run")
    known: tuple[str, ...] = importlib.import_module("bench.harness.runner").FAMILIES
    for name in family or ():
        if name not in known:
            raise typer.BadParameter(
                f"expected one of {', '.join(known)}, got {name!r}", param_hint="--family"
            )
    families = tuple(f for f in known if not family or f in family)
    if list_only:
        for name in run.listing(families, case):
            typer.echo(name)
        return
    if refresh:
        importlib.import_module("bench.harness.report").write(root / "docs" / "performance.md")
        importlib.import_module("bench.harness.readme").write()
        return
    if report is not None:
        importlib.import_module("bench.harness.report").write(report)
        return
    if compare is not None and not compare.is_file():
        raise typer.BadParameter(f"no such file: {compare}", param_hint="--compare")
    # Relative to where the user is; workers run in the checkout.
    out, plots = (p.resolve() if p is not None else None for p in (out, plots))
    chosen = tuple(provider or ())
    try:
        status = run.main(
            families, case, allocator, threads, rounds, quick, chosen, out, plots, as_json, compare
        )
    except (RuntimeError, ValueError) as error:
        _stop(str(error))
    if status:
        raise typer.Exit(status)


def _stop(message: str) -> NoReturn:
    Console(stderr=True).print(f"[red]error[/red]: {escape(message)}", highlight=False)
    raise typer.Exit(2)
