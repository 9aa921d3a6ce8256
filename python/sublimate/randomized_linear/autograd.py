"""autograd.Function layer of the randomized linear family for the opaque backends.

Kept for backward: the sketched rows, the seed or the sampled indices, and the weight. Backward
reads the backend from ctx, never the process-wide setting. vmap is refused with a reason (the
reference backend does it), second derivatives of the layer everywhere (``reference.NO_SECOND``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import keep_signature, refuse_double_backward
from . import reference
from .ops import NO_VMAP

ops = torch.ops.sublimate  # registered by importing .ops above


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise RuntimeError(NO_VMAP)


@keep_signature
class RandomizedLinear(torch.autograd.Function):
    """y = x W^T + b, dW from the sketch; inputs as in ``reference.SketchedLinear``, and backend."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kept: Tensor,
        index: Tensor | None,
        seed: Tensor | None,
        sketch: str,
        k: int,
        backend: str,
    ) -> Tensor:
        return reference.exact_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backend = inputs[-1]
        reference.keep_for_backward(ctx, *inputs[:-1])

    @staticmethod
    @refuse_double_backward(reference.NO_SECOND)
    def backward(ctx: Any, dy: Tensor) -> Any:
        def sketched(rows: Tensor, index: Tensor | None, seed: Tensor | None) -> Tensor:
            if index is not None:
                return ops.randomized_linear_gather(rows, index, None, ctx.backend)
            return ops.randomized_linear_project(rows, seed, ctx.sketch, ctx.k, ctx.backend)

        return *reference.gradients(ctx, dy, sketched), None


@keep_signature
class Project(torch.autograd.Function):
    """S^T x; its gradient S g is plain PyTorch (``reference.expand``): no layer here needs it."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(x: Tensor, seed: Tensor, sketch: str, k: int, backend: str) -> Tensor:
        return ops.randomized_linear_project(x, seed, sketch, k, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, seed, ctx.sketch, ctx.k, ctx.backend = inputs
        ctx.rows = x.shape[0]
        ctx.save_for_backward(seed)
        ctx.save_for_forward(seed)

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> Tensor:
        (seed,) = ctx.saved_tensors
        return Project.forward(x, seed, ctx.sketch, ctx.k, ctx.backend)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        return reference.expand(g, ctx.sketch, ctx.rows, seed), *(None,) * 4


@keep_signature
class HadamardTransform(torch.autograd.Function):
    """scale H x along the last dimension; H is symmetric, so the gradient is the same transform."""

    @staticmethod
    def forward(x: Tensor, scale: float, backend: str) -> Tensor:
        return ops.hadamard_transform(x, scale, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.scale, ctx.backend = inputs
        ctx.length = x.shape[-1]

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> Tensor:
        return HadamardTransform.forward(x, ctx.scale, ctx.backend)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        dx = HadamardTransform.apply(g, ctx.scale, ctx.backend)
        return dx[..., : ctx.length], None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, scale: float, backend: str) -> Any:
        return HadamardTransform.apply(x.movedim(in_dims[0], 0), scale, backend), 0
