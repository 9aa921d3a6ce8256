"""``sublimate check``: every op on every backend of this machine against the float64 reference.

A family takes part by a module ``sublimate.<family>.checks`` with
``cases(backend, device, quick) -> Iterator[_parity.Case]``.
"""

from __future__ import annotations

import importlib
import json
import time
import traceback
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .. import _backends
from .._parity import Case, Measurement

#: Families that can be checked, in the order of the table.
FAMILIES = ("fewbit", "kronecker_attention", "multicut", "path_integral", "randomized_linear")
_WIDTH = 150  # columns of the whole table
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Outcome:
    """A case that ran: its measurements, or the error that stopped it."""

    case: Case
    measurements: list[Measurement] = field(default_factory=list)
    error: str | None = None

    @property
    def passed(self) -> bool:
        return (
            self.error is None
            and bool(self.measurements)
            and all(m.passed for m in self.measurements)
        )

    def worst(self, quantity: str) -> Measurement | None:
        """The measurement of that quantity nearest to its limit, or furthest over it."""
        found = [m for m in self.measurements if m.quantity == quantity]
        return max(found, key=lambda m: (not m.passed, m.strain)) if found else None


def run_case(case: Case) -> Outcome:
    """Runs one case; an exception of the kernel is a red outcome, not the end of the suite."""
    try:
        return Outcome(case, case.run())
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        return Outcome(case, [], f"{type(error).__name__} at {place}: {error}")


def plan(
    families: tuple[str, ...], backends: tuple[str, ...], quick: bool
) -> tuple[list[Case], list[tuple[str, str, str]]]:
    """The cases that can run here, and (family, backend, reason) of what cannot."""
    cases: list[Case] = []
    unavailable: list[tuple[str, str, str]] = []
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for family in families:
        module = importlib.import_module(f"sublimate.{family}.checks")
        for backend in backends:
            on = [d for d in devices if _runs(family, backend, d)]
            for device in on:
                cases += [
                    c
                    for c in module.cases(backend, device, quick)
                    if not _backends.reasons(family, backend, device, c.dtype)
                ]
            if not on:
                # The first tells why it is off; what it would take besides is of no use then.
                why = _backends.reasons(family, backend, devices[-1], torch.float32)
                unavailable.append((family, backend, why[0]))
    return cases, unavailable


def _runs(family: str, backend: str, device: str) -> bool:
    return any(not _backends.reasons(family, backend, device, dtype) for dtype in _DTYPES)


