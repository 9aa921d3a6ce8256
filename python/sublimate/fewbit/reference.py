"""The truth for few-bit activations: plain PyTorch, written to be read.

Works on any device and in any floating dtype. The compiled backends are held to these functions;
these are held to closed forms and to torch's own gradients.

Source: Novikov et al., "Few-Bit Backward: Quantized Gradients of Activation Functions for Memory
Footprint Reduction", ICML 2023. Layout of the packed codes: ``pack``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autograd import refuse_double_backward
from .._dtypes import accumulator
from .functions import FUNCTIONS as FUNCTIONS
from .functions import Function as Function

WORD = 32  # elements per group: one 32-bit word of each bit plane


# ---------------------------------------------------------------------------------------------
# Codes


def encode(x: Tensor, borders: Tensor, codes: Tensor) -> Tensor:
    """Code of every element: ``codes[searchsorted(borders.to(x.dtype), x)]``.

    An element equal to a border belongs to the interval on its left; NaN to the last interval.

    Args:
        x: any shape, floating.
        borders: (m,) ascending, rounded here to the dtype of x.
        codes: (m + 1,) integer, code of each interval.

    Returns:
        int64 tensor of x's shape.
    """
    interval = torch.searchsorted(borders.to(x.dtype), x.contiguous())
    return codes.long()[interval]


def encode_stochastic(derivative: Tensor, levels: Tensor, uniform: Tensor) -> Tensor:
    """Unbiased code: one of the two levels around f'(x), so that E[level] = f'(x).

    Args:
        derivative: f'(x), any shape, within [levels[0], levels[-1]].
        levels: (K,) ascending.
        uniform: shape of ``derivative``, in [0, 1).

    Returns:
        int64 tensor of the same shape.
    """
    lower = torch.searchsorted(levels[1:-1].contiguous(), derivative.contiguous(), right=True)
    low, high = levels[lower], levels[lower + 1]
    return lower + (uniform * (high - low) < derivative - low).long()


def words(n: int, bits: int) -> int:
    """Number of 32-bit words that hold ``n`` codes of ``bits`` bits."""
    return (n + WORD - 1) // WORD * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Bit planes: word ``g * bits + p`` holds bit p of the 32 codes of group g, lane in bit order.

    Args:
        codes: (n,) integers in [0, 2**bits).

    Returns:
        int32 tensor (ceil(n / 32) * bits,). Unused lanes of the last group are zero.
    """
    n = codes.numel()
    groups = F.pad(codes.long(), (0, -n % WORD)).reshape(-1, 1, WORD)  # [G, 1, 32]
    plane = torch.arange(bits, device=codes.device).reshape(1, bits, 1)
    lane = torch.arange(WORD, device=codes.device)
    word = (((groups >> plane) & 1) << lane).sum(-1)  # [G, bits], 0 .. 2**32 - 1
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32).reshape(-1)


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """Inverse of ``pack``: int64 tensor (n,)."""
    word = packed.reshape(-1, bits, 1).long()  # [G, bits, 1]
    lane = torch.arange(WORD, device=packed.device)
    bit = (word >> lane) & 1  # [G, bits, 32]; the sign extension only fills bits above 31
    plane = torch.arange(bits, device=packed.device).reshape(1, bits, 1)
    return (bit << plane).sum(1).reshape(-1)[:n]


def decode(packed: Tensor, levels: Tensor, n: int, bits: int) -> Tensor:
    """``levels[code]`` for n packed codes: (n,) in the dtype of ``levels``."""
    return levels[unpack(packed, n, bits)]


# ---------------------------------------------------------------------------------------------
# The quantised activation


def dense_order(x: Tensor) -> list[int]:
    """Permutation of dimensions that walks x in memory order, largest stride first.

    For a tensor with holes or overlaps, the order of the dense tensor torch would make for it.
    """
    return list(torch.empty_like(x).dim_order())


def flatten(x: Tensor, order: list[int]) -> Tensor:
    """(n,) elements of x in the given dimension order."""
    return x.permute(order).reshape(-1)


