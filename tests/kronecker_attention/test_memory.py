"""O(N) memory: what is kept for backward, and what is needed meanwhile, by the profiler."""

from __future__ import annotations

import pytest
import torch
from helpers.kronecker_cases import normal
from sublimate import memory
from sublimate.kronecker_attention import kronecker_attention, polynomial_attention
from torch.profiler import ProfilerActivity, profile


def peak(function) -> int:
    """Most bytes that were allocated at once above the start, on the CPU, by torch."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = function()
    del result
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def leaves(n, dim=8):
    return [normal((1, 1, n, dim), s, torch.float32, 0.3).requires_grad_() for s in range(5)]


def exact(n, **options):
    tensors = leaves(n)
    return lambda: torch.autograd.grad(
        kronecker_attention(*tensors, backend="cpu", **options).sum(), tensors
    )


def test_exact_is_linear():
    """Forward and backward: twice the length, twice the memory, and far below all pairs."""
    exact(32)()
    small, large = peak(exact(96)), peak(exact(192))
    assert small > 6 * 96 * 8 * 4, "the instrument sees nothing"
    assert large < 2.1 * small
    assert large < 192 * 192 * 8 * 4 / 5  # the products of keys alone


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (9, 30)}])
def test_kept_for_backward(options):
    """The five inputs, O and LSE."""
    tensors = leaves(100)
    kept = memory.saved_bytes(lambda: kronecker_attention(*tensors, backend="cpu", **options))
    assert kept == 4 * (6 * 100 * 8 + 100)


def test_features_are_never_stored():
    """Degree 2 in 16 dimensions: 153 features of each row would be ten times the input."""
    n = 2048
    tensors = leaves(n, 16)

    def run():
        out = polynomial_attention(tensors[0], tensors[1:3], tensors[3:], degree=2, backend="cpu")
        return torch.autograd.grad(out.sum(), tensors)

    run()
    features = 4 * n * 153
    assert peak(run) < features
    kept = memory.saved_bytes(
        lambda: polynomial_attention(tensors[0], tensors[1:3], tensors[3:], backend="cpu")
    )
    assert kept < features / 1.5


def test_native_scratch_is_linear():
    """What the kernels take by themselves, which torch does not see: of the whole process."""
    import subprocess
    import sys

    code = """
import resource, torch
from sublimate.kronecker_attention import kronecker_attention
torch.set_num_threads(2)
def run(n):
    t = [torch.randn(1, 1, n, 8).requires_grad_() for _ in range(5)]
    kronecker_attention(*t, backend="cpu").sum().backward()
run(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(512)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 512^2 logits are 1 MiB, products of keys 8 MiB, all logits 512 MiB.
    assert int(done.stdout) < 8 * 1024
