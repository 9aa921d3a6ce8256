"""The streaming primitive itself, and the assignment of new nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backends, _checks
from .._dtypes import accumulator
from . import arguments
from .autograd import ops


def assign(
    features: Tensor,
    labels: Tensor,
    new_features: Tensor,
    *,
    alpha: float = 0.0,
    weights: Tensor | None = None,
    new_weights: Tensor | None = None,
    negative_dims: int = 0,
    reject: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Puts each new node into the cluster it is worth most to, all others fixed.

    Args:
        features, labels: (n, d) and (n,): a clustering, any numbering.
        alpha, weights, negative_dims, backend: as in ``dense_multicut``.
        new_features: (m, d), same dtype and device.
        new_weights: (m,), default 1.
        reject: label -1 where the node repels every cluster, so that it would rather be alone.

    Returns:
        (m,) int64, values of ``labels``; ties go to the lowest label.

    O(n d + m K d) for K clusters, nothing of size m x K.
    """
    arguments.features("features", features, batches=False)
    arguments.labels("labels", labels, features)
    arguments.features("new_features", new_features, batches=False)
    if new_features.shape[1] != features.shape[1]:
        raise _checks.fail_value(
            "new_features", f"{features.shape[1]} features", new_features.shape[1]
        )
    if new_features.dtype != features.dtype:
        raise _checks.fail_kind(
            "new_features", f"the dtype of features, {features.dtype}", str(new_features.dtype)
        )
    if new_features.device != features.device:
        raise _checks.fail_value(
            "new_features", f"a tensor on {features.device}", new_features.device
        )
    arguments.number("alpha", alpha)
    arguments.weights("weights", weights, features)
    arguments.weights("new_weights", new_weights, new_features)
    _checks.integer_between("negative_dims", negative_dims, 0, features.shape[-1])
    _checks.flags(reject=reject)
    if features.shape[0] == 0 and new_features.shape[0] > 0:
        raise _checks.fail_value("features", "at least one node to be assigned to", 0)
    chosen = _backends.resolve("multicut", backend, features)
    names, ids = torch.unique(labels, return_inverse=True)
    x = arguments.rows(features)
    sums, masses, _ = ops.multicut_contract(x, arguments.flat(weights, x), ids, len(names), chosen)
    worth, place = best_sums(
        arguments.rows(new_features),
        arguments.flat(new_weights, x),
        sums,
        masses,
        alpha,
        negative_dims,
        chosen,
    )
    found = names.long()[place]
    return torch.where(worth > 0, found, -1) if reject else found


def best_sums(
    x: Tensor,
    weights: Tensor | None,
    sums: Tensor,
    masses: Tensor,
    alpha: float,
    negative_dims: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(value, cluster) of the cluster that each row of x is worth most to, given their sums."""
    own = x.new_ones(x.shape[0]) if weights is None else weights
    values, columns = ops.multicut_topk(
        x,
        own,
        torch.tensor([0, x.shape[0]], device=x.device),
        float(alpha),
        negative_dims,
        sums.to(x.dtype),
        masses.to(x.dtype),
        torch.tensor([0, sums.shape[0]], device=x.device),
        1,
        None,
        backend,
    )
    return values[:, 0], columns[:, 0]


def inner_product_topk(
    features: Tensor,
    k: int,
    *,
    other: Tensor | None = None,
    alpha: float = 0.0,
    weights: Tensor | None = None,
    other_weights: Tensor | None = None,
    exclude_self: bool = True,
    negative_dims: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest s_ij of each node and their columns, streamed: never n x n.

    Args:
        features: (n, d) or (B, n, d).
        k: at least 1. alpha, negative_dims, backend: as in ``dense_multicut``.
        other: (m, d) or (B, m, d): the columns; default the features themselves.
        weights, other_weights: default 1.
        exclude_self: without ``other``, leave the pair (i, i) out.

    Returns:
        values (..., n, k), descending, float32 (float64 for float64 features), and indices
        (..., n, k) int64 of the columns; equal values by lowest index. Where there are fewer than k
        columns, -inf and -1. 16-bit features: as if converted to float32. The values have no
        gradient; gather the pairs to differentiate.

    O(n m d) time, O(n k) memory beside the inputs.
    """
    arguments.features("features", features)
    _checks.integer_between("k", k, 1, 2**31 - 1)
    arguments.number("alpha", alpha)
    arguments.weights("weights", weights, features)
    d = features.shape[-1]
    _checks.integer_between("negative_dims", negative_dims, 0, d)
    _checks.flags(exclude_self=exclude_self)
    columns = features
    if other is not None:
        arguments.features("other", other)
        expected = (*features.shape[:-2], "m", d)
        if other.dim() != features.dim() or (*other.shape[:-2], "m", other.shape[-1]) != expected:
            shown = f"({', '.join(map(str, expected))})"
            raise _checks.fail_value("other", f"shape {shown}", tuple(other.shape))
        if other.dtype != features.dtype:
            raise _checks.fail_kind(
                "other", f"the dtype of features, {features.dtype}", str(other.dtype)
            )
        if other.device != features.device:
            raise _checks.fail_value("other", f"a tensor on {features.device}", other.device)
        arguments.weights("other_weights", other_weights, other)
        columns = other
    elif other_weights is not None:
        raise _checks.fail_value("other_weights", "None without other", "a tensor")
    chosen = _backends.resolve("multicut", backend, features)
    x = features.detach().reshape(-1, d).contiguous()
    y = None if other is None else other.detach().reshape(-1, d).contiguous()
    acc = x.new_empty(0, dtype=accumulator(x.dtype))
    w, v = arguments.flat(weights, acc), arguments.flat(other_weights, acc)
    if y is not None and (w is None) != (v is None):
        w = acc.new_ones(x.shape[0]) if w is None else w
        v = acc.new_ones(y.shape[0]) if v is None else v
    rows = arguments.borders(arguments.batch(features, None), x.device)
    starts = arguments.borders(arguments.batch(columns, None), x.device)
    values, indices = ops.multicut_topk(
        x,
        w,
        rows,
        float(alpha),
        negative_dims,
        y,
        v,
        None if y is None else starts,
        k,
        0 if y is None and exclude_self else None,
        chosen,
    )
    shape = (*features.shape[:-1], k)
    values, indices = values.reshape(shape), indices.reshape(shape)
    if features.dim() == 3:
        indices = torch.where(indices < 0, -1, indices - starts[:-1].reshape(-1, 1, 1))
    return values, indices
