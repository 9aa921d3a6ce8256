"""Greedy contraction of sparse graphs, so that nearest-neighbour instances run too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks
from . import arguments
from .autograd import ops


def gaec_graph(
    edges: Tensor,
    costs: Tensor,
    *,
    nodes: int | None = None,
    return_merges: bool = False,
    backend: str | None = None,
) -> Any:
    """Greedy additive edge contraction of a sparse graph; absent edges cost nothing.

    Contracts the edge of largest positive cost, parallel edges adding up, until none is positive;
    equal costs by lower, then higher smallest member. (Keuper et al., "Efficient Decomposition of
    Image and Mesh Graphs by Lifted Multicuts", ICCV 2015.)

    Args:
        edges: (m, 2) integers, ends of each edge, different from one another; repeated edges add.
        costs: (m,) finite floating numbers; positive attracts. Computed in float64.
        nodes: number of nodes; default the largest end plus one.
        return_merges: also return what was contracted.
        backend: "cpu" or "reference" (plain Python, for tiny graphs). The heap is sequential, so
            there is no GPU kernel: tensors on a GPU are copied to the host and the labels back.

    Returns:
        labels (nodes,) int64, numbered by first appearance; with ``return_merges`` also the merges
        (c, 2), smallest members of the two clusters, and their costs (c,) float64.

    Raises:
        TypeError, ValueError: a bad argument; raised before anything runs.
        BackendUnavailable: a GPU backend was named.

    O(m log m) for the heap, plus for each contraction the degree of the absorbed cluster.
    """
    if not isinstance(edges, Tensor):
        raise _checks.fail_type("edges", "a torch.Tensor of integers, shape (m, 2)", edges)
    if edges.dtype not in arguments.INTEGERS:
        raise _checks.fail_kind("edges", "a tensor of integers", str(edges.dtype))
    _checks.dense("edges", edges)
    if edges.dim() != 2 or edges.shape[1] != 2:
        raise _checks.fail_value("edges", "shape (m, 2)", tuple(edges.shape))
    _checks.floating_tensor("costs", costs)
    for name, t in (("edges", edges), ("costs", costs)):
        _checks.readable(name, t)
    if costs.shape != edges.shape[:1]:
        raise _checks.fail_value(
            "costs", f"one cost per edge, shape ({len(edges)},)", tuple(costs.shape)
        )
    if costs.device != edges.device:
        raise _checks.fail_value("costs", f"a tensor on {edges.device}", costs.device)
    arguments.finite("costs", costs.detach())
    low, high = (int(v) for v in torch.aminmax(edges)) if edges.numel() else (0, -1)
    if nodes is None:
        nodes = high + 1
    _checks.integer_between("nodes", nodes, 0, 2**31 - 1)
    if low < 0 or high >= nodes:
        raise _checks.fail_value("edges", f"ends from 0 to {nodes - 1}", low if low < 0 else high)
    loops = (edges[:, 0] == edges[:, 1]).nonzero()
    if len(loops):
        raise _checks.fail_value("edges", "two different ends", edges[loops[0, 0]].tolist())
    _checks.flags(return_merges=return_merges)
    host = costs.detach().cpu().double().contiguous()
    chosen = _graph_backend(backend, host)
    labels, merges, gains, count = ops.multicut_gaec_graph(
        edges.cpu().long().contiguous(), host, nodes, chosen
    )
    labels = labels.to(edges.device)
    if not return_merges:
        return labels
    made = int(count)
    return labels, merges[:made].to(edges.device), gains[:made].to(edges.device)


def _graph_backend(backend: str | None, host: Tensor) -> str:
    """cpu or reference; a process-wide setting for a GPU does not concern this function."""
    if backend in ("cuda", "triton"):
        raise _backends.BackendUnavailable(
            f"backend {backend!r} of sublimate.multicut cannot run gaec_graph: its heap is "
            "sequential. Would work: reference, cpu."
        )
    if backend is None and _backends.get_backend() in ("cuda", "triton"):
        backend = "auto"
    return _backends.resolve("multicut", backend, host)
