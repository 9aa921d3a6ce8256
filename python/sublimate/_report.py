"""What a section of ``sublimate demo`` is and returns: families build it, the command shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn


class MissingExtra(RuntimeError):
    """A package that only the demo needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Settings:
    """Options of the command line. ``device``: "cpu" or "cuda", and there is one.

    ``few_bit(model, bits)`` converts a model's activations, for sections of other families: they
    meet in models, not in imports.
    """

    seed: int = 0
    quick: bool = False
    device: str = "cpu"
    few_bit: Callable[[nn.Module, int], object] = field(kw_only=True)


@dataclass(frozen=True)
class Figure:
    """One picture: inline SVG text, what it shows in a few words, and a sentence to read it by."""

    title: str
    caption: str
    svg: str


@dataclass
class Result:
    """What a section found.

    Attributes:
        title: heading.
        setting: what was run, in a sentence.
        finding: the result, in a sentence.
        columns, rows: the table, as shown.
        notes: one line under the table for each column that needs one.
        figures: pictures for the report.
        data: the same numbers for programs, ready for JSON.
        passed: whether every parity verdict is green.
    """

    title: str
    setting: str
    finding: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    passed: bool = False


#: (done, total, what is running) -> None; called often, cheap.
Progress = Callable[[int, int, str], None]


class Section(Protocol):
    """One family's part of the demo: ``sublimate.<family>.demo.section``."""

    @property
    def name(self) -> str:
        """Heading of the progress bar."""

    def run(self, settings: Settings, progress: Progress) -> Result:
        """Runs on the machine at hand. Raises MissingExtra if a package is missing."""
