"""The CSV of results, one file per device: appended to, never rewritten."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from sublimate import _info

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"

#: Times in ms, sizes in bytes. ``ratio_*`` are medians over that peer's; empty where parity is red.
COLUMNS = (
    "timestamp",
    "commit",
    "device",
    "threads",
    "python",
    "torch",
    "triton",
    "sublimate",
    "case",
    "family",
    "op",
    "bits",
    "dtype",
    "elements",
    "mode",
    "provider",
    "allocator",
    "samples",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "peak_bytes",
    "saved_bytes",
    "ratio_eager",
    "ratio_compile",
    "bar",
    "bar_met",
    "bytes_moved",
    "flops",
    "copy_gbs",
    "matmul_gflops",
    "roofline_ms",
    "bound",
    "fraction",
    "fraction_bar",
    "gradient_error",
    "parity",
    "note",
)

Row = dict[str, Any]


def device_name(device: str) -> str:
    """Model of the processor or GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else _info.processor()


def slug(name: str) -> str:
    """File name of a device."""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def commit() -> str:
    """Short hash of the checkout, with "+" if it has changes; empty outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(
            git("status", "--porcelain", "-uno")
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def environment(device: str) -> Row:
    """The columns that are the same for every row of a run on that device."""
    report = _info.report()
    return {
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: report[name] or "" for name in ("python", "torch", "triton", "sublimate")},
    }


def append(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to the CSV, with a heading if it is new.

    Raises:
        ValueError: the file has other columns (it was written by another version): name another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file))
        if tuple(found) != COLUMNS:
            raise ValueError(f"{path}: expected the columns {COLUMNS}, got {tuple(found)}")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
