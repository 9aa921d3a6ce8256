"""torch.library.opcheck on every registered op: schema, fake tensors, tracing, dynamic shapes."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import mixture

# Importing the family registers them.
from sublimate import multicut  # noqa: F401

ops = torch.ops.sublimate
N = 20
OFFSETS = torch.tensor([0, 8, 8, N])
LABELS = torch.arange(N) % 3 + 3 * (torch.arange(N) >= 8)
SLOTS = torch.tensor([0, 3, 3, 6])


def cases(backend, dtype, weighted):
    """Name -> arguments of a call on three instances, one of them empty."""
    x = mixture(N, 5, 0, 0.8)[0].to(dtype)
    w = torch.linspace(0.5, 1.5, N, dtype=dtype) if weighted else None
    nodes = (x, w, OFFSETS, 0.3, 1)
    state = ops.multicut_contract(x, w, LABELS, 6, "reference")
    target, _ = ops.multicut_best_cluster(*nodes, LABELS, *state, SLOTS, "reference")
    _, near = ops.multicut_topk(*nodes, None, None, None, 3, 0, "reference")
    order = torch.arange(N)
    lowest = torch.tensor([0, 1, 2, 8, 9, 10])[LABELS]
    yield "topk", (*nodes, None, None, None, 2, 0, backend)
    yield "topk", (*nodes, x[:9], None if w is None else w[:9], torch.tensor([0, 4, 4, 9]), 2, None,
                   backend)  # fmt: skip
    yield "negative_sum", (*nodes, backend)
    yield "contract", (x, w, LABELS, 6, backend)
    yield "best_cluster", (*nodes, LABELS, *state, SLOTS, backend)
    yield "move", (*nodes, LABELS, *state, SLOTS, order, OFFSETS, target, backend)
    yield "gaec", (*nodes, backend)
    yield "kernighan_lin", (*nodes, lowest, 0, 3, backend)
    yield "lazy", (*nodes, near, backend)


def test_every_op_is_here():
    """A new op of the family must be added to this file; gaec_graph is in test_graph.py."""
    prefix = "sublimate::multicut_"
    registered = {
        name.removeprefix(prefix).partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    }
    here = {name for name, _ in cases("reference", torch.float32, False)}
    assert registered - {"gaec_graph"} == here


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck(backend, dtype, weighted):
    for name, arguments in cases(backend, dtype, weighted):
        torch.library.opcheck(getattr(ops, f"multicut_{name}"), arguments)
