"""``sublimate demo``: every family on real data, a table, and a report with pictures.

A family takes part by an object ``sublimate.<family>.demo.section`` (``_report.Section``).
"""

from __future__ import annotations

import importlib
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .. import _info
from .._report import MissingExtra, Result, Section, Settings
from ..fewbit.convert import convert as few_bit_convert

#: Families with a section, in the order of the report.
FAMILIES = ("fewbit", "kronecker_attention", "multicut", "path_integral", "randomized_linear")
_TEMPLATE = "report.html.j2"
#: Packages whose name is not that of their module.
_PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}


def sections() -> list[Section]:
    """The sections of all families.

    Raises:
        MissingExtra: a package that the demo needs is not installed.
    """
    require("jinja2", "matplotlib", "sklearn", "skimage")
    return [importlib.import_module(f"sublimate.{family}.demo").section for family in FAMILIES]


def require(*modules: str) -> None:
    """Raises MissingExtra naming the packages among ``modules`` that cannot be imported."""
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing.append(f"{_PACKAGES.get(module, module)} ({error})")
    if missing:
        raise MissingExtra(
            f"the demo needs {', '.join(missing)}; install them with: pip install 'sublimate[demo]'"
        )


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("out"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few seconds; untrained models.")
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of weights and batches.")
    ] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a small model exactly and with each kernel, and write a report; exit 1 if parity fails.

    Takes about four minutes on two idle CPU cores and needs no download.
    """
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device", param_hint="--device")
    start = time.perf_counter()
    settings = Settings(seed, quick, device, few_bit=few_bit_convert)
    try:
        results = _run(sections(), settings, show=not as_json)
    except MissingExtra as error:
        Console(stderr=True).print(f"[red]error[/red]: {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from None
    seconds = time.perf_counter() - start
    passed = all(r.passed for r in results)
    path = write_report(out, results, seconds, settings)
    if as_json:
        found = {r.title: {"passed": r.passed, **r.data} for r in results}
        summary = {"passed": passed, "seconds": round(seconds, 1), "report": str(path)}
        typer.echo(
            json.dumps({**summary, "seed": seed, "quick": quick, "sections": found}, indent=2)
        )
    else:
        _print(results, path, seconds)
    if not passed:
        raise typer.Exit(1)


def _run(parts: list[Section], settings: Settings, show: bool) -> list[Result]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    results = []
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        for section in parts:
            task = bar.add_task(section.name, total=None)

            def progress(
                done: int, total: int, what: str, task: Any = task, name: str = section.name
            ) -> None:
                bar.update(task, completed=done, total=total, description=f"{name}: {what}")

            results.append(section.run(settings, progress))
    return results


def _print(results: list[Result], path: Path, seconds: float) -> None:
    console = Console()
    for result in results:
        console.print(f"\n[bold]{escape(result.title)}[/bold]")
        console.print(escape(result.setting), highlight=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(result.columns):
            heading = column.replace(" ", "\n", 1)
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        for row in result.rows:
            table.add_row(*(_toned(cell) for cell in row))
        console.print(table)
        for note in result.notes:
            console.print(f"[dim]{escape(note)}[/dim]", highlight=False)
        console.print(f"\n{escape(result.finding)}", highlight=False)
    console.print(f"\nReport with pictures: {path}  ({seconds:.0f} s)", highlight=False)


def _toned(cell: str) -> str:
    if cell in ("pass", "FAIL"):
        return f"[{'green' if cell == 'pass' else 'red'}]{cell}[/]"
    return escape(cell)


def write_report(out: Path, results: list[Result], seconds: float, settings: Settings) -> Path:
    """Writes ``out/report.html``, one file that needs nothing else, and returns its path."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report = _info.report()
    html = environment.get_template(_TEMPLATE).render(
        results=results,
        passed=all(r.passed for r in results),
        seconds=seconds,
        settings=settings,
        info=report,
        machine=_machine(report, settings.device),
        when=datetime.now().strftime("%d %B %Y, %H:%M"),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _machine(report: dict[str, Any], device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    return f"{report['cpu']['model']}, {cores} core{'s' if cores != 1 else ''}"
