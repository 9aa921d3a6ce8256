"""Which lanes of the suite ran, and why the others could not: one line each at the end.

A test belongs to the lanes that ``@pytest.mark.lane(...)``, its path or its fixtures say; the names
travel with its report as user properties, so the summary is the same under pytest-xdist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import native_build

PROPERTY = "lane"


def no_gpu() -> str | None:
    """Why no test can use a GPU, or None."""
    import torch

    if torch.cuda.is_available():
        return None
    return "torch finds no CUDA device; on a machine with one: make gpu OUT=folder"


def no_nvcc() -> str | None:
    return (
        None if native_build.nvcc() else "no nvcc on PATH or under CUDA_HOME (CUDA toolkit 12.4+)"
    )


def no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"{error}; pip install triton"
    return None


@dataclass(frozen=True)
class LaneKind:
    """A lane: which files it owns, and why it may be impossible here."""

    name: str
    files: str  # regular expression on the path below tests/
    missing: Callable[[], str | None]


LANES = (
    LaneKind("emulator", r"^cuda_emulator/", native_build.missing_compiler),
    LaneKind("sanitizers", r"sanitizer", native_build.missing_compiler),
    LaneKind("triton interpreter", r"triton_interpreter", no_triton),
    LaneKind("triton AOT", r"triton_aot", no_triton),
    LaneKind("nvcc", r"test_cuda_build", no_nvcc),
    LaneKind("GPU", r"(?!)", no_gpu),  # by the marker gpu
    LaneKind("packaging", r"^packaging/(?!test_cuda_build)", native_build.missing_compiler),
)
NAMES = tuple(lane.name for lane in LANES)


def join(item: Any, name: str) -> None:
    """Counts a test (a pytest item) to a lane; a fixture may do so while the test runs."""
    if name not in NAMES:
        raise pytest.UsageError(f"{item.nodeid}: no such lane: {name!r}; there are {NAMES}")
    if (PROPERTY, name) not in item.user_properties:
        item.user_properties.append((PROPERTY, name))


def of_path(path: str) -> list[str]:
    """Lanes of a file, given its path or node id."""
    below = path.partition("::")[0].replace("\\", "/").rpartition("tests/")[2]
    return [lane.name for lane in LANES if re.search(lane.files, below)]


def assign(items: Iterable[pytest.Item]) -> None:
    """Gives each collected test its lanes, and tests marked gpu their skip where there is none."""
    without = no_gpu()
    for item in items:
        for name in of_path(item.nodeid):
            join(item, name)
        for mark in item.iter_markers("lane"):
            for name in mark.args:
                join(item, name)
        if item.get_closest_marker("gpu"):
            join(item, "GPU")
            if without:
                item.add_marker(pytest.mark.skip(reason=without))


@dataclass
class Count:
    """What became of one lane's tests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)  # ordered set

    def line(self, missing: Callable[[], str | None]) -> str:
        o = self.outcomes
        why = "; ".join(self.reasons) or "no reason given"
        if o["passed"] or o["failed"]:
            parts = [f"{o[kind]} {kind}" for kind in ("passed", "failed") if o[kind]]
            if o["skipped"]:
                parts.append(f"{o['skipped']} skipped ({why})")
            return "ran      " + ", ".join(parts)
        if o["skipped"]:
            return f"did not  {why}"
        reason = missing()
        return f"did not  {reason}" if reason else "did not  no test of it was selected"


def _reason(report: Any) -> str:
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ").strip()


def lines(stats: dict[str, list[Any]]) -> list[str]:
    """The summary, from the terminal reporter's statistics."""
    counts = {name: Count() for name in NAMES}
    for kind in ("passed", "failed", "error", "skipped"):
        for report in stats.get(kind, ()):
            names = [
                value for key, value in getattr(report, "user_properties", ()) if key == PROPERTY
            ]
            if not isinstance(report, pytest.TestReport):  # a whole file, skipped or broken
                names = of_path(report.nodeid)
            for name in names:
                counts[name].outcomes["failed" if kind == "error" else kind] += 1
                if kind == "skipped":
                    counts[name].reasons[_reason(report)] = None
    return [f"{lane.name:<20}{counts[lane.name].line(lane.missing)}" for lane in LANES]
