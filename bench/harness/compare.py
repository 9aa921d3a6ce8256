"""This run against a result file: the same cases, then and now."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from . import plots, show
from .record import Row


def against(rows: list[Row], reference: Path) -> tuple[list[Row], str]:
    """Rows that the reference also has, with its time and ratios; and a remark.

    Each row gains ``then_ms``, ``then_commit``, ``change`` (this median over that one) and
    ``change_eager`` (ratio to eager now over that then: free of the machine's speed, empty without
    that peer).

    Raises:
        ValueError: the file has no timed row of these cases.
    """
    keys = ("case", "mode", "provider", "allocator")
    then = {tuple(r[k] for k in keys): r for r in plots.latest(reference)}
    found, devices = [], set()
    for row in rows:
        if row.get("p50_ms", "") == "":
            continue
        old = then.get(tuple(row[k] for k in keys))
        if old is None:
            continue
        now_ratio, then_ratio = row.get("ratio_eager"), old["ratio_eager"]
        devices.add((old["device"], str(row["device"])))
        found.append(
            {
                **row,
                "then_ms": old["p50_ms"],
                "then_commit": old["commit"],
                "change": f"{float(row['p50_ms']) / float(old['p50_ms']):.4g}",
                "change_eager": f"{float(now_ratio) / float(then_ratio):.4g}"
                if now_ratio and then_ratio
                else "",
            }
        )
    if not found:
        raise ValueError(f"{reference}: expected timed rows of the cases that ran, found none")
    other = [f"{was} then, {now} now" for was, now in sorted(devices) if was != now]
    remark = "another machine: compare the ratios to eager, not the times" if other else ""
    return found, ": ".join([*other, remark]) if other else ""


def table(rows: list[Row], reference: Path) -> Table:
    """A line per case, provider and mode: now, then, and both changes."""
    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left",
        title=escape(f"now against {reference.name}; below 1 is faster now"),
    )  # fmt: skip
    for k, name in enumerate(
        ("case", "provider", "mode", "now", "then", "now / then", "ratio to eager, now / then")
    ):
        shown.add_column(name, no_wrap=True, justify="left" if k < 3 else "right")
    for row in rows:
        shown.add_row(
            f"{row['case']} {row['allocator']}", row["provider"], row["mode"],
            show.duration(row["p50_ms"]), show.duration(row["then_ms"]),
            f"{float(row['change']):.2f}",
            f"{float(row['change_eager']):.2f}" if row["change_eager"] else "",
        )  # fmt: skip
    return shown
