"""A backend that is named runs its own kernels, forward and backward, and no other's."""

from __future__ import annotations

import pytest
import torch
from helpers.kronecker_cases import normal
from sublimate import _native
from sublimate.kronecker_attention import (
    KroneckerAttention,
    kronecker_attention,
    polynomial_attention,
    strassen_attention,
)

EXACT = {"kronecker_attention": 1, "kronecker_attention_backward": 1}
SUMS = {"kronecker_polynomial": 1, "kronecker_polynomial_backward": 1}
CALLS = {
    "exact": (lambda *t, **o: kronecker_attention(*t, method="exact", **o), EXACT),
    "auto": (kronecker_attention, EXACT),
    "auto, within a tolerance": (
        lambda q, *t, **o: kronecker_attention(q * 0.01, *t, tol=0.5, **o), SUMS,
    ),
    "polynomial": (lambda *t, **o: kronecker_attention(*t, method="polynomial", **o), SUMS),
    "hybrid": (
        lambda *t, **o: kronecker_attention(
            *t, method="hybrid", causal=True, window=(3, 4), **o
        ),
        EXACT | dict.fromkeys(SUMS, 2),
    ),
    "any order": (
        lambda q, k1, k2, v1, v2, **o: polynomial_attention(q, [k1, k2, k1], [v1, v2, v1], **o),
        SUMS,
    ),
    "strassen": (strassen_attention, EXACT),
}  # fmt: skip


@pytest.fixture
def leaves():
    shapes = ((1, 2, 120, 4), *((1, 1, 120, 4),) * 4)
    return [normal(s, at, torch.float32).requires_grad_() for at, s in enumerate(shapes)]


@pytest.mark.skipif(_native.CPU.reason() is not None, reason="no CPU module")
@pytest.mark.parametrize("backend", ["cpu", "reference", "auto", None])
@pytest.mark.parametrize("name", CALLS)
def test_its_own_kernels_run(name, backend, leaves, calls):
    function, due = CALLS[name]
    with torch.no_grad():
        plain = function(*leaves, backend=backend)
    out = function(*leaves, backend=backend)
    assert torch.equal(plain, out)
    torch.autograd.grad(out.sum(), leaves)
    if backend == "reference":
        assert not calls
        return
    forward = {n: 2 * c for n, c in due.items() if not n.endswith("backward")}
    assert {n: c for n, c in calls.items() if n.startswith("kronecker")} == due | forward
    assert calls["cuda"] == calls["triton"] == 0


@pytest.mark.skipif(_native.CPU.reason() is not None, reason="no CPU module")
def test_of_a_module(calls):
    x = normal((1, 9, 8), 0, torch.float32)
    for backend, ran in (("reference", 0), ("cpu", 1), (None, 2)):
        KroneckerAttention(8, 2, backend=backend)(x)[0].sum().backward()
        assert calls["kronecker_attention"] == calls["kronecker_attention_backward"] == ran
