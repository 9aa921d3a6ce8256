"""Unwritten memory shows: in every allocator, inside our ops, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from helpers import nan_fill
from sublimate import fewbit
from sublimate.fewbit import ops


def garbage(t: torch.Tensor) -> bool:
    """Whether t holds what nan_fill writes and nothing else."""
    if t.dtype in nan_fill.FLOATS:
        return bool(t.isnan().all())
    if t.dtype == torch.bool:
        return bool(t.all())
    return bool((t == torch.iinfo(t.dtype).max).all())


@pytest.mark.parametrize("dtype", [*nan_fill.FLOATS, *nan_fill.INTEGERS, torch.bool], ids=str)
def test_allocators(dtype):
    like = torch.zeros(3, 5, dtype=dtype).t()
    for t in (
        torch.empty(7, dtype=dtype),
        torch.empty((4, 2), dtype=dtype),
        torch.empty_like(like),
        torch.zeros(2).new_empty(3, dtype=dtype),
        torch.empty_strided((3, 2), (1, 4), dtype=dtype),
        like.new_empty_strided((3, 2), (2, 1)),
    ):
        assert t.dtype == dtype and garbage(t)
    assert torch.empty_like(like).stride() == like.stride()
    assert torch.zeros(3, dtype=dtype).sum() == 0 and torch.ones(3, dtype=dtype).all()


def test_keywords():
    assert torch.empty(3, requires_grad=True).requires_grad
    assert torch.empty(0).numel() == 0
    assert torch.empty(3, device="meta").is_meta
    out = torch.ones(3)
    assert torch.empty(3, out=out) is out and (out == 1).all()
    with torch.device("meta"):
        assert torch.empty(3).is_meta
    assert torch.empty(2, 2, layout=torch.sparse_coo).is_sparse


def test_kernel_that_writes_nothing(monkeypatch):
    """Outputs of our ops come through the patched allocators: an idle kernel is seen."""
    monkeypatch.setattr(ops, "_run_fwd", lambda *arguments: None)
    x = torch.randn(70, requires_grad=True)
    y = fewbit.gelu(x, bits=3, backend="cpu")
    assert garbage(y.detach())
    (packed,) = (t for t in y.grad_fn.saved_tensors if t.dtype == torch.int32)
    assert packed.numel() == 9 and garbage(packed)

    monkeypatch.setattr(ops.native, "bwd", lambda *arguments: None)
    (dx,) = torch.autograd.grad(y, x, torch.ones(70))
    assert garbage(dx)


def test_kernel_that_writes_nothing_compiled(monkeypatch):
    """Within torch.compile the opaque op still runs its real body, allocators included."""
    monkeypatch.setattr(ops, "_run_fwd", lambda *arguments: None)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: fewbit.silu(x, backend="cpu"), backend="aot_eager")
    assert garbage(compiled(torch.randn(33)))


def test_compiled_allocators_work():
    """Dynamo, AOT tracing and vmap meet the patched functions and are not disturbed."""

    def f(x):
        return torch.empty_like(x).copy_(x) + x.new_empty(4).zero_() + torch.empty(4).fill_(1.0)

    torch.compiler.reset()
    x = torch.arange(4.0)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), x + 1)
    traced = torch.fx.experimental.proxy_tensor.make_fx(f, tracing_mode="fake")(x)
    assert torch.equal(traced(x), x + 1)
    assert torch.equal(torch.func.vmap(lambda r: r + torch.empty(4).zero_())(x[None]), x[None])
