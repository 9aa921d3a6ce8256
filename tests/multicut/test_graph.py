"""Greedy contraction of sparse graphs: the heap against plain Python, and against dense GAEC."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import mixture, separated
from hypothesis import given
from hypothesis import strategies as st
from sublimate import multicut
from sublimate.multicut import reference as R


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 14),
    m=st.integers(0, 60),
    kind=st.sampled_from(["integers", "reals", "signs"]),
)
def test_heap_equals_plain_python(seed, n, m, kind):
    """Repeated edges, many ties, isolated nodes: the same merges in the same order."""
    g = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, n, (m, 2), generator=g)
    edges = edges[edges[:, 0] != edges[:, 1]]
    costs = {
        "integers": torch.randint(-3, 4, (len(edges),), generator=g).double(),
        "reals": torch.randn(len(edges), generator=g, dtype=torch.float64),
        "signs": 2.0 * torch.randint(0, 2, (len(edges),), generator=g).double() - 1,
    }[kind]
    cpu, python = (
        multicut.gaec_graph(edges, costs, nodes=n, return_merges=True, backend=backend)
        for backend in ("cpu", "reference")
    )
    for a, b in zip(cpu, python, strict=True):
        assert torch.equal(a, b)


def test_complete_graph_is_dense_gaec():
    x, _ = mixture(300, 8, 0, 0.8)
    s = R.pair_values(x.double(), None, 0.4)
    i, j = torch.triu_indices(300, 300, 1)
    labels, merges, gains = multicut.gaec_graph(torch.stack([i, j], 1), s[i, j], return_merges=True)
    found, pairs, costs = R.greedy_contraction(s)
    assert torch.equal(labels, R.by_first_appearance(found))
    assert merges.tolist() == [list(p) for p in pairs]
    torch.testing.assert_close(gains, torch.tensor(costs, dtype=torch.float64))


def test_nearest_neighbour_graph():
    """What it is for: attraction among nearest neighbours, repulsion of a sample of pairs."""
    x, z = separated(500, 16, 10, 0)
    _, columns = multicut.inner_product_topk(x, 8)
    near = torch.stack([torch.arange(500).repeat_interleave(8), columns.flatten()], 1)
    far = torch.randint(0, 500, (8000, 2))
    edges = torch.cat([near, far[far[:, 0] != far[:, 1]]]).sort(1).values.unique(dim=0)
    costs = (x[edges[:, 0]] * x[edges[:, 1]]).sum(1) - 0.4
    labels = multicut.gaec_graph(edges, costs, nodes=500)
    pairs = torch.stack([labels, z], 1).unique(dim=0)
    assert len(pairs) == len(labels.unique()) == 10, "the planted clusters"


def test_large_and_deterministic():
    g = torch.Generator().manual_seed(2)
    edges = torch.randint(0, 20_000, (100_000, 2), generator=g)
    edges = edges[edges[:, 0] != edges[:, 1]]
    costs = torch.randn(len(edges), generator=g)
    first = multicut.gaec_graph(edges, costs, nodes=20_000)
    order = torch.randperm(len(edges), generator=g)
    # Costs without repetition add in no order: shuffled edges, either way round, change nothing.
    assert torch.equal(multicut.gaec_graph(edges[order].flip(1), costs[order], nodes=20_000), first)
    assert torch.equal(first, R.by_first_appearance(first))


def test_edges_of_other_kinds():
    edges = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
    for costs in (torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0]).half()):
        assert multicut.gaec_graph(edges, costs).tolist() == [0, 0, 1]
    wide = edges.repeat_interleave(2, 1)[:, ::2]  # strided
    assert multicut.gaec_graph(wide, torch.ones(2, 2)[:, 0]).tolist() == [0, 0, 0]
    assert multicut.gaec_graph(edges[:0], torch.zeros(0)).shape == (0,)
    assert multicut.gaec_graph(edges[:0], torch.zeros(0), nodes=3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("edges", "costs", "options", "error", "says"),
    [
        ([[0, 1]], torch.ones(1), {}, TypeError, "edges: expected a torch.Tensor of integers"),
        (torch.ones(1, 2), torch.ones(1), {}, TypeError, "edges: expected a tensor of integers"),
        (torch.zeros(2, 3).long(), torch.ones(2), {}, ValueError, "edges: expected shape (m, 2)"),
        (torch.tensor([[0, 1]]), torch.ones(2), {}, ValueError, "costs: expected one cost per"),
        (torch.tensor([[0, 1]]), torch.ones(1).long(), {}, TypeError, "costs: expected a tensor"),
        (torch.tensor([[0, 1]]), torch.tensor([torch.nan]), {}, ValueError, "costs: expected fin"),
        (torch.tensor([[0, 1]]), torch.tensor([torch.inf]), {}, ValueError, "got inf"),
        (torch.tensor([[0, 5]]), torch.ones(1), {"nodes": 5}, ValueError, "from 0 to 4, got 5"),
        (torch.tensor([[-1, 1]]), torch.ones(1), {}, ValueError, "ends from 0 to 1, got -1"),
        (torch.tensor([[0, 1], [2, 2]]), torch.ones(2), {}, ValueError, "different ends, got [2"),
        (torch.tensor([[0, 1]]), torch.ones(1), {"nodes": 2.0}, TypeError, "nodes: expected an"),
    ],
)  # fmt: skip
def test_errors(edges, costs, options, error, says, calls):
    import re

    with pytest.raises(error, match=re.escape(says)):
        multicut.gaec_graph(edges, costs, **options)
    assert not calls


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_opcheck(backend):
    edges = torch.tensor([[0, 1], [1, 2], [0, 3]])
    costs = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    op = torch.ops.sublimate.multicut_gaec_graph
    # Rows after the last contraction are not written: the outputs of two calls need not agree.
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, (edges, costs, 4, backend), test_utils=names)


def test_no_gpu_backend():
    import sublimate

    edges, costs = torch.tensor([[0, 1]]), torch.ones(1)
    for name in ("cuda", "triton"):
        with pytest.raises(
            sublimate.BackendUnavailable, match="gaec_graph: its heap is sequential"
        ):
            multicut.gaec_graph(edges, costs, backend=name)
