"""autograd.Function layer of Kronecker attention for the opaque backends (cpu, triton).

Kept for backward: the inputs, and O and LSE of the exact method; O(N) numbers in all. Backward
reads the backend from ctx, never the process-wide setting. Second derivatives, those of forward
mode and vmap are refused with a reason; the reference backend does all three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import keep_signature, refuse_double_backward
from .ops import NO_VMAP

ops = torch.ops.sublimate  # registered by importing .ops above

NO_SECOND = (
    "sublimate.kronecker_attention: second derivatives are not supported by compiled backends; "
    'pass backend="reference".'
)

NO_FORWARD_MODE = (
    "sublimate.kronecker_attention: forward-mode derivatives are not supported by compiled "
    'backends; pass backend="reference".'
)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise RuntimeError(NO_VMAP)


@keep_signature
class KroneckerAttention(torch.autograd.Function):
    """(O, LSE) of exact attention of order 3, or of Strassen's; both have gradients.

    ``form``: "attention" or "strassen", the operator's name.
    """

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        q: Tensor,
        k1: Tensor,
        k2: Tensor,
        v1: Tensor,
        v2: Tensor,
        mask1: Tensor | None,
        mask2: Tensor | None,
        scale: float,
        causal: bool,
        window: tuple[int, ...],
        backend: str,
        form: str,
    ) -> tuple[Tensor, Tensor]:
        run = ops.kronecker_strassen_fwd if form == "strassen" else ops.kronecker_attention_fwd
        found: tuple[Tensor, Tensor] = run(
            q, k1, k2, v1, v2, mask1, mask2, scale, causal, window, backend
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *ctx.options, ctx.form = inputs[7:]
        ctx.save_for_backward(*inputs[:7], *output)

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> Any:
        q, k1, k2, v1, v2, mask1, mask2, out, lse = ctx.saved_tensors
        # dS = P (dP - delta): the softmax's own term, and that of LSE, whose derivative is P.
        delta = (dout.to(lse.dtype) * out.to(lse.dtype)).sum(-1) - dlse
        strassen = ctx.form == "strassen"
        run = ops.kronecker_strassen_bwd if strassen else ops.kronecker_attention_bwd
        grads = run(dout, q, k1, k2, v1, v2, lse, delta, mask1, mask2, *ctx.options)
        return *grads, *(None,) * 7


class KroneckerPolynomial(torch.autograd.Function):
    """(numerator, denominator) of the polynomial method; tensors are key sets, values, masks."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        q: Tensor,
        coefficients: Tensor,
        sets: int,
        scale: float,
        causal: bool,
        window: tuple[int, ...],
        backend: str,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        keys, values, masks = _split(tensors, sets)
        return ops.kronecker_polynomial_fwd(
            q, keys, values, masks, coefficients, scale, causal, window, backend
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        q, coefficients, ctx.sets, *ctx.options = inputs[:7]
        ctx.save_for_backward(q, coefficients, *inputs[7:])

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx: Any, dnumerator: Tensor, ddenominator: Tensor) -> Any:
        q, coefficients, *tensors = ctx.saved_tensors
        keys, values, masks = _split(tensors, ctx.sets)
        dq, *rest = ops.kronecker_polynomial_bwd(
            dnumerator, ddenominator, q, keys, values, masks, coefficients, *ctx.options
        )
        return dq, *(None,) * 6, *rest, *(None,) * len(masks)


def _split(tensors: Any, sets: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    found = list(tensors)
    return found[:sets], found[sets : 2 * sets], found[2 * sets :]
