"""``docs/performance.md`` from the result files: every number in it stands in a CSV of ours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from . import plots, record, show

HEAD = """\
# Performance

Written by `python -m sublimate bench --report docs/performance.md` from the files in
`bench/results`, newest row of each case; do not edit. What is timed, and how:
`bench/README.md`. A ratio is our median time over the peer's in the same
run, less is better; **bold** where we lose. Roofline: the least time that our traffic and
arithmetic can take on that machine, as a share of our time. Kept: bytes for backward, of each
element of the first input.
"""

_MODES = {"fwd": "forward", "bwd": "backward", "both": "both"}
_OF = re.compile(r"([0-9.e+-]+) of ([^,]+)")

CsvRow = dict[str, str]


def ratios(row: CsvRow) -> dict[str, float]:
    """Peer -> our median over its own. Peers of one family alone are told in the row's note."""
    found = {
        peer: float(row[f"ratio_{peer}"])
        for peer in ("eager", "compile")
        if row[f"ratio_{peer}"] and row["provider"] != peer
    }
    return found | {peer.strip(): float(ratio) for ratio, peer in _OF.findall(row["note"])}


def shown(value: float) -> str:
    """A ratio to a peer, bold where we lose."""
    return f"**{value:.2f}**" if value > 1 else f"{value:.2f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: CsvRow) -> tuple[str, ...]:
    against = ", ".join(f"{shown(value)} {peer}" for peer, value in ratios(row).items())
    limits = [f"<= {float(row['bar']):g}"] if row["bar"] else []
    limits += [f">= {float(row['fraction_bar']):.0%}"] if row["fraction_bar"] else []
    goal = " ".join([*limits, "(missed)"] if row["bar_met"] == "no" else limits)
    kept = int(row["saved_bytes"]) / int(row["elements"])
    return (
        row["case"].removeprefix(row["family"] + "/").rsplit("/", 1)[0],
        row["provider"].removeprefix("sublimate-"),
        _MODES[row["mode"]],
        show.duration(row["p50_ms"]),
        against,
        goal,
        f"{float(row['fraction']):.0%} {row['bound']}",
        f"{kept:.3g}",
    )


def _losses(rows: list[CsvRow]) -> list[str]:
    """Cases in which a peer is faster as a whole (forward and backward where both are timed)."""
    whole = {(r["case"], r["provider"]): r for r in rows if r["mode"] == "both"}
    whole |= {
        (r["case"], r["provider"]): r for r in rows if (r["case"], r["provider"]) not in whole
    }
    lines = []
    for row in whole.values():
        worse = [f"{v:.2f}x {peer}" for peer, v in ratios(row).items() if v > 1]
        if worse:
            lines.append(f"- `{row['case']}`, {row['provider']}: {', '.join(worse)}")
    return lines


def _section(path: Path) -> list[str]:
    ours = [r for r in plots.latest(path) if r["provider"].startswith("sublimate-")]
    if not ours:
        return []
    last = ours[-1]
    lines = [
        f"## {last['device']}, {last['threads']} threads",
        "",
        f"torch {last['torch']}, Python {last['python']}; `bench/results/{path.name}`.",
        "",
    ]
    groups: dict[tuple[str, str], list[CsvRow]] = defaultdict(list)
    for row in ours:
        groups[row["family"], row["allocator"]].append(row)
    heading = ("case", "provider", "", "median", "ratio to", "goal", "roofline", "kept")
    for (family, allocator), rows in groups.items():
        days = sorted({r["timestamp"][:10] for r in rows})
        commits = sorted({r["commit"] for r in rows})
        lines += [
            f"### {family}, {allocator} allocator",
            "",
            f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))} at {', '.join(commits)}.",
            "",
            _line(heading),
            _line(["---"] * len(heading)),
            *(_line(_cells(row)) for row in rows),
            "",
        ]
        losses = _losses(rows)
        if losses:
            lines += ["Where a peer is faster as a whole:", "", *losses, ""]
    return lines


def text(files: Iterable[Path]) -> str:
    """The page, of all result files in order of their names."""
    lines = [HEAD]
    for path in sorted(files):
        lines += _section(path)
    return "\n".join(lines).rstrip() + "\n"


def write(target: Path, folder: Path = record.RESULTS) -> Path:
    """Writes the page from the files of ``folder`` and returns its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text(folder.glob("*.csv")), encoding="utf-8")
    return target
