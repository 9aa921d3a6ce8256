"""Registered operators of dense multicut: schema, fake, and one implementation per backend.

``torch.ops.sublimate.multicut_*`` are private and not differentiable. Every op takes the nodes of
all instances one after the other with ``offsets`` [B + 1] (int64, on the features' device): one
instance is offsets = [0, n]. What each computes: csrc/multicut/kernels.h. ``backend`` may be
"reference": then reference.py runs. Outputs never alias inputs.

Features are fp32 or fp64 and contiguous; ``multicut_topk`` alone also takes fp16 and bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backends, _native
from .._dtypes import accumulator
from .._native import multicut as native
from . import reference, reference_graph, reference_kernighan_lin, reference_lazy

_library = torch.library.Library("sublimate", "FRAGMENT")

_NODES = "Tensor features, Tensor? weights, Tensor offsets, float alpha, int negative_dims"
_library.define(
    f"multicut_topk({_NODES}, Tensor? other, Tensor? other_weights, Tensor? other_offsets,"
    " SymInt k, SymInt? self_offset, str backend) -> (Tensor, Tensor)"
)
_library.define(f"multicut_negative_sum({_NODES}, str backend) -> Tensor")
_library.define(
    "multicut_contract(Tensor features, Tensor? weights, Tensor labels, SymInt clusters,"
    " str backend) -> (Tensor, Tensor, Tensor)"
)
_CLUSTERS = "Tensor labels, Tensor sums, Tensor masses, Tensor counts, Tensor slot_offsets"
_library.define(f"multicut_best_cluster({_NODES}, {_CLUSTERS}, str backend) -> (Tensor, Tensor)")
_library.define(
    f"multicut_move({_NODES}, {_CLUSTERS}, Tensor order, Tensor order_offsets, Tensor target,"
    " str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"multicut_gaec({_NODES}, str backend) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"multicut_kernighan_lin({_NODES}, Tensor labels, int neighbors, int rounds, str backend)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "multicut_gaec_graph(Tensor edges, Tensor costs, SymInt nodes, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"multicut_lazy({_NODES}, Tensor neighbors, str backend) -> Tensor")

# ----------------------------------------------------------------------------------- allocation


def _alloc_topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = x.new_empty((x.shape[0], k), dtype=accumulator(x.dtype))
    return values, x.new_empty((x.shape[0], k), dtype=torch.int64)


def _alloc_per_instance(x: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, dtype=dtype)


def _alloc_contract(x: Tensor, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty((clusters, x.shape[1]), dtype=torch.float64),
        x.new_empty(clusters, dtype=torch.float64),
        x.new_empty(clusters, dtype=torch.int64),
    )


def _alloc_best_cluster(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], dtype=torch.int64), x.new_empty(x.shape[0])


def _alloc_gaec(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = x.shape[0]
    labels = x.new_empty(n, dtype=torch.int64)
    return labels, x.new_empty((n, 2), dtype=torch.int64), x.new_empty(n)


def _alloc_gaec_graph(costs: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, merges, gains, number of merges; rows after that are unset."""
    return (
        costs.new_empty(nodes, dtype=torch.int64),
        costs.new_empty((nodes, 2), dtype=torch.int64),
        costs.new_empty(nodes),
        costs.new_empty(1, dtype=torch.int64),
    )


# ------------------------------------------------------------------------------- implementations


def _topk(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, other, other_weights, other_offsets, k,
    self_offset, backend
):  # fmt: skip
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    others = (other, other_weights, other_offsets)
    if backend == "reference":
        return reference.topk(*nodes, *others, k, self_offset)
    values, indices = _alloc_topk(features, k)
    if backend == "triton":
        from ..kernels.multicut import fwd

        fwd.topk(*nodes, *others, self_offset, values, indices)
        return values, indices
    if features.dtype != values.dtype:  # exact, and rescored as asked
        nodes = nodes._replace(features=features.to(values.dtype))
        others = (None if other is None else other.to(values.dtype), *others[1:])
    native.topk(backend, nodes, *others, self_offset, values, indices)
    return values, indices


def _negative_sum(features, weights, offsets, alpha, negative_dims, backend):  # type: ignore[no-untyped-def]
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    if backend == "reference":
        return reference.negative_sum(*nodes)
    sums = _alloc_per_instance(features, offsets, torch.float64)
    if backend == "triton":
        from ..kernels.multicut import fwd

        fwd.negative_sum(*nodes, sums)
    else:
        native.negative_sum(backend, nodes, sums)
    return sums


def _contract(features, weights, labels, clusters, backend):  # type: ignore[no-untyped-def]
    if backend == "reference":
        return reference.contract(features, weights, labels, clusters)
    out = _alloc_contract(features, clusters)
    if backend == "triton":
        from ..kernels.multicut import fwd

        fwd.contract(features, weights, labels, *out)
    else:
        native.contract(backend, features, weights, labels, *out)
    return out


def _best_cluster(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, labels, sums, masses, counts, slot_offsets,
    backend
):  # fmt: skip
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    clusters = native.Clusters(labels, sums, masses, counts, slot_offsets)
    if backend == "reference":
        return reference.best_cluster(*nodes, *clusters)
    out = _alloc_best_cluster(features)
    if backend == "triton":
        from ..kernels.multicut import fwd

        fwd.best_cluster(*nodes, *clusters, *out)
    else:
        native.best_cluster(backend, nodes, clusters, *out)
    return out


