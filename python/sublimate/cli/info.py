"""``sublimate info``: versions, what was built, and why each backend is off."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .. import _backends, _info


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, what is built for which architecture, and which backends can run."""
    report = _info.report()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console()
    console.print(_versions(report))
    console.print(_families(report["families"]))
    console.print(f"Chosen unless a call says otherwise: [bold]{report['setting']}[/bold]")


def _versions(report: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("sublimate", "python", "torch", "triton", "platform"):
        table.add_row(name, report[name] or "not installed")
    cpu, cuda = report["cpu"], report["cuda"]
    table.add_row("processor", f"{cpu['model']}, {cpu['threads']} threads")
    table.add_row("CPU kernels", _built(cpu["kernels"], cpu["reason"], "instructions"))
    table.add_row("CUDA kernels", _built(cuda["architectures"], None, "architectures"))
    devices = [f"{d['name']} ({d['capability']})" for d in cuda["devices"]]
    table.add_row("GPUs", ", ".join(devices) or "none")
    return table


def _built(what: Any, reason: str | None, noun: str) -> str:
    if what is None:
        return f"not loaded{': ' + reason if reason else ''}"
    shown = what if isinstance(what, str) else ", ".join(str(part) for part in what)
    return f"{noun} {shown}"


def _families(families: dict[str, dict[str, str | None]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("family", "backend", "state"):
        table.add_column(column)
    for family, backends in families.items():
        for name in _backends.NAMES:
            if name not in backends:
                continue
            reason = backends[name]
            state = "[green]ready[/green]" if reason is None else f"[yellow]off[/yellow]: {reason}"
            table.add_row(family, name, state)
    return table
