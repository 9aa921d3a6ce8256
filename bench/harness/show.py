"""Rows of a run as a table for the terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from .record import Row


def duration(ms: str | float) -> str:
    """Milliseconds in a unit that reads well."""
    value = float(ms)
    return f"{1e3 * value:.2f} us" if value < 0.1 else f"{value:.2f} ms"


def _ratio(row: Row, peer: str) -> str:
    value = row.get(f"ratio_{peer}")
    return f"{float(value):.2f}x" if value else ""


def _per_element(row: Row) -> str:
    return f"{int(row['saved_bytes']) / int(row['elements']):.3g}"


def _peak(row: Row) -> str:
    if row.get("peak_bytes", "") == "":
        return ""
    n = int(row["peak_bytes"])
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.1f} KiB"


def _bar(row: Row) -> str:
    if not row.get("bar_met"):
        return ""
    limits = [f"<= {float(row['bar']):g}x"] if row.get("bar") else []
    limits += [f">= {float(row['fraction_bar']):.0%}"] if row.get("fraction_bar") else []
    tone = "green" if row["bar_met"] == "yes" else "red"
    return f"[{tone}]{', '.join(limits)}[/{tone}]"


CAPTION = (
    "vs: median over the peer's, less is better. Roofline: the least time that our traffic and "
    "arithmetic can take on this machine, as a share of the median, and what sets it."
)
_COLUMNS = {
    "provider": 17,
    "mode": 4,
    "p50": 9,
    "p20 - p80": 21,
    "vs eager": 8,
    "vs compile": 10,
    "bar": 15,
    "roofline": 14,
    "saved B/el": 10,
    "peak": 10,
}


def tables(rows: list[Row]) -> list[Table]:
    """One table per case and allocator, a line per provider and mode.

    Red parity has no times and no ratios.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['case']}, {row['allocator']} allocator", []).append(row)
    return [_table(heading, part) for heading, part in groups.items()]


def _table(heading: str, rows: list[Row]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escape(heading), title_justify="left")
    for k, (column, width) in enumerate(_COLUMNS.items()):
        justify = "left" if k < 2 else "right"
        shown.add_column(column, no_wrap=True, min_width=width, justify=justify)
    for row in rows:
        if row.get("p50_ms", "") == "":
            tone, word = (
                ("red", "PARITY RED") if row.get("parity") == "red" else ("yellow", "not run")
            )
            shown.add_row(row["provider"], "", f"[{tone}]{word}[/{tone}]")
            continue
        shown.add_row(
            row["provider"],
            row["mode"],
            duration(row["p50_ms"]),
            f"{duration(row['p20_ms'])} - {duration(row['p80_ms'])}",
            _ratio(row, "eager"),
            _ratio(row, "compile"),
            _bar(row),
            f"{float(row['fraction']):.0%} {row['bound']}",
            _per_element(row),
            _peak(row),
        )
    return shown


def remarks(rows: list[Row]) -> list[str]:
    """Why something has no numbers, or how it compares with peers that have no column."""
    found: dict[str, None] = {}
    for row in rows:
        if row.get("note"):
            word = "parity red, not timed" if row.get("parity") == "red" else "not run"
            if row.get("p50_ms", "") != "":
                word = "time"
            found[f"{row['case']}, {row['provider']}: {word}: {row['note']}"] = None
    return list(found)
