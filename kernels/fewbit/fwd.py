"""Forward kernels: an activation, or a gated product, and the bit planes its backward needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..common import philox
from ..common.launch import accumulator, device_of
from . import codes as C
from . import configs
from .math import EXACT, FUNCTIONS, GATES, derivative, predicate, value

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["n"])
def activation_fwd_kernel(
    x_ptr,  # (n,) DT
    y_ptr,  # (n,) DT, or None
    packed_ptr,  # (ceil(n / 32) * BITS,) int32, or None
    borders_ptr,  # (M,) fp32, fp64, or None
    codes_ptr,  # (M + 1,) uint8, or None
    levels_ptr,  # (2**BITS,) fp32, fp64, or None
    seed_ptr,  # () int64, or None
    n,
    FN: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    BITS: tl.constexpr,  # 0: no codes
    M: tl.constexpr,
    MODE: tl.constexpr,  # "borders", "predicate", "chance"
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK // 32
    DT: tl.constexpr = x_ptr.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(n - start, BLOCK).to(tl.int32)
    x = C.load_tile(x_ptr + start, left, ROWS).to(ACC)
    if y_ptr is not None:
        C.store_tile(y_ptr + start, value(x, FN, A, B, DT, ACC), left, ROWS)
    if BITS > 0:
        if MODE == "predicate":
            code = predicate(x, FN, A, B, DT, ACC).to(tl.int32)
        elif MODE == "chance":
            u = philox.uniform_tile(tl.load(seed_ptr), start, ROWS, 32)
            code = C.by_chance(derivative(x, FN, A, B, ACC), u, levels_ptr, BITS, ACC)
        else:
            code = C.by_borders(x, borders_ptr, codes_ptr, M, DT, ACC)
        C.pack_tile(packed_ptr, code, start // 32, left, BITS, ROWS)


@triton.jit
def _over_scale(v, scale, ACC: tl.constexpr):
    """v / scale, correctly rounded (a code depends on its last bit); 0 where the scale is 0."""
    one = tl.where(scale == 0, 1.0, scale)
    if ACC == tl.float64:
        q = v / one
    else:
        # Both operands in one shape: div_rn does not broadcast everywhere.
        q = tl.div_rn(v, tl.zeros(v.shape, ACC) + one)
    return tl.where(scale == 0, 0.0, q)


@triton.jit(do_not_specialize=["n", "inner"])
def gated_fwd_kernel(
    gate_ptr,  # (n,) DT
    up_ptr,  # (n,) DT
    y_ptr,  # (n,) DT
    packed_ptr,  # (ceil(n / 32) * BITS,) int32, or None
    borders_ptr,  # (M,) fp32, fp64, or None
    codes_ptr,  # (M + 1,) uint8, or None
    scale_ptr,  # (n / inner,) fp32, or None
    n,
    inner,
    FN: tl.constexpr,
    BITS: tl.constexpr,
    M: tl.constexpr,
    KEEP: tl.constexpr,  # which operand is kept whole: "up" (gate is coded) or "gate" (up is)
    BY_GROUP: tl.constexpr,  # no group of 32 straddles two rows
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK // 32
    DT: tl.constexpr = gate_ptr.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(n - start, BLOCK).to(tl.int32)
    gate = C.load_tile(gate_ptr + start, left, ROWS).to(ACC)
    up = C.load_tile(up_ptr + start, left, ROWS).to(ACC)
    C.store_tile(y_ptr + start, value(gate, FN, 0.0, 0.0, DT, ACC) * up, left, ROWS)
    if BITS > 0:
        if KEEP == "up":
            code = C.by_borders(gate, borders_ptr, codes_ptr, M, DT, ACC)
        else:
            scale = C.row_scale(scale_ptr, start, inner, left, BY_GROUP, INDEX, ACC, ROWS)
            # The quotient was never an element, so the borders stay as they are.
            code = C.by_borders(_over_scale(up, scale, ACC), borders_ptr, codes_ptr, M, ACC, ACC)
        C.pack_tile(packed_ptr, code, start // 32, left, BITS, ROWS)


def activation_fwd(
    x: Tensor,
    y: Tensor | None,
    packed: Tensor | None,
    borders: Tensor | None,
    codes: Tensor | None,
    levels: Tensor | None,
    fn: str,
    a: float,
    b: float,
    bits: int,
    stochastic: bool,
    seed: Tensor | None,
) -> None:
    """Writes ``y = f(x)`` (unless y is None) and, if bits > 0, the packed codes of f'(x).

    Args:
        x, y: (n,) or dense tensors of the same strides; fp32, fp16, bf16 or fp64.
        packed: (ceil(n / 32) * bits,) int32.
        borders, codes: (m,) fp32 or fp64 and (m + 1,) uint8; unused by exact functions and when
            stochastic.
        levels: (2**bits,) fp32 or fp64, ascending; used when stochastic.
        fn: a name in ``FUNCTIONS``, or "given" with y None: codes of x itself, which when
            stochastic is the derivative.
        a, b: parameters of fn (compiled in; unused ones are ignored).
        bits: 0 for no codes; 1 for exact functions.
        seed: () int64 on x's device; used when stochastic.

    O(n) time; reads n and writes n elements and n * bits / 8 bytes.
    """
    if fn not in FUNCTIONS and not (fn == "given" and y is None):
        raise ValueError(f"fn: expected one of {FUNCTIONS}, or 'given' without y, got {fn!r}")
    if fn in EXACT and (bits > 1 or stochastic):
        raise ValueError(f"bits: expected 0 or 1, not stochastic, for {fn}, got {bits}")
    n = x.numel()
    if n == 0 or (y is None and bits == 0):
        return
    mode = "predicate" if fn in EXACT else "chance" if stochastic else "borders"
    config = configs.pick(n, x.element_size())
    with device_of(x):
        activation_fwd_kernel[(triton.cdiv(n, config.block),)](
            x,
            y,
            packed if bits else None,
            borders if bits and mode == "borders" else None,
            codes if bits and mode == "borders" else None,
            levels if bits and mode == "chance" else None,
            seed if bits and mode == "chance" else None,
            n,
            FN=fn,
            A=float(a),
            B=float(b),
            BITS=bits,
            M=borders.numel() if bits and mode == "borders" else 0,
            MODE=mode,
            ACC=accumulator(x),
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )


def gated_fwd(
    gate: Tensor,
    up: Tensor,
    y: Tensor,
    packed: Tensor | None,
    borders: Tensor | None,
    codes: Tensor | None,
    fn: str,
    bits: int,
    keep: str,
    scale: Tensor | None,
    inner: int,
) -> None:
    """Writes ``y = act(gate) * up`` and, if bits > 0, the codes of the operand that is not kept.

    Args:
        gate, up, y: dense tensors of one size, dtype and memory order; fp32, fp16, bf16 or fp64.
        packed: (ceil(n / 32) * bits,) int32.
        borders, codes: (m,) fp32 or fp64 and (m + 1,) uint8.
        fn: "gelu", "gelu_tanh" or "silu".
        keep: "up": codes of gate, borders rounded to its dtype; "gate": codes of
            ``up / scale[i // inner]`` (fp32; fp64 for fp64), 0 where the scale is 0.
        scale: (n / inner,) fp32; used when keep is "gate".

    O(n) time; reads 2n and writes n elements and n * bits / 8 bytes.
    """
    if fn not in GATES:
        raise ValueError(f"fn: expected one of {GATES}, got {fn!r}")
    if keep not in ("up", "gate"):
        raise ValueError(f"keep: expected 'up' or 'gate', got {keep!r}")
    n = gate.numel()
    if n == 0:
        return
    config = configs.pick(n, gate.element_size())
    by_scale = bits > 0 and keep == "gate"
    with device_of(gate):
        gated_fwd_kernel[(triton.cdiv(n, config.block),)](
            gate,
            up,
            y,
            packed if bits else None,
            borders if bits else None,
            codes if bits else None,
            scale if by_scale else None,
            n,
            inner if by_scale else 1,
            FN=fn,
            BITS=bits,
            M=borders.numel() if borders is not None and bits else 0,
            KEEP=keep,
            **configs.rows(inner if by_scale else 32),
            ACC=accumulator(gate),
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=configs.FP_FUSION,
        )
