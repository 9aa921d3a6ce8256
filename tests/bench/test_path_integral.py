"""Benchmarks of path integrals: their gate sees errors, their numbers are the shapes'."""

from __future__ import annotations

import pytest
import torch
from sublimate import _native
from sublimate._parity import Measurement

from bench.harness import runner
from bench.path_integral.cases import cases


@pytest.fixture(scope="module", autouse=True)
def needs_cpu_kernels():
    if _native.CPU.reason() is not None:
        pytest.skip(f"needs the compiled CPU module: {_native.CPU.reason()}")


CPU = [c for c in cases(quick=True) if c.device == "cpu"]
TINY = [c for c in CPU if c.differentiable]
CALLS = [c for c in CPU if not c.differentiable]


def _provider(case):
    (ours,) = (p for p in case.providers if not p.peer)
    return ours


@pytest.mark.parametrize("case", TINY, ids=lambda c: c.id)
def test_every_case_verifies(case):
    inputs, dy = case.inputs()
    measured = case.verify(_provider(case).make(), inputs, dy)
    assert len(measured) == 2 and all(isinstance(m, Measurement) and m.passed for m in measured)


@pytest.mark.parametrize("case", TINY, ids=lambda c: c.id)
@pytest.mark.parametrize("wrong", ["last number", "gradient"])
def test_a_wrong_kernel_is_red(case, wrong):
    good = _provider(case).make()
    inputs, dy = case.inputs()

    def forward(leaf):
        if wrong == "gradient":  # the same numbers, a gradient that is not theirs
            return good(leaf.detach() + 1.25 * (leaf - leaf.detach()))
        y = good(leaf)
        shift = torch.zeros_like(y)
        shift.view(-1)[-1] = 0.5
        return y + shift

    assert any(not m.passed for m in case.verify(forward, inputs, dy))


def test_rows_of_a_case():
    """Least bytes of a chunk: every number once, what belongs to samples once."""
    case = next(c for c in TINY if c.op == "straight" and c.dtype == torch.bfloat16)
    found = {(r["provider"], r["mode"]): r for r in runner.run_case(case, "cold", 1, True)}
    assert set(found) == {(p, m) for p in ("eager", "sublimate-cpu") for m in ("fwd", "bwd")}
    k, b, e = case.output
    assert found["sublimate-cpu", "fwd"]["bytes_moved"] == 2 * k * b * e + 8 * b * e
    assert found["sublimate-cpu", "bwd"]["bytes_moved"] == 2 * k * b * e + 4 * b * e
    assert found["sublimate-cpu", "fwd"]["parity"] == "pass"


@pytest.mark.parametrize("case", CALLS, ids=lambda c: c.id)
def test_whole_calls_are_held_to_float64(case):
    (x,), dy = case.inputs()
    good = _provider(case).make()
    (measured,) = case.verify(good, (x,), dy)
    assert measured.passed
    (measured,) = case.verify(lambda x: 1.01 * good(x), (x,), dy)
    assert not measured.passed


@pytest.mark.parametrize("case", CALLS, ids=lambda c: c.id)
def test_peers_compute_the_same(case):
    """What a peer is timed at is the same attribution; the bare loop makes none."""
    pytest.importorskip("captum", reason="captum is not installed; pip install captum==0.9.0")
    inputs, dy = case.inputs()
    for provider in case.providers:
        if provider.name != "bare":
            (measured,) = case.verify(provider.make(), inputs, dy)
            assert measured.passed, provider.name
