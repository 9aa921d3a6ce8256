"""The few-bit CPU cases, one benchmark per case, provider and mode; fixed rounds.

pytest-benchmark times providers one after the other in one process with the allocator as it is;
``python -m sublimate bench`` times the same cases interleaved, in both allocator regimes.
"""

from __future__ import annotations

import os

import pytest
import torch

from bench.fewbit.cases import cases
from bench.harness.case import Unavailable

ROUNDS = 15
QUICK = os.environ.get("BENCH_QUICK", "") not in ("", "0")
CASES = [c for c in cases(QUICK) if c.device == "cpu"]
PAIRS = [(c, p) for c in CASES for p in c.providers]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0].id}/{pair[1].name}")
def prepared(request):
    """(case, provider, forward, inputs, dy) with parity checked before anything is timed."""
    case, provider = request.param
    inputs, dy = case.inputs()
    try:
        forward = provider.make()
        forward(*inputs)
    except Unavailable as error:
        pytest.skip(f"{provider.name} cannot run here: {error}")
    red = [] if provider.peer else [m for m in case.verify(forward, inputs, dy) if not m.passed]
    assert not red, f"parity is red, nothing is timed: {red[:3]}"
    return case, provider, forward, inputs, dy


@pytest.mark.parametrize("mode", ["fwd", "bwd", "both"])
def bench_activation(benchmark, prepared, mode, threads):
    case, provider, forward, inputs, dy = prepared
    benchmark.group = f"{case.id} {mode}"
    benchmark.extra_info.update(
        threads=threads, provider=provider.name, bytes_moved=case.bytes_moved[mode]
    )
    calls = case.calls

    def setup():
        made = [forward(*inputs) for _ in range(calls)] if mode == "bwd" else []
        return (made,), {}

    def target(made):
        if mode == "bwd":
            for y in made:
                torch.autograd.grad(y, inputs, dy)
        elif mode == "fwd":
            for _ in range(calls):
                forward(*inputs)
        else:
            for _ in range(calls):
                torch.autograd.grad(forward(*inputs), inputs, dy)

    benchmark.pedantic(target, setup=setup, rounds=3 if QUICK else ROUNDS, warmup_rounds=1)
