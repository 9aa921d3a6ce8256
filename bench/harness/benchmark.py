"""The CPU cases of a family through pytest-benchmark: what each ``bench_*.py`` is made of.

pytest-benchmark times providers one after the other in one process with the allocator as it is;
``python -m sublimate bench`` times the same cases interleaved, in both allocator regimes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from .case import Case, Forward, Provider, Unavailable

QUICK = os.environ.get("BENCH_QUICK", "") not in ("", "0")
ROUNDS = 3 if QUICK else 15

Pair = tuple[Case, Provider]


def pairs(cases: list[Case]) -> list[Pair]:
    """Every provider of every CPU case."""
    return [(c, p) for c in cases if c.device == "cpu" for p in c.providers]


def pair_id(pair: Pair) -> str:
    return f"{pair[0].id}/{pair[1].name}"


@dataclass(frozen=True)
class Prepared:
    """A provider that has run once and whose parity is green."""

    case: Case
    provider: Provider
    forward: Forward
    inputs: tuple[Tensor, ...]
    dy: Tensor


def prepare(pair: Pair) -> Prepared:
    """Checks parity before anything is timed; skips what cannot run here."""
    case, provider = pair
    inputs, dy = case.inputs()
    try:
        forward = provider.make()
        forward(*inputs)
    except Unavailable as error:
        pytest.skip(f"{provider.name} cannot run here: {error}")
    verify = provider.verify or case.verify
    red = [] if provider.peer else [m for m in verify(forward, inputs, dy) if not m.passed]
    assert not red, f"parity is red, nothing is timed: {red[:3]}"
    return Prepared(case, provider, forward, inputs, dy)


def measure(benchmark: Any, p: Prepared, mode: str, threads: int, rounds: int = ROUNDS) -> None:
    """Times one mode, as the harness does."""
    if mode not in p.case.modes:
        pytest.skip(f"the case has modes {p.case.modes}")
    benchmark.group = f"{p.case.id} {mode}"
    benchmark.extra_info.update(
        threads=threads, provider=p.provider.name, bytes_moved=p.case.bytes_moved[mode]
    )
    calls = p.case.calls

    def setup() -> tuple[tuple[list[Tensor]], dict[str, Any]]:
        made = [p.forward(*p.inputs) for _ in range(calls)] if mode == "bwd" else []
        return (made,), {}

    def target(made: list[Tensor]) -> None:
        if mode == "bwd":
            for y in made:
                torch.autograd.grad(y, p.inputs, p.dy)
        elif mode == "fwd":
            for _ in range(calls):
                p.forward(*p.inputs)
        else:
            for _ in range(calls):
                torch.autograd.grad(p.forward(*p.inputs), p.inputs, p.dy)

    benchmark.pedantic(target, setup=setup, rounds=rounds, warmup_rounds=1)
