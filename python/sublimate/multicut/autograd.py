"""Cluster sums with their closed-form gradient, on any backend.

Sums are linear in the features: backward gives each node its cluster's gradient, and the backward
of that is a sum again. So derivatives of every order exist, each one kernel or one gather.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import keep_signature
from .._dtypes import accumulator
from . import ops as _registered  # noqa: F401

ops = torch.ops.sublimate

NO_VMAP = (
    "sublimate.multicut: vmap is not supported (the number of clusters depends on the data). "
    "Pass a batch of shape (B, n, d), or offsets."
)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise RuntimeError(NO_VMAP)


@keep_signature
class ClusterSums(torch.autograd.Function):
    """(n, d) rows, labels in [0, clusters) -> (clusters, d) float64 sums, added in fixed order."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(x: Tensor, labels: Tensor, clusters: int, backend: str) -> Tensor:
        rows = x.to(accumulator(x.dtype)).contiguous()
        sums: Tensor = ops.multicut_contract(rows, None, labels, clusters, backend)[0]
        return sums

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, labels, ctx.clusters, ctx.backend = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (labels,) = ctx.saved_tensors
        dx = Spread.apply(grad, labels, ctx.clusters, ctx.dtype, ctx.backend)
        return dx, None, None, None


@keep_signature
class Spread(torch.autograd.Function):
    """(clusters, d) float64 -> (n, d) of ``dtype``: each node its cluster's row.

    The adjoint of ``ClusterSums``.
    """

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        sums: Tensor, labels: Tensor, clusters: int, dtype: torch.dtype, backend: str
    ) -> Tensor:
        return sums.to(dtype).index_select(0, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, labels, ctx.clusters, _, ctx.backend = inputs
        ctx.save_for_backward(labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (labels,) = ctx.saved_tensors
        return ClusterSums.apply(grad, labels, ctx.clusters, ctx.backend), None, None, None, None