def _move(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, labels, sums, masses, counts, slot_offsets,
    order, order_offsets, target, backend
):  # fmt: skip
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    state = (labels.clone(), sums.clone(), masses.clone(), counts.clone())
    clusters = native.Clusters(*state, slot_offsets)
    if backend == "reference":
        moved = reference.move(*nodes, *clusters, order, order_offsets, target)
    else:
        moved = _alloc_per_instance(features, offsets, torch.int64)
        if backend == "triton":
            from ..kernels.multicut import fwd

            fwd.move(*nodes, *clusters, order, order_offsets, target, moved)
        else:
            native.move(backend, nodes, clusters, order, order_offsets, target, moved)
    return *state, moved


def _gaec(features, weights, offsets, alpha, negative_dims, backend):  # type: ignore[no-untyped-def]
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    if backend == "reference":
        return reference.gaec(*nodes)
    if backend == "triton":
        if _native.CPU.reason() is not None:
            return reference.gaec(*nodes)
        host, _ = _on_host(nodes)
        found = _alloc_gaec(host.features)
        native.gaec("cpu", host, *found)
        return tuple(t.to(features.device) for t in found)
    out = _alloc_gaec(features)
    native.gaec(backend, nodes, *out)
    return out


def _on_host(nodes: native.Nodes, *more: Tensor) -> tuple[native.Nodes, list[Tensor]]:
    """Where sequential kernels run that the backend has none of its own for."""
    weights = None if nodes.weights is None else nodes.weights.cpu()
    host = nodes._replace(
        features=nodes.features.cpu(), weights=weights, offsets=nodes.offsets.cpu()
    )
    return host, [t.cpu() for t in more]


def _kernighan_lin(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, labels, neighbors, rounds, backend
):
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    if backend == "reference" or _native.CPU.reason() is not None:
        return reference_kernighan_lin.kernighan_lin(*nodes, labels, neighbors, rounds)
    host, (chained,) = _on_host(nodes, labels.clone())
    gains = _alloc_per_instance(host.features, host.offsets, torch.float64)
    native.kernighan_lin("cpu", host, chained, neighbors, rounds, gains)
    return chained.to(labels.device), gains.to(labels.device)


def _lazy(features, weights, offsets, alpha, negative_dims, neighbors, backend):  # type: ignore[no-untyped-def]
    nodes = native.Nodes(features, weights, offsets, alpha, negative_dims)
    if backend == "reference" or _native.CPU.reason() is not None:
        return reference_lazy.lazy(*nodes, neighbors)
    host, (edges,) = _on_host(nodes, neighbors)
    labels = host.features.new_empty(features.shape[0], dtype=torch.int64)
    native.lazy("cpu", host, edges, labels)
    return labels.to(features.device)


def _gaec_graph(edges, costs, nodes, backend):  # type: ignore[no-untyped-def]
    out = _alloc_gaec_graph(costs, nodes)
    if backend == "reference":
        reference_graph.gaec_graph(edges, costs, *out)
    else:
        native.gaec_graph(edges, costs, *out)
    return out


_KEY = "CompositeExplicitAutograd"  # every device; the backend argument says which kernel
_library.impl("multicut_topk", _topk, _KEY)
_library.impl("multicut_negative_sum", _negative_sum, _KEY)
_library.impl("multicut_contract", _contract, _KEY)
_library.impl("multicut_best_cluster", _best_cluster, _KEY)
_library.impl("multicut_move", _move, _KEY)
_library.impl("multicut_gaec", _gaec, _KEY)
_library.impl("multicut_kernighan_lin", _kernighan_lin, _KEY)
_library.impl("multicut_gaec_graph", _gaec_graph, _KEY)
_library.impl("multicut_lazy", _lazy, _KEY)


def _fake(name: str):  # type: ignore[no-untyped-def]
    return torch.library.register_fake(f"sublimate::{name}", lib=_library)


@_fake("multicut_topk")
def _(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, other, other_weights, other_offsets, k,
    self_offset, backend
):  # fmt: skip
    return _alloc_topk(features, k)


@_fake("multicut_negative_sum")
def _(features, weights, offsets, alpha, negative_dims, backend):  # type: ignore[no-untyped-def]
    return _alloc_per_instance(features, offsets, torch.float64)


@_fake("multicut_contract")
def _(features, weights, labels, clusters, backend):  # type: ignore[no-untyped-def]
    return _alloc_contract(features, clusters)


@_fake("multicut_best_cluster")
def _(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, labels, sums, masses, counts, slot_offsets,
    backend
):  # fmt: skip
    return _alloc_best_cluster(features)


@_fake("multicut_move")
def _(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, labels, sums, masses, counts, slot_offsets,
    order, order_offsets, target, backend
):  # fmt: skip
    moved = _alloc_per_instance(features, offsets, torch.int64)
    return *(torch.empty_like(t) for t in (labels, sums, masses, counts)), moved


@_fake("multicut_gaec")
def _(features, weights, offsets, alpha, negative_dims, backend):  # type: ignore[no-untyped-def]
    return _alloc_gaec(features)


@_fake("multicut_kernighan_lin")
def _(  # type: ignore[no-untyped-def]
    features, weights, offsets, alpha, negative_dims, labels, neighbors, rounds, backend
):
    return torch.empty_like(labels), _alloc_per_instance(features, offsets, torch.float64)


@_fake("multicut_lazy")
def _(features, weights, offsets, alpha, negative_dims, neighbors, backend):  # type: ignore[no-untyped-def]
    return features.new_empty(features.shape[0], dtype=torch.int64)


@_fake("multicut_gaec_graph")
def _(edges, costs, nodes, backend):  # type: ignore[no-untyped-def]
    return _alloc_gaec_graph(costs, nodes)


_backends.register_family("multicut", tuple(_native.DTYPES))
