"""Memory of the solver, measured from outside: nothing of size n x n, nor of size n x K."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.processes import environment

SCRIPT = """
import resource, sys, torch
from helpers.mixtures import mixture
from sublimate.multicut import dense_multicut
n, restarts = int(sys.argv[1]), int(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x, _ = mixture(n, 32, 0, 0.7)
dense_multicut(x[:3000].clone(), alpha=0.4, restarts=restarts)  # code, threads, first use
before = peak()
labels, info = dense_multicut(x, alpha=0.4, restarts=restarts, return_info=True)
print(before, peak(), int(labels.max()) + 1, info.bytes)
"""


def run(n: int, restarts: int) -> tuple[float, int, float]:
    """(MB that the peak grew by, clusters, MB that the result tells)."""
    command = [sys.executable, "-c", SCRIPT, str(n), str(restarts)]
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment()
    )
    assert process.returncode == 0, process.stderr[-2000:]
    before, after, clusters, told = map(int, process.stdout.split())
    return (after - before) / 1024, clusters, told / 2**20


@pytest.mark.slow
@pytest.mark.parametrize(("n", "restarts"), [(50_000, 1), (20_000, 3)])
def test_peak(n, restarts):
    """An n x n table would take 10 GB, n x K values 48 MB a copy."""
    grown, clusters, told = run(n, restarts)
    assert clusters > 100
    assert grown <= 200 * n / 50_000 + 40 * (restarts > 1)
    assert 0 < told <= 40
