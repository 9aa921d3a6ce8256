"""Benchmarks of Kronecker attention: their gate sees errors, their peers compute the same."""

from __future__ import annotations

import pytest
import torch
from sublimate import _native
from sublimate._parity import Measurement

from bench.harness import runner
from bench.kronecker_attention.cases import cases, factored, over_all_pairs


@pytest.fixture(scope="module", autouse=True)
def needs_cpu_kernels():
    if _native.CPU.reason() is not None:
        pytest.skip(f"needs the compiled CPU module: {_native.CPU.reason()}")


TINY = [c for c in cases(quick=True) if c.device == "cpu"]


@pytest.mark.parametrize("case", TINY, ids=lambda c: c.id)
def test_verifies(case):
    inputs, dy = case.inputs()
    ours = next(p for p in case.providers if not p.peer)
    measured = case.verify(ours.make(), inputs, dy)
    assert measured and all(isinstance(m, Measurement) and m.passed for m in measured)


@pytest.mark.parametrize("wrong", [0, 3])
@pytest.mark.parametrize("case", TINY, ids=lambda c: c.id)
def test_a_wrong_kernel_is_red(case, wrong):
    """A thousandth off in one input, in its gradient as well."""
    inputs, dy = case.inputs()
    ours = next(p for p in case.providers if not p.peer).make()
    off = lambda *t: ours(*(x * 1.001 if at == wrong else x for at, x in enumerate(t)))  # noqa: E731
    assert not all(m.passed for m in case.verify(off, inputs, dy))


def test_rows_of_a_case():
    case = TINY[0]
    rows = runner.run_case(case, "cold", 1, True)
    found = {(r["provider"], r["mode"]): r for r in rows}
    assert found["sublimate-cpu", "both"]["parity"] == "pass"
    n, d = case.shapes[0][2:]
    assert found["sublimate-cpu", "both"]["saved_bytes"] == 4 * 4 * n * (6 * d + 1)
    # Keys and values of all pairs, at the least.
    assert found["eager", "both"]["saved_bytes"] > 2 * 4 * 4 * n * n * d
    assert float(found["sublimate-cpu", "both"]["gradient_error"]) < 1e-5


def test_peers_agree():
    tensors = [torch.randn(1, 2, 9, 4, dtype=torch.float64) * 0.1 for _ in range(5)]
    torch.testing.assert_close(
        over_all_pairs(*tensors), factored(*tensors, degree=6), rtol=1e-6, atol=1e-8
    )
