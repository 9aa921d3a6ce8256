"""Backward kernels: decode the bit planes, look the level up, multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..common.launch import accumulator, device_of
from . import codes as C
from . import configs
from .math import GATES, derivative, value

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["n"])
def activation_bwd_kernel(
    grad_ptr,  # (n,) DT
    packed_ptr,  # (ceil(n / 32) * BITS,) int32
    levels_ptr,  # (2**BITS,) fp32, fp64
    dx_ptr,  # (n,) DT
    n,
    BITS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK // 32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(n - start, BLOCK).to(tl.int32)
    grad = C.load_tile(grad_ptr + start, left, ROWS).to(ACC)
    code = C.unpack_tile(packed_ptr, start // 32, left, BITS, ROWS)
    C.store_tile(dx_ptr + start, C.lookup(levels_ptr, code, BITS, ACC) * grad, left, ROWS)


@triton.jit(do_not_specialize=["n", "inner"])
def gated_bwd_kernel(
    dy_ptr,  # (n,) DT
    kept_ptr,  # (n,) DT: up or gate; None if keep is "up" and dgate is not asked for
    packed_ptr,  # (ceil(n / 32) * BITS,) int32
    levels_ptr,  # (2**BITS,) fp32, fp64
    values_ptr,  # (2**BITS,) fp32, fp64, or None
    scale_ptr,  # (n / inner,) fp32, or None
    dgate_ptr,  # (n,) DT, or None
    dup_ptr,  # (n,) DT, or None
    n,
    inner,
    FN: tl.constexpr,
    BITS: tl.constexpr,
    KEEP: tl.constexpr,
    BY_GROUP: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK // 32
    DT: tl.constexpr = dy_ptr.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(n - start, BLOCK).to(tl.int32)
    dy = C.load_tile(dy_ptr + start, left, ROWS).to(ACC)
    if KEEP == "up":
        code = C.unpack_tile(packed_ptr, start // 32, left, BITS, ROWS)
        if dgate_ptr is not None:
            up = C.load_tile(kept_ptr + start, left, ROWS).to(ACC)
            dgate = dy * up * C.lookup(levels_ptr, code, BITS, ACC)
            C.store_tile(dgate_ptr + start, dgate, left, ROWS)
        if dup_ptr is not None:
            C.store_tile(dup_ptr + start, dy * C.lookup(values_ptr, code, BITS, ACC), left, ROWS)
    else:
        gate = C.load_tile(kept_ptr + start, left, ROWS).to(ACC)
        if dgate_ptr is not None:
            code = C.unpack_tile(packed_ptr, start // 32, left, BITS, ROWS)
            scale = C.row_scale(scale_ptr, start, inner, left, BY_GROUP, INDEX, ACC, ROWS)
            up = C.lookup(levels_ptr, code, BITS, ACC) * scale
            dgate = dy * derivative(gate, FN, 0.0, 0.0, ACC) * up
            C.store_tile(dgate_ptr + start, dgate, left, ROWS)
        if dup_ptr is not None:
            dup = dy * value(gate, FN, 0.0, 0.0, DT, ACC)
            C.store_tile(dup_ptr + start, dup, left, ROWS)


def activation_bwd(grad: Tensor, packed: Tensor, levels: Tensor, dx: Tensor, bits: int) -> None:
    """Writes ``dx = levels[code] * grad``, one multiplication in fp32 (fp64 for fp64).

    Args:
        grad, dx: (n,) or dense tensors of the same strides; fp32, fp16, bf16 or fp64.
        packed: (ceil(n / 32) * bits,) int32.
        levels: (2**bits,) fp32 or fp64.

    O(n) time; reads n elements and n * bits / 8 bytes, writes n elements.
    """
    n = grad.numel()
    if n == 0:
        return
    config = configs.pick(n, grad.element_size())
    with device_of(grad):
        activation_bwd_kernel[(triton.cdiv(n, config.block),)](
            grad,
            packed,
            levels,
            dx,
            n,
            BITS=bits,
            ACC=accumulator(grad),
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )


def gated_bwd(
    dy: Tensor,
    kept: Tensor | None,
    packed: Tensor | None,
    levels: Tensor | None,
    values: Tensor | None,
    scale: Tensor | None,
    inner: int,
    fn: str,
    bits: int,
    keep: str,
    dgate: Tensor | None,
    dup: Tensor | None,
) -> None:
    """Writes the gradients of ``act(gate) * up`` that are asked for.

    keep "up":   dgate = dy * up * levels[code],  dup = dy * values[code]
    keep "gate": dgate = dy * act'(gate) * (levels[code] * scale[i // inner]),
                 dup = dy * act(gate)

    Args:
        dy, kept, dgate, dup: dense tensors of one size, dtype and memory order. A result that is
            None is not computed, and what only it needs is not read and may be None.
        packed: (ceil(n / 32) * bits,) int32.
        levels, values: (2**bits,) fp32 or fp64; values is used when keep is "up".
        scale: (n / inner,) fp32; used when keep is "gate".

    O(n) time.
    """
    if fn not in GATES:
        raise ValueError(f"fn: expected one of {GATES}, got {fn!r}")
    if keep not in ("up", "gate"):
        raise ValueError(f"keep: expected 'up' or 'gate', got {keep!r}")
    n = dy.numel()
    if n == 0 or (dgate is None and dup is None):
        return
    by_scale = keep == "gate" and dgate is not None
    config = configs.pick(n, dy.element_size())
    with device_of(dy):
        gated_bwd_kernel[(triton.cdiv(n, config.block),)](
            dy,
            kept if keep == "gate" or dgate is not None else None,
            packed if keep == "up" or dgate is not None else None,
            levels if dgate is not None else None,
            values if keep == "up" and dup is not None else None,
            scale if by_scale else None,
            dgate,
            dup,
            n,
            inner if by_scale else 1,
            FN=fn,
            BITS=bits,
            KEEP=keep,
            **configs.rows(inner if by_scale else 32),
            ACC=accumulator(dy),
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )
