"""autograd.Function layer of the few-bit family for the opaque backends (cpu, triton, cuda).

Forward computes codes only when a gradient is wanted (the callers pass bits=0 otherwise); backward
reads the backend from ctx, never the process-wide setting. Second derivatives, vmap and forward
mode are refused with a reason; the reference backend does vmap and, of plain activations, forward
mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._autograd import keep_signature, refuse_double_backward
from .._dtypes import accumulator
from .._modes import ordinary
from .ops import NO_VMAP, run_bwd
from .reference import NO_SECOND

NO_FORWARD_MODE = (
    "sublimate.fewbit: forward-mode derivatives are not supported by compiled backends; pass "
    'backend="reference".'
)

ops = torch.ops.sublimate  # registered by importing .ops above


def _bwd(
    dy: Tensor, packed: Tensor, levels: Tensor, stride: Any, bits: int, backend: str
) -> Tensor:
    run = run_bwd if ordinary(dy, packed, levels) else ops.fewbit_bwd
    return run(dy, packed, levels, stride, bits, backend)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise RuntimeError(NO_VMAP)


@keep_signature
class FewBit(torch.autograd.Function):
    """y = f(x) for a built-in f; dx = levels[code(x)] * dy."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        x: Tensor,
        borders: Tensor,
        codes: Tensor,
        levels: Tensor,
        seed: Tensor | None,
        fn: str,
        a: float,
        b: float,
        bits: int,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return ops.fewbit_fwd(x, borders, codes, levels, seed, fn, a, b, bits, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        y, packed = output
        ctx.bits, ctx.backend = inputs[-2:]
        ctx.stride = y.stride()
        ctx.mark_non_differentiable(packed)
        ctx.set_materialize_grads(False)  # no zeros of the codes' size for the second output
        ctx.save_for_backward(packed, inputs[3])

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx: Any, dy: Tensor | None, _: None) -> Any:
        dx = None
        if dy is not None:
            packed, levels = ctx.saved_tensors
            dx = _bwd(dy, packed, levels, ctx.stride, ctx.bits, ctx.backend)
        return dx, *(None,) * 9


def _in_layout_of(x: Tensor, d: Tensor) -> Tensor:
    """d in the memory order in which x is coded: a user's f' may come in any other."""
    target = torch.empty_like(x, dtype=d.dtype)
    return d if d.stride() == target.stride() else target.copy_(d)


@keep_signature
class FewBitGiven(torch.autograd.Function):
    """y = f(x) for a callable f, evaluated by torch; codes of x (or of f'(x)) by our kernels."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        x: Tensor,
        f: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
        borders: Tensor,
        codes: Tensor,
        levels: Tensor,
        seed: Tensor | None,
        bits: int,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        y = f(x)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ValueError(
                f"fn: expected an elementwise function keeping shape {tuple(x.shape)} and "
                f"{x.dtype}, got {tuple(y.shape)} and {y.dtype}"
            )
        coded = x if seed is None else _in_layout_of(x, derivative(x.to(accumulator(x.dtype))))
        return y, ops.fewbit_encode(coded, borders, codes, levels, seed, bits, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bits, ctx.backend = inputs[-2:]
        # The codes follow the memory order of x, which need not be that of f(x).
        ctx.stride = torch.empty_like(inputs[0]).stride()
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], inputs[5])

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx: Any, dy: Tensor | None, _: None) -> Any:
        dx = None
        if dy is not None:
            packed, levels = ctx.saved_tensors
            dx = _bwd(dy, packed, levels, ctx.stride, ctx.bits, ctx.backend)
        return dx, *(None,) * 8


@keep_signature
class FewBitGated(torch.autograd.Function):
    """y = f(gate) * up, keeping one branch and a code of the other; see reference.gated."""

    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def forward(
        gate: Tensor,
        up: Tensor,
        borders: Tensor,
        codes: Tensor,
        levels: Tensor,
        values: Tensor,
        fn: str,
        keep: str,
        bits: int,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.fewbit_gated_fwd(gate, up, borders, codes, fn, bits, keep, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        gate, up, _, _, levels, values, ctx.fn, ctx.keep, ctx.bits, ctx.backend = inputs
        _, packed, scale = output
        ctx.mark_non_differentiable(packed, scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(up if ctx.keep == "up" else gate, packed, scale, levels, values)

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> Any:
        none = (None,) * 8
        if dy is None:
            return None, None, *none
        kept, packed, scale, levels, values = ctx.saved_tensors
        need_gate, need_up = ctx.needs_input_grad[:2]
        dgate, dup = ops.fewbit_gated_bwd(
            dy, kept, packed, scale, levels, values, ctx.fn, ctx.bits, ctx.keep, need_gate, need_up,
            ctx.backend,
        )  # fmt: skip
        return dgate if need_gate else None, dup if need_up else None, *none