def check(
    family: Annotated[
        list[str] | None, typer.Option("--family", help="Only this family; may be repeated.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="Only this backend; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="3 bits, float32 and bfloat16.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold every op, backend and dtype to the float64 reference; exit 1 if one is red.

    Inputs are rounded to the dtype first. Forward and gradients may have twice and three times the
    error of plain PyTorch in the same dtype, plus a floor; packed codes must be equal.
    """
    families = _chosen("--family", family, FAMILIES)
    backends = _chosen("--backend", backend, _backends.NAMES)
    console = Console()
    wide = not console.is_terminal or console.width >= _WIDTH
    start = time.perf_counter()
    cases, unavailable = plan(families, backends, quick)
    outcomes = _run(cases, show=not as_json)
    red = [o for o in outcomes if not o.passed]
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps(_as_json(outcomes, unavailable, seconds), indent=2))
    else:
        # What goes into a file is not folded.
        sheet = console if console.is_terminal else Console(width=_WIDTH)
        sheet.print(_table(outcomes, wide))
        for line in _not_run(unavailable):
            sheet.print(f"[yellow]not run[/yellow] {escape(line)}", highlight=False)
        _summary(console, outcomes, red, seconds)
    if red or not outcomes:
        raise typer.Exit(1)


def _chosen(option: str, names: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(
                f"expected one of {', '.join(known)}, got {name!r}", param_hint=option
            )
    return tuple(n for n in known if not names or n in names)


def _run(cases: list[Case], show: bool) -> list[Outcome]:
    outcomes = []
    columns = (TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not show) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=f"{case.op} on {case.backend}")
            outcomes.append(run_case(case))
            progress.advance(task)
    return outcomes


# ------------------------------------------------------------------------------------- showing


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short_op(case: Case) -> str:
    """path_points under path_integral is points: 80 columns are few."""
    return case.op.removeprefix(case.family.partition("_")[0] + "_")


def _errors(m: Measurement | None, wide: bool) -> tuple[str, ...]:
    """Largest and RMS error with their limits, or the largest and the share of the limits used."""
    if m is None:
        return ("", "") if wide else ("",)
    if not wide:
        return (_red(f"{m.max_error:.0e} {min(m.strain, 9.99):4.0%}", not m.passed),)
    return (
        _red(f"{m.max_error:.1e} / {m.max_limit:.1e}", not m.max_error <= m.max_limit),
        _red(f"{m.rms_error:.0e} / {m.rms_limit:.0e}", not m.rms_error <= m.rms_limit),
    )


def _red(text: str, bad: bool) -> str:
    return f"[red]{text}[/red]" if bad else text


def _count(m: Measurement | None) -> str:
    if m is None:
        return ""
    return "equal" if m.passed else f"[red]{m.max_error:g} differ[/red]"


def _not_run(unavailable: list[tuple[str, str, str]]) -> list[str]:
    """A line for each backend and reason, with all families it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for family, backend, reason in unavailable:
        found.setdefault((backend, reason), []).append(family)
    return [f"{', '.join(names)} on {which}: {why}" for (which, why), names in found.items()]


def _table(outcomes: list[Outcome], wide: bool) -> Table:
    """A line per case under its family's name: with all limits, or in 80 columns."""
    caption = "error / limit: largest absolute error, and RMS relative to the result"
    if not wide:
        caption = "largest absolute error, and how much of the limits it and the RMS error use"
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1) if wide else (0, 1, 0, 0),
        pad_edge=False,
        caption=f"{caption}; the worst of all bit widths",
    )
    errors = ("forward", "RMS", "gradient", "RMS") if wide else ("forward", "gradient")
    for column in ("op", "backend", "dtype", *errors, *(("codes",) if wide else ()), "verdict"):
        table.add_column(column, no_wrap=True)
    family = None
    for o in outcomes:
        case = o.case
        if case.family != family:
            family = case.family
            table.add_section()
            table.add_row(f"[bold]{family}[/bold]")
        where = case.backend if case.device == "cpu" else f"{case.backend} ({case.device})"
        table.add_row(
            _short_op(case),
            where,
            _short(case.dtype),
            *_errors(o.worst("forward"), wide),
            *_errors(o.worst("gradient"), wide),
            *((_count(o.worst("codes")),) if wide else ()),
            "[green]pass[/green]" if o.passed else "[red]FAIL[/red]",
        )
    return table


def _summary(console: Console, outcomes: list[Outcome], red: list[Outcome], seconds: float) -> None:
    for o in red:
        name = f"{o.case.op} on {o.case.backend}, {_short(o.case.dtype)}"
        if o.error is not None or not o.measurements:
            console.print(
                f"[red]FAIL[/red] {name}: {o.error or 'measured nothing'}", highlight=False
            )
        for m in o.measurements:
            if not m.passed:
                console.print(
                    f"[red]FAIL[/red] {name}, {m.variant}: {m.quantity} {m.max_error:.3g} "
                    f"(limit {m.max_limit:.3g}), RMS {m.rms_error:.3g} (limit {m.rms_limit:.3g})",
                    highlight=False,
                )
    if not outcomes:
        console.print("[red]nothing could be checked[/red]")
        return
    count = sum(len(o.measurements) for o in outcomes)
    tone = "red" if red else "green"
    console.print(
        f"[{tone}]{len(outcomes) - len(red)} of {len(outcomes)} cases pass[/{tone}], "
        f"{count} measurements in {seconds:.1f} s"
    )


def _as_json(
    outcomes: list[Outcome], unavailable: list[tuple[str, str, str]], seconds: float
) -> dict[str, Any]:
    return {
        "passed": bool(outcomes) and all(o.passed for o in outcomes),
        "seconds": round(seconds, 3),
        "cases": [
            {
                "family": o.case.family,
                "op": o.case.op,
                "backend": o.case.backend,
                "device": o.case.device,
                "dtype": _short(o.case.dtype),
                "passed": o.passed,
                "error": o.error,
                "measurements": [
                    {
                        "variant": m.variant,
                        "quantity": m.quantity,
                        "max_error": _finite(m.max_error),
                        "max_limit": _finite(m.max_limit),
                        "rms_error": _finite(m.rms_error),
                        "rms_limit": _finite(m.rms_limit),
                        "passed": m.passed,
                    }
                    for m in o.measurements
                ],
            }
            for o in outcomes
        ],
        "not_run": [
            {"family": name, "backend": which, "reason": reason}
            for name, which, reason in unavailable
        ],
    }


def _finite(value: float) -> float | None:
    """JSON has no inf or NaN: None stands for both."""
    return value if abs(value) < float("inf") else None
