"""Launchers of the multicut kernels. Arguments as in csrc/multicut/kernels.h.

Nodes of several instances lie one after the other, instance b in rows offsets[b] .. offsets[b + 1];
labels, slots and indices count over all of them. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton

from ..common.launch import accumulator, device_of
from . import clusters as clusters_kernels
from . import configs, pairs

if TYPE_CHECKING:
    from torch import Tensor


def _signed(x: Tensor, negative_dims: int) -> Tensor:
    """x with its last coordinates negated: an indefinite product becomes a plain one."""
    if negative_dims == 0:
        return x
    y = x.clone()
    y[:, x.shape[1] - negative_dims :].neg_()
    return y


def _factors(x: Tensor, weights: Tensor | None, alpha: float, like: Tensor) -> Tensor:
    """sqrt |alpha| w for each row of x, in the dtype of ``like``."""
    root = like.new_full((), math.sqrt(abs(alpha)))
    return root.repeat(x.shape[0]) if weights is None else root * weights


def _row_factors(x: Tensor, weights: Tensor | None, alpha: float, like: Tensor) -> Tensor:
    """The same with the sign of -alpha."""
    u = _factors(x, weights, alpha, like)
    return u if alpha < 0 else u.neg_()


def _bounds(offsets: Tensor, of: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """First column and end of the columns that each row meets: those of its instance."""
    row = torch.arange(rows, device=offsets.device)
    instance = torch.searchsorted(offsets, row, right=True) - 1
    return of[instance], of[instance + 1]


def _tame(*parts: Tensor) -> Tensor:
    """Whether no product of these numbers can overflow: () bool on their device. NaN: False."""
    limit = 1e150 if parts[0].dtype == torch.float64 else 1e15
    tame = torch.ones((), dtype=torch.bool, device=parts[0].device)
    for x in parts:
        if x.numel():
            tame &= x.abs().amax() < limit
    return tame


def _hip() -> bool:
    return torch.version.hip is not None


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size > configs.MOST_ROWS:
            raise ValueError(f"{name}: expected at most {configs.MOST_ROWS} rows, got {size}")


def _candidates(
    rows: Tensor,
    columns: Tensor,
    u: Tensor,
    v: Tensor,
    bounds: tuple[Tensor, Tensor],
    instances: int,
    skip: str,
    given: Tensor | None,
    self_at: int,
    k: int,
    keep: int,
) -> tuple[Tensor, Tensor]:
    """(n, shares, keep) values and int32 columns: the best of each share of the columns."""
    (n, d), m = rows.shape, columns.shape[0]
    config = configs.sweep(rows.element_size(), d, keep, _hip())
    shares = configs.shares(n, m // instances, keep, config)
    values = rows.new_empty((n, shares, keep), dtype=u.dtype)
    index = rows.new_empty((n, shares, keep), dtype=torch.int32)
    kernel = pairs.best_kernel if k == 1 else pairs.list_kernel
    tame = _tame(rows, columns, u, v)
    # Which of the two does the work is known on the device only; the other ends at once.
    for of_tame, launch in ((True, config), (False, configs.wild(rows.element_size(), keep))):
        kernel[(triton.cdiv(n, launch.bm), shares)](
            rows,
            columns,
            u,
            v,
            *bounds,
            given,
            tame,
            values,
            index,
            n,
            m,
            d,
            self_at,
            KEEP=keep,
            SKIP=skip,
            TAME=of_tame,
            **launch.constants(d),
            UPCAST=not of_tame or configs.upcast(rows.dtype),
            ACC=accumulator(u),
            **launch.options(),
        )
    return values, index


def topk(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    other: Tensor | None,
    other_weights: Tensor | None,
    other_offsets: Tensor | None,
    self_offset: int | None,
    values: Tensor,
    indices: Tensor,
) -> None:
    """Writes the k best ``<x_i, y_j> - alpha u_i v_j`` of each row i, ties by lowest j.

    Args:
        features: (n, d) contiguous; fp32, fp64, fp16 or bf16. 16-bit: tensor cores find a few
            candidates more than k, whose values are then taken anew in fp32.
        weights, other_weights: (n,) and (m,) fp32 (fp64 for fp64), or None: ones.
        other, other_offsets: (m, d) of the same dtype and (B + 1,), or None: the rows themselves.
        self_offset: column ``self_offset + i`` is passed over in row i.
        values, indices: (n, k) fp32 (fp64 for fp64) and int64; k at most ``configs.MOST_K``. -inf
            and -1 where an instance has fewer columns.

    O(n m d) time, O(n (k + shares)) memory beside the inputs.
    """
    n, d = features.shape
    k = values.shape[1]
    columns, column_weights, bounds = features, weights, offsets
    if other is not None:
        assert other_offsets is not None
        columns, column_weights, bounds = other, other_weights, other_offsets
    m = columns.shape[0]
    _check(features=n, other=m)
    if not 1 <= k <= configs.MOST_K:
        raise ValueError(f"k: expected 1 to {configs.MOST_K}, got {k}")
    if n == 0 or m == 0:
        values.fill_(-math.inf)
        indices.fill_(-1)
        return
    narrow = features.element_size() == 2
    rows = _signed(features, negative_dims)
    u = _row_factors(features, weights, alpha, values)
    v = _factors(columns, column_weights, alpha, values)
    keep = configs.candidates(k, narrow)
    with device_of(features):
        found, index = _candidates(
            rows, columns, u, v, _bounds(offsets, bounds, n), offsets.shape[0] - 1,
            "none" if self_offset is None else "self", None, self_offset or 0, k, keep,
        )  # fmt: skip
        count = found[0].numel()
        config = configs.join(count)
        pairs.join_kernel[(triton.cdiv(n, config.bm),)](
            rows if narrow else None,
            columns if narrow else None,
            u if narrow else None,
            v if narrow else None,
            found,
            index,
            values,
            indices,
            n,
            m,
            d,
            k,
            COUNT=count,
            ROOM=configs.room(count),
            RESCORE=narrow,
            ACC=accumulator(values),
            BM=config.bm,
            **config.options(),
        )


def negative_sum(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    sums: Tensor,
) -> None:
    """Writes the sum of min(0, s_ij) over i < j of each instance.

    Args:
        features, weights: (n, d) contiguous and (n,) or None; fp32 or fp64.
        sums: (B,) fp64.

    O(n^2 d / 2) time. The order of the sum depends on the sizes alone.
    """
    n, d = features.shape
    instances = offsets.shape[0] - 1
    _check(features=n)
    if n == 0:
        sums.zero_()
        return
    config = configs.sweep(features.element_size(), d, 1, _hip())
    shares = configs.shares(n, n // instances, 1, config)
    part = features.new_empty((n, shares), dtype=torch.float64)
    with device_of(features):
        pairs.negative_kernel[(triton.cdiv(n, config.bm), shares)](
            _signed(features, negative_dims),
            features,
            _row_factors(features, weights, alpha, features),
            _factors(features, weights, alpha, features),
            _bounds(offsets, offsets, n)[1],
            part,
            n,
            d,
            **config.constants(d),
            UPCAST=False,
            ACC=accumulator(features),
            **config.options(),
        )
        pairs.instance_sums_kernel[(instances,)](
            part, offsets, sums, shares, BLOCK=configs.SUM_BLOCK, num_warps=4
        )


def contract(
    features: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    sums: Tensor,
    masses: Tensor,
    counts: Tensor,
) -> None:
    """Writes sums of features (fp64), of weights (fp64) and counts of each label.

    Args:
        features, weights: (n, d) contiguous and (n,) or None; fp32 or fp64.
        labels: (n,) int64 in 0 .. K - 1.
        sums, masses, counts: (K, d), (K,) fp64 and (K,) int64.

    Members are added in order, in fp64: the same bits as a plain loop. O(n d) after a sort.
    """
    clusters, d = sums.shape
    if clusters == 0:
        return
    ordered, members = labels.sort(stable=True)
    first = torch.arange(clusters + 1, device=labels.device)
    starts = torch.searchsorted(ordered, first)
    block = configs.coordinates(d)
    with device_of(features):
        clusters_kernels.contract_kernel[(clusters, max(1, triton.cdiv(d, block)))](
            features, weights, members, starts, sums, masses, counts, d, clusters,
            BK=block, num_warps=1,
        )  # fmt: skip


def best_cluster(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    labels: Tensor,
    sums: Tensor,
    masses: Tensor,
    counts: Tensor,
    slot_offsets: Tensor,
    target: Tensor,
    gain: Tensor,
) -> None:
    """Writes each node's best slot other than its own, and the gain of going there.

    Args:
        features, weights: (n, d) contiguous and (n,) or None; fp32 or fp64.
        labels: (n,) int64 slots.
        sums, masses, counts: (K, d), (K,) fp64 and (K,) int64; slot_offsets: (B + 1,) int64.
        target, gain: (n,) int64 and of the dtype of the features; -1 and -inf without another slot.

    O(n K d) time.
    """
    n, d = features.shape
    slots = sums.shape[0]
    _check(features=n, sums=slots)
    if n == 0:
        return
    columns, mass = sums.to(features.dtype), masses.to(features.dtype)
    u = _row_factors(features, weights, alpha, features)
    with device_of(features):
        found, index = _candidates(
            _signed(features, negative_dims), columns, u, _factors(columns, mass, alpha, features),
            _bounds(offsets, slot_offsets, n), offsets.shape[0] - 1, "given", labels, 0, 1, 1,
        )  # fmt: skip
        count = found[0].numel()
        config = configs.join(count)
        clusters_kernels.gain_kernel[(triton.cdiv(n, config.bm),)](
            features,
            weights,
            labels,
            sums,
            masses,
            counts,
            sums.new_full((), alpha),
            found,
            index,
            target,
            gain,
            n,
            d,
            negative_dims,
            COUNT=count,
            ROOM=configs.room(count),
            ACC=accumulator(features),
            BM=config.bm,
            BK=config.bk,
            **config.options(),
        )


def move(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    labels: Tensor,
    sums: Tensor,
    masses: Tensor,
    counts: Tensor,
    slot_offsets: Tensor,
    order: Tensor,
    order_offsets: Tensor,
    target: Tensor,
    moved: Tensor,
) -> None:
    """Makes moves one after the other, each re-checked; changes labels, sums, masses, counts.

    Args:
        order, order_offsets: (count,) int64 nodes grouped by instance, and (B + 1,).
        target: (n,) int64 slots, read at the nodes of ``order``.
        moved: (B,) int64, the number of moves made.

    A program per instance; O(count d) time.
    """
    with device_of(features):
        clusters_kernels.move_kernel[(offsets.shape[0] - 1,)](
            features, weights, labels, sums, masses, counts, slot_offsets, order, order_offsets,
            target, sums.new_full((), alpha), moved, features.shape[1], negative_dims,
            BK=configs.coordinates(features.shape[1]), BLOCK=configs.SLOT_BLOCK, num_warps=4,
        )  # fmt: skip