def unflatten(flat: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """Inverse of ``flatten``."""
    inverse = sorted(range(len(order)), key=lambda k: order[k])
    return flat.reshape([shape[d] for d in order]).permute(inverse)


NO_SECOND = (
    "sublimate.fewbit: no second derivative. The gradient is a step function of the input, whose "
    "own derivative is zero almost everywhere and is not f''; use torch's activation where f'' "
    "matters."
)


class QuantizedActivation(torch.autograd.Function):
    """y = f(x); dx = levels[code(x)] * dy. Keeps the packed codes and nothing of x's size.

    ``uniform`` None: codes by ``encode`` (or the predicate of an exact function). Else: stochastic
    rounding of f'(x). Works under vmap; a second derivative is refused, because that of the
    quantised function is zero almost everywhere and would silently not be f''.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        borders: Tensor,
        codes: Tensor,
        levels: Tensor,
        uniform: Tensor | None,
        forward: Callable[[Tensor], Tensor],
        code: Callable[..., Tensor],
        bits: int,
    ) -> tuple[Tensor, Tensor]:
        # Under vmap and grad every tensor must come as an argument: code may close over none.
        found = code(x, borders, codes, levels, uniform)
        return forward(x), pack(flatten(found, dense_order(x)), bits)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        x, _, _, levels, _, _, _, ctx.bits = inputs
        ctx.order = dense_order(x)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], levels)

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx, dy: Tensor, _):  # type: ignore[no-untyped-def]
        packed, levels = ctx.saved_tensors
        q = unflatten(decode(packed, levels, dy.numel(), ctx.bits), dy.shape, ctx.order)
        return (dy.to(accumulator(dy.dtype)) * q).to(dy.dtype), *(None,) * 7


def activation(
    x: Tensor,
    forward: Callable[[Tensor], Tensor],
    borders: Tensor,
    codes: Tensor,
    levels: Tensor,
    *,
    derivative: Callable[[Tensor], Tensor] | None = None,
    uniform: Tensor | None = None,
    predicate: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The quantised activation for any forward and codebook.

    Args:
        x: any shape, floating.
        forward: x -> f(x), elementwise.
        borders, codes, levels: the codebook, (m,), (m + 1,), (2**bits,).
        derivative: x -> f'(x), needed with ``uniform``.
        uniform: shape of x, in [0, 1): stochastic codes.
        predicate: x -> the one-bit code itself, where f' takes the two levels only.

    Returns:
        f(x), whose gradient is ``levels[code(x)]``.
    """
    bits = (levels.numel() - 1).bit_length()
    acc = accumulator(x.dtype)

    def code(
        x: Tensor, borders: Tensor, codes: Tensor, levels: Tensor, uniform: Tensor | None
    ) -> Tensor:
        if uniform is not None and derivative is not None:
            return encode_stochastic(derivative(x.to(acc)), levels, uniform.to(acc))
        if predicate is not None:
            return predicate(x).long()
        return encode(x, borders, codes)

    y: Tensor = QuantizedActivation.apply(
        x, borders, codes, levels.to(acc), uniform, forward, code, bits
    )[0]
    return y


GATED = ("gelu", "gelu_tanh", "silu")


def row_scale(up: Tensor) -> Tensor:
    """Root mean square of each row of ``up`` over the last dimension, fp32: (rows,)."""
    norm = torch.linalg.vector_norm(up, dim=-1, dtype=accumulator(up.dtype))
    return (norm / math.sqrt(up.shape[-1] or 1)).reshape(-1).to(torch.float32)


class QuantizedGated(torch.autograd.Function):
    """y = f(gate) * up with few-bit codes of one branch; formulas in ``gated``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        gate, up, name, keep, borders, codes, levels, values, bits
    ) -> tuple[Tensor, Tensor, Tensor]:
        acc = accumulator(gate.dtype)
        y = (FUNCTIONS[name].forward(gate.to(acc)) * up.to(acc)).to(gate.dtype).contiguous()
        if keep == "up":
            scale = gate.new_empty(0, dtype=torch.float32)
            code = encode(gate, borders, codes)
        else:
            scale = row_scale(up)
            rows = scale.reshape(*up.shape[:-1], 1).to(acc)
            quotient = torch.where(rows == 0, torch.zeros_like(rows), up.to(acc) / rows)
            code = encode(quotient, borders, codes)
        return y, pack(code.reshape(-1), bits), scale

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        gate, up, ctx.name, ctx.keep, _, _, levels, values, ctx.bits = inputs
        _, packed, scale = output
        ctx.mark_non_differentiable(packed, scale)
        ctx.save_for_backward(up if ctx.keep == "up" else gate, packed, scale, levels, values)

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx, dy: Tensor, *_):  # type: ignore[no-untyped-def]
        kept, packed, scale, levels, values = ctx.saved_tensors
        acc = accumulator(dy.dtype)
        code = unpack(packed, dy.numel(), ctx.bits).reshape(dy.shape)
        function, wide, kept_wide = FUNCTIONS[ctx.name], dy.to(acc), kept.to(acc)
        if ctx.keep == "up":
            dgate = wide * kept_wide * levels[code]
            dup = wide * values[code]
        else:
            rows = scale.reshape(*dy.shape[:-1], 1).to(acc)
            dgate = wide * function.derivative(kept_wide) * (levels[code] * rows)
            dup = wide * function.forward(kept_wide)
        return dgate.to(dy.dtype), dup.to(dy.dtype), *(None,) * 7


def gated(
    gate: Tensor,
    up: Tensor,
    name: str,
    keep: str,
    borders: Tensor,
    codes: Tensor,
    levels: Tensor,
    values: Tensor,
) -> Tensor:
    """y = f(gate) * up, f in ``GATED``, keeping one branch and a code of the other.

    keep="up": up is kept, gate coded; dgate = dy up levels[code], dup = dy values[code], where
    levels stand for f' and values for f on each interval. keep="gate": gate is kept, up / scale
    coded with scale the row's RMS; dup = dy f(gate) is exact, dgate = dy f'(gate) levels[code]
    scale.
    """
    bits = (levels.numel() - 1).bit_length()
    tables = [t.to(accumulator(gate.dtype)) for t in (levels, values)]
    y: Tensor = QuantizedGated.apply(gate, up, name, keep, borders, codes, *tables, bits)[0]
    return y
