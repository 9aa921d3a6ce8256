"""A whole run: workers, table, CSV, plots. ``python -m sublimate bench`` calls it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import compare, plots, record, runner, show, worker
from .record import Row

Tell = Callable[[int, int, str], None]


def regimes(chosen: str, device: str) -> tuple[str, ...]:
    """Allocator regimes to measure on that device."""
    if device == "cuda":
        return ("caching",)
    return ("warm", "cold") if chosen == "both" else (chosen,)


def execute(
    families: tuple[str, ...],
    pattern: str,
    allocator: str,
    threads: int,
    rounds: int,
    quick: bool,
    providers: tuple[str, ...],
    tell: Tell,
) -> list[Row]:
    """Runs the matching cases in one process per regime.

    Raises:
        RuntimeError: a worker failed.
    """
    cases = runner.collect(families, pattern, quick)
    plan = [
        (regime, [c for c in cases if c.device == device])
        for device in ("cpu", "cuda")
        for regime in regimes(allocator, device)
    ]
    total, done = sum(len(found) for _, found in plan), 0
    rows: list[Row] = []
    for regime, found in plan:
        if not found:
            continue
        tell(done, total, regime)
        started = worker.launch(regime, families, pattern, threads, rounds, quick, providers)
        for new in started:
            rows += new
            done += 1
            tell(done, total, f"{new[0]['case'] if new else ''} {regime}")
    return rows


def main(
    families: tuple[str, ...],
    pattern: str,
    allocator: str,
    threads: int,
    rounds: int,
    quick: bool,
    providers: tuple[str, ...],
    out: Path | None,
    plot_folder: Path | None,
    as_json: bool,
    reference: Path | None = None,
) -> int:
    """Runs, prints, appends to the CSV, draws; returns 1 if parity is red or nothing ran.

    Raises:
        ValueError: ``reference`` has none of the cases that ran.
    """
    threads = threads or len(os.sched_getaffinity(0))
    columns = (TextColumn("{task.description:52}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=as_json) as bar:
        task = bar.add_task("starting", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        rows = execute(families, pattern, allocator, threads, rounds, quick, providers, tell)
    compared, remark = compare.against(rows, reference) if reference else ([], "")
    written = _write(rows, out)
    drawn = [p for path in written for p in plots.draw(path, plot_folder)] if plot_folder else []
    red = any(row.get("parity") == "red" for row in rows)
    if as_json:
        files: dict[str, Any] = {"csv": [str(p) for p in written], "plots": [str(p) for p in drawn]}
        if reference:
            files |= {"compared": compared, "remark": remark}
        print(json.dumps({"passed": bool(rows) and not red, **files, "rows": rows}, indent=2))
    else:
        shown = Console()
        # A table that is piped somewhere should not be folded to 80 columns.
        shown = shown if shown.is_terminal else Console(width=160)
        if rows:
            shown.print(
                f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}"
            )
            for table in show.tables(rows):
                shown.print(table)
            shown.print(show.CAPTION, style="dim")
        if reference:
            shown.print(compare.table(compared, reference))
            if remark:
                shown.print(remark, style="yellow", highlight=False)
        for remark in show.remarks(rows):
            shown.print(remark, style="yellow", highlight=False)
        for path in (*written, *drawn):
            shown.print(f"wrote {path}", highlight=False)
        if not rows:
            shown.print(f"[red]no case matches {pattern!r} on this machine[/red]")
    return 1 if red or not rows else 0


def _write(rows: list[Row], out: Path | None) -> list[Path]:
    """Appends to ``out``, or to the file of each row's device."""
    files: dict[Path, list[Row]] = {}
    for row in rows:
        path = out or record.RESULTS / f"{record.slug(row['device'])}.csv"
        files.setdefault(path, []).append(row)
    for path, part in files.items():
        record.append(path, part)
    return list(files)


def listing(families: tuple[str, ...], pattern: str) -> list[str]:
    """Ids of the cases that can run here."""
    names = [c.id for c in runner.collect(families, pattern, quick=False)]
    return names if torch.cuda.is_available() else [n for n in names if n.endswith("/cpu")]
