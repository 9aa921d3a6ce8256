"""Wrappers of the dense multicut kernels; their arguments are those of csrc/multicut/kernels.h."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import CPU, DTYPES, Library, NativeError, guard, library

COMPUTED = (torch.float32, torch.float64)

# Blocks that fill a large GPU (some 132 multiprocessors, two each), and the most shares of the
# columns. Constants, not questions to the device: sums depend on the shares, and are to be the same
# on any.
_FILL, _MOST_SHARES, _TILE = 264, 32, 128


class Nodes(NamedTuple):
    """``Nodes`` of kernels.h: what the nodes are and what a pair of them is worth."""

    features: Tensor  # [N, d]
    weights: Tensor | None  # [N]
    offsets: Tensor  # [B + 1]
    alpha: float
    negative_dims: int


class Clusters(NamedTuple):
    """``Clusters`` of kernels.h: labels are slots."""

    labels: Tensor  # [N]
    sums: Tensor  # [K, d] fp64
    masses: Tensor  # [K] fp64
    counts: Tensor  # [K] int64
    offsets: Tensor  # [B + 1]


def _flat(op: str, lib: Library, argument: str, t: Tensor | None, *expected: object) -> int:
    """Address of a contiguous tensor; expected: its dtype and number of elements."""
    dtype, numel = expected
    assert isinstance(dtype, torch.dtype) and isinstance(numel, int)
    if t is not None and not t.is_contiguous():
        raise NativeError(f"{op}: expected contiguous {argument}, got strides {t.stride()}")
    return guard(op, argument, t, lib.device, (dtype,), numel)


def _nodes(op: str, lib: Library, nodes: Nodes) -> tuple[int | float, ...]:
    x = nodes.features
    if x.dim() != 2 or not x.is_contiguous():
        raise NativeError(f"{op}: expected contiguous features [n, d], got {tuple(x.shape)}")
    rows, dims = x.shape
    count = nodes.offsets.numel()
    return (
        DTYPES[x.dtype],
        guard(op, "features", x, lib.device, COMPUTED),
        _flat(op, lib, "weights", nodes.weights, x.dtype, rows),
        rows,
        dims,
        _flat(op, lib, "offsets", nodes.offsets, torch.int64, count),
        count - 1,
        nodes.alpha,
        nodes.negative_dims,
    )


def _clusters(op: str, lib: Library, nodes: Nodes, c: Clusters) -> tuple[int, ...]:
    slots, (rows, dims) = c.counts.numel(), nodes.features.shape
    return (
        _flat(op, lib, "labels", c.labels, torch.int64, rows),
        _flat(op, lib, "sums", c.sums, torch.float64, slots * dims),
        _flat(op, lib, "masses", c.masses, torch.float64, slots),
        _flat(op, lib, "counts", c.counts, torch.int64, slots),
        slots,
        _flat(op, lib, "slot offsets", c.offsets, torch.int64, nodes.offsets.numel()),
    )


def _shares(rows: int, columns: int, instances: int) -> int:
    """Parts into which a GPU divides the columns, where tiles of rows alone would leave it idle."""
    tiles = -(-rows // _TILE)
    wide = -(-columns // max(instances, 1) // _TILE)
    return max(1, min(-(-_FILL // max(tiles, 1)), wide, _MOST_SHARES))


def _work(lib: Library, like: Tensor, count: int) -> tuple[Tensor | None, int, int]:
    """Scratch of ``count`` bytes for a GPU kernel: (what to keep alive, address, bytes)."""
    if lib is CPU or count == 0:
        return None, 0, 0
    work = torch.empty(count, dtype=torch.uint8, device=like.device)
    return work, guard("scratch", "work", work, lib.device, (torch.uint8,)), count


def topk(
    backend: str,
    nodes: Nodes,
    other: Tensor | None,
    other_weights: Tensor | None,
    other_offsets: Tensor | None,
    self_offset: int | None,
    values: Tensor,
    indices: Tensor,
) -> None:
    """The best columns of each row; see csrc/multicut/kernels.h ``TopK``."""
    lib, op, x = library(backend), "multicut_topk", nodes.features
    columns = x.shape[0] if other is None else other.shape[0]
    k = values.shape[1]
    shares = _shares(x.shape[0], columns, nodes.offsets.numel() - 1)
    each = x.shape[0] * k * (x.element_size() + 8)
    work, *scratch = _work(lib, x, shares * each if shares > 1 else 0)
    lib.call(
        op,
        x,
        *_nodes(op, lib, nodes),
        _flat(op, lib, "other", other, x.dtype, columns * x.shape[1]),
        _flat(op, lib, "other weights", other_weights, x.dtype, columns),
        columns,
        _flat(op, lib, "other offsets", other_offsets, torch.int64, nodes.offsets.numel()),
        k,
        -1 if self_offset is None else self_offset,
        _flat(op, lib, "values", values, x.dtype, x.shape[0] * k),
        _flat(op, lib, "indices", indices, torch.int64, x.shape[0] * k),
        *scratch,
    )
    del work  # until here it is the kernel's; from here the stream orders its next use


def negative_sum(backend: str, nodes: Nodes, sums: Tensor) -> None:
    """Sum of the negative pairs; see csrc/multicut/kernels.h ``NegativeSum``."""
    lib, op, x = library(backend), "multicut_negative_sum", nodes.features
    rows, instances = x.shape[0], nodes.offsets.numel() - 1
    out = _flat(op, lib, "sums", sums, torch.float64, instances)
    work, *scratch = _work(lib, x, rows * 8 * _shares(rows, rows, instances))
    lib.call(op, x, *_nodes(op, lib, nodes), out, *scratch)
    del work


def contract(
    backend: str,
    features: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    sums: Tensor,
    masses: Tensor,
    counts: Tensor,
) -> None:
    """Sums of clusters; see csrc/multicut/kernels.h ``Contract``."""
    lib, op = library(backend), "multicut_contract"
    (rows, dims), clusters = features.shape, counts.numel()
    if not features.is_contiguous():
        raise NativeError(f"{op}: expected contiguous features")
    members = None if lib is CPU else labels.argsort(stable=True)
    lib.call(
        op,
        features,
        DTYPES[features.dtype],
        guard(op, "features", features, lib.device, COMPUTED),
        _flat(op, lib, "weights", weights, features.dtype, rows),
        rows,
        dims,
        _flat(op, lib, "labels", labels, torch.int64, rows),
        clusters,
        _flat(op, lib, "members", members, torch.int64, rows),
        _flat(op, lib, "sums", sums, torch.float64, clusters * dims),
        _flat(op, lib, "masses", masses, torch.float64, clusters),
        _flat(op, lib, "counts", counts, torch.int64, clusters),
    )


def best_cluster(
    backend: str, nodes: Nodes, clusters: Clusters, target: Tensor, gain: Tensor
) -> None:
    """The best other slot of each node; see csrc/multicut/kernels.h ``BestCluster``."""
    lib, op, x = library(backend), "multicut_best_cluster", nodes.features
    lib.call(
        op,
        x,
        *_nodes(op, lib, nodes),
        *_clusters(op, lib, nodes, clusters),
        _flat(op, lib, "target", target, torch.int64, x.shape[0]),
        _flat(op, lib, "gain", gain, x.dtype, x.shape[0]),
    )


def move(
    backend: str,
    nodes: Nodes,
    clusters: Clusters,
    order: Tensor,
    order_offsets: Tensor,
    target: Tensor,
    moved: Tensor,
) -> None:
    """Re-checked moves, in place on ``clusters``; see csrc/multicut/kernels.h ``Move``."""
    lib, op, x = library(backend), "multicut_move", nodes.features
    instances = nodes.offsets.numel() - 1
    lib.call(
        op,
        x,
        *_nodes(op, lib, nodes),
        *_clusters(op, lib, nodes, clusters),
        _flat(op, lib, "order", order, torch.int64, order.numel()),
        _flat(op, lib, "order offsets", order_offsets, torch.int64, instances + 1),
        _flat(op, lib, "target", target, torch.int64, x.shape[0]),
        _flat(op, lib, "moved", moved, torch.int64, instances),
    )


def gaec(backend: str, nodes: Nodes, labels: Tensor, merges: Tensor, costs: Tensor) -> None:
    """Exact greedy contraction; see csrc/multicut/kernels.h ``Gaec``."""
    lib, op, x = library(backend), "multicut_gaec", nodes.features
    needed = 0 if lib is CPU else lib.load().multicut_gaec_work(*x.shape)
    work, *scratch = _work(lib, x, needed)
    lib.call(
        op,
        x,
        *_nodes(op, lib, nodes),
        _flat(op, lib, "labels", labels, torch.int64, x.shape[0]),
        _flat(op, lib, "merges", merges, torch.int64, 2 * x.shape[0]),
        _flat(op, lib, "costs", costs, x.dtype, x.shape[0]),
        *scratch,
    )
    del work


def lazy(backend: str, nodes: Nodes, neighbors: Tensor, labels: Tensor) -> None:
    """Greedy contraction along edges; see csrc/multicut/kernels.h ``Lazy``."""
    lib, op, x = library(backend), "multicut_lazy", nodes.features
    lib.call(
        op,
        x,
        *_nodes(op, lib, nodes),
        _flat(op, lib, "neighbors", neighbors, torch.int64, neighbors.numel()),
        neighbors.shape[1],
        _flat(op, lib, "labels", labels, torch.int64, x.shape[0]),
    )


def kernighan_lin(
    backend: str, nodes: Nodes, labels: Tensor, neighbors: int, rounds: int, gains: Tensor
) -> None:
    """Chains of moves, in place on ``labels``; see csrc/multicut/kernels.h ``KernighanLin``."""
    lib, op, x = library(backend), "multicut_kernighan_lin", nodes.features
    lib.call(
        op,
        x,
        *_nodes(op, lib, nodes),
        _flat(op, lib, "labels", labels, torch.int64, x.shape[0]),
        neighbors,
        rounds,
        _flat(op, lib, "gains", gains, torch.float64, nodes.offsets.numel() - 1),
    )


def gaec_graph(
    edges: Tensor, costs: Tensor, labels: Tensor, merges: Tensor, gains: Tensor, count: Tensor
) -> None:
    """Greedy contraction of a sparse graph; see csrc/multicut/graph.h ``GraphGaec``."""
    lib, op, nodes, m = library("cpu"), "multicut_gaec_graph", labels.numel(), costs.numel()
    lib.call(
        op,
        edges,
        _flat(op, lib, "edges", edges, torch.int64, 2 * m),
        _flat(op, lib, "costs", costs, torch.float64, m),
        m,
        nodes,
        _flat(op, lib, "labels", labels, torch.int64, nodes),
        _flat(op, lib, "merges", merges, torch.int64, 2 * nodes),
        _flat(op, lib, "gains", gains, torch.float64, nodes),
        _flat(op, lib, "count", count, torch.int64, 1),
    )
