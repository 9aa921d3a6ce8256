"""The all-pairs pass with its rows divided over the ranks of a process group.

Every rank holds all features (n d numbers) and computes n / world rows of partners; the results
(n numbers) are gathered, so that each rank continues with the same ones. Rows are computed as in
one process, number for number, hence so are the labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops as _registered  # noqa: F401

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ops = torch.ops.sublimate


def topk(
    features: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    k: int,
    backend: str,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """``multicut_topk`` among the nodes themselves, over the ranks of ``group`` if there is one.

    Every rank must pass the same arguments.
    """
    if group is None or group.size() == 1:
        found: tuple[Tensor, Tensor] = ops.multicut_topk(
            features, weights, offsets, alpha, negative_dims, None, None, None, k, 0, backend
        )
        return found
    n, share = features.shape[0], -(-features.shape[0] // group.size())
    low = min(group.rank() * share, n)
    high = min(low + share, n)
    mine = slice(low, high)
    values, indices = ops.multicut_topk(
        features[mine],
        None if weights is None else weights[mine],
        offsets.clamp(low, high) - low,
        alpha,
        negative_dims,
        features,
        weights,
        offsets,
        k,
        low,
        backend,
    )
    return _gathered(values, share, n, group), _gathered(indices, share, n, group)


def _gathered(rows: Tensor, share: int, n: int, group: ProcessGroup) -> Tensor:
    """All ranks' rows below one another; every rank sends ``share``, the last ones padded."""
    from torch.distributed import all_gather

    padded = rows.new_zeros((share, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(group.size())]
    all_gather(parts, padded, group=group)
    return torch.cat(parts)[:n]
