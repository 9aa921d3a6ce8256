"""Launches of the kernels: from tensors to arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import triton

from ..common.launch import accumulator
from . import columns, configs, features, rows

if TYPE_CHECKING:
    from torch import Tensor

#: Width of a window that is none: every position is nearer, and sums with it fit into 32 bits.
_ENDLESS = 2**30 - 2**12
_LOG2E = 1.4426950408889634
#: What a kernel's 32-bit positions and grid can count.
_MOST = _ENDLESS


@dataclass(frozen=True)
class Pairs:
    """The two key sets and which of their pairs a row may read.

    Attributes:
        mask1, mask2: (B, M) bool or None. window1, window2: 0 for none. near: only pairs with a
            member in the row's segment of that many positions; 0 for all.
    """

    k1: Tensor
    k2: Tensor
    v1: Tensor
    v2: Tensor
    mask1: Tensor | None
    mask2: Tensor | None
    causal: bool
    window1: int
    window2: int
    near: int = 0

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor],
           masks: Sequence[Tensor | None], causal: bool, window: Sequence[int],
           near: int = 0) -> Pairs:  # fmt: skip
        widths = [min(w, _ENDLESS) for w in window or (0, 0)]
        return cls(*keys, *values, *(masks or (None, None)), causal, *widths, near)

    @property
    def swapped(self) -> Pairs:
        return Pairs(self.k2, self.k1, self.v2, self.v1, self.mask2, self.mask1, self.causal,
                     self.window2, self.window1, self.near)  # fmt: skip

    @property
    def turned(self) -> bool:
        """Whether the first set is the longer: the second's is the axis of tiles."""
        first = min(self.k1.shape[2], self.window1 or _ENDLESS)
        return first > min(self.k2.shape[2], self.window2 or _ENDLESS)

    def arguments(self) -> dict[str, Any]:
        """Arguments of every kernel of attention that follow from the pairs."""
        found: dict[str, Any] = {
            "mask1_ptr": wider(self.mask1),
            "mask2_ptr": wider(self.mask2),
            "m1": self.k1.shape[2],
            "m2": self.k2.shape[2],
            "heads": self.k1.shape[1],
            "window1": self.window1 or _ENDLESS,
            "window2": self.window2 or _ENDLESS,
            "near": self.near,
            "LIMIT1": self.causal or self.window1 > 0,
            "LIMIT2": self.causal or self.window2 > 0,
            "NEAR": self.near > 0,
            "D": self.k1.shape[3],
            "DV": self.v1.shape[3],
            "BD": configs.padded(self.k1.shape[3]),
            "BDV": configs.padded(self.v1.shape[3]),
        }
        for name in ("k1", "k2", "v1", "v2"):
            found |= strided(name, getattr(self, name))
        return found


def strided(name: str, x: Tensor) -> dict[str, Any]:
    """A tensor (B, H, N, D) and its strides, as the kernels name them."""
    strides = dict(zip((f"{name}_b", f"{name}_h", f"{name}_n"), x.stride()[:3], strict=True))
    return {f"{name}_ptr": x, **strides}


def wider(mask: Tensor | None) -> Tensor | None:
    """A mask as int32: where operands of a product in fp64 depend on a load of 8 bits, Triton 3.7
    picks a layout for it that it cannot lower."""
    import torch

    return None if mask is None else mask.to(torch.int32)


def in_two(scale: float) -> dict[str, float]:
    """A number as the sum of two fp32: more than Triton keeps of a Python float."""
    high = ctypes.c_float(scale).value
    return {"scale_high": high, "scale_low": scale - high}


def target(x: Tensor) -> str:
    """Whose launches x's device gets; a CPU, in the interpreter, those of sm_90."""
    if x.device.type != "cuda":
        return "sm_90"
    found = triton.runtime.driver.active.get_current_target()
    return configs.target_of(found.backend, found.arch)


def check_sizes(q: Tensor, keys: Sequence[Tensor]) -> None:
    group = q.shape[1] // keys[0].shape[1]
    for name, count in (("q", q.shape[2] * group), *(("keys", k.shape[2]) for k in keys)):
        if count > _MOST:
            raise ValueError(f"{name}: expected at most {_MOST} rows a key head, got {count}")


def _precision(q: Tensor, polynomial: bool) -> tuple[dict[str, Any], int]:
    kind, size, precision = configs.operand(q.dtype, polynomial)
    return {"OPERAND": kind, "PRECISION": precision, "ACC": accumulator(q)}, size


def _tile(kernel: str, size: int, pairs: Pairs, group: int) -> configs.Config:
    """Launch of a kernel that holds rows: few positions a tile where the first window is narrow."""
    found = configs.config(
        kernel, size, pairs.k1.shape[3], pairs.v1.shape[3], target(pairs.k1)
    )  # fmt: skip
    masked = pairs.mask1 is not None or pairs.mask2 is not None
    narrow = 0 < pairs.window1 < triton.cdiv(found.bm, 2 * group)
    return configs.row_tile(found, size, masked, narrow)


def norms(x: Tensor) -> Tensor:
    """3-norm of each row: (B, H, N) in the accumulator's dtype."""
    b, h, n, d = x.shape
    out = x.new_empty((b, h, n), dtype=_torch_accumulator(x))
    rows.norm_kernel[(b * h * triton.cdiv(n, configs.NORM_ROWS),)](
        x, out, *x.stride()[:3], h, n, D=d, BD=configs.padded(d), ROWS=configs.NORM_ROWS,
        ACC=accumulator(x), **configs.norm_launch(target(x)).options(),
    )  # fmt: skip
    return out


def _torch_accumulator(x: Tensor) -> Any:
    import torch

    return torch.float64 if x.dtype == torch.float64 else torch.float32


def bounds(q: Tensor, pairs: Pairs, scale: float) -> Tensor:
    """(B, Hq, N): |X| <= scale |q|_3 max |k1|_3 max |k2|_3 (Hoelder). NaN where that is NaN."""
    most = norms(pairs.k1).amax(2) * norms(pairs.k2).amax(2) * abs(scale)
    group = q.shape[1] // most.shape[1]
    return norms(q).mul_(most.repeat_interleave(group, 1).unsqueeze(2))


def forward(q: Tensor, pairs: Pairs, coefficients: Tensor | None, out: Tensor, lse: Tensor,
            scale: float, kind: str) -> None:  # fmt: skip
    """O and LSE; with coefficients numerator and denominator."""
    import torch

    if pairs.turned:
        pairs = pairs.swapped
    group = q.shape[1] // pairs.k1.shape[1]
    softmax = coefficients is None
    types, size = _precision(q, not softmax)
    config = _tile("forward", size, pairs, group)
    bound = bounds(q, pairs, scale) if softmax and kind == "trilinear" else None
    limit = configs.BOUND_FP16 if q.dtype == torch.float16 else configs.BOUND
    grid = (q.shape[0] * pairs.k1.shape[1] * triton.cdiv(q.shape[2] * group, config.bm),)
    rows.forward_kernel[grid](
        **strided("q", q), **strided("out", out), **pairs.arguments(),
        **in_two(scale * _LOG2E if softmax else scale), **types, **config.options(),
        bound_ptr=bound, coefficients_ptr=coefficients, lse_ptr=lse, n=q.shape[2], group=group,
        KIND=kind, FUNCTION="softmax" if softmax else "polynomial",
        DEGREE=0 if coefficients is None else coefficients.shape[-1] - 1,
        BM=config.bm, BN=config.bn, LIMIT_BOUND=limit,
    )  # fmt: skip


def backward(dout: Tensor, q: Tensor, pairs: Pairs, lse: Tensor | None, delta: Tensor,
             coefficients: Tensor | None, dq: Tensor, gradients: Sequence[Tensor], scale: float,
             kind: str) -> None:  # fmt: skip
    """dq, and into ``gradients`` those of k1, k2, v1, v2."""
    if pairs.turned:
        pairs = pairs.swapped
        gradients = [gradients[at] for at in (1, 0, 3, 2)]
    heads = pairs.k1.shape[1]
    group = q.shape[1] // heads
    types, size = _precision(q, coefficients is not None)
    common = {
        **strided("dout", dout), **strided("q", q), **pairs.arguments(), **in_two(scale), **types,
        "lse_ptr": lse, "delta_ptr": delta, "coefficients_ptr": coefficients, "n": q.shape[2],
        "group": group, "KIND": kind, "FUNCTION": "polynomial" if lse is None else "softmax",
        "DEGREE": 0 if coefficients is None else coefficients.shape[-1] - 1,
    }  # fmt: skip
    config = _tile("query", size, pairs, group)
    grid = (q.shape[0] * heads * triton.cdiv(q.shape[2] * group, config.bm),)
    rows.query_kernel[grid](
        **common, **strided("dq", dq), BM=config.bm, BN=config.bn, **config.options()
    )
    d, dv, m1, m2 = q.shape[3], dout.shape[3], pairs.k1.shape[2], pairs.k2.shape[2]
    config = configs.config("key", size, d, dv, target(q))
    shares1, shares2 = configs.shares(q.shape[0] * heads, m1, m2, config)
    acc = delta.dtype
    partial = [
        q.new_zeros((shares2, q.shape[0], heads, m1, d), dtype=acc),
        q.new_empty((shares1, q.shape[0], heads, m2, d), dtype=acc),
        q.new_zeros((shares2, q.shape[0], heads, m1, dv), dtype=acc),
        q.new_empty((shares1, q.shape[0], heads, m2, dv), dtype=acc),
    ]
    columns.key_kernel[(q.shape[0] * heads * shares1 * shares2,)](
        **common, dk1_ptr=partial[0], dk2_ptr=partial[1], dv1_ptr=partial[2], dv2_ptr=partial[3],
        shares1=shares1, shares2=shares2, BM=config.bm, BN=config.bn, **config.options(),
    )  # fmt: skip
    for gradient, parts in zip(gradients, partial, strict=True):
        gradient.copy_(parts[0] if parts.shape[0] == 1 else parts.sum(0))


# ------------------------------------------------------------------------- factored polynomial


@dataclass(frozen=True)
class Monomials:
    """What the kernels of features need beside a tensor of rows.

    Attributes:
        index: (degree, rank) int32. length: positions of a segment; segments: how many.
    """

    index: Tensor
    length: int
    segments: int


def _features(kernel: Callable[..., Any], grid: Callable[[configs.Config], int], x: Tensor,
              dv: int, group: int, of: Monomials, arguments: dict[str, Any]) -> None:  # fmt: skip
    _, size, precision = configs.operand(x.dtype, True)
    config = configs.config("features", size, x.shape[3], dv, target(x))
    kernel[(grid(config),)](
        **arguments, **strided("x", x), index_ptr=of.index, n=x.shape[2], length=of.length,
        heads=x.shape[1] // group, group=group, rank=of.index.shape[1],
        DEGREE=of.index.shape[0], D=x.shape[3], DV=dv, BDV=configs.padded(dv), BM=config.bm,
        BA=config.bn, PRECISION=precision, ACC=accumulator(x), **config.options(),
    )  # fmt: skip


def moments(x: Tensor, v: Tensor, one: Tensor | None, keep: Tensor | None, weight: Tensor | None,
            group: int, of: Monomials) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(segments, B, H / group, rank, Dv) and (..., rank): each segment's sums of features."""
    acc, dv, rank = _torch_accumulator(x), v.shape[3], of.index.shape[1]
    shape = (of.segments, x.shape[0], x.shape[1] // group, rank)
    sums, ones = x.new_empty((*shape, dv), dtype=acc), x.new_empty(shape, dtype=acc)
    arguments = {**strided("v", v), "one_ptr": one, "keep_ptr": wider(keep), "weight_ptr": weight,
                 "sums_ptr": sums, "ones_ptr": ones, "segments": of.segments}  # fmt: skip
    programs = of.segments * shape[1] * shape[2]
    _features(features.moment_kernel, lambda c: programs * triton.cdiv(rank, c.bn), x, dv, group,
              of, arguments)  # fmt: skip
    return sums, ones


def _row_grid(x: Tensor, group: int) -> Callable[[configs.Config], int]:
    pairs = x.shape[0] * x.shape[1] // group
    return lambda config: pairs * triton.cdiv(x.shape[2] * group, config.bm)


def evaluate(x: Tensor, weight: Tensor | None, sums: Tensor, ones: Tensor | None, group: int,
             of: Monomials, out: Tensor, total: Tensor | None) -> None:  # fmt: skip
    """Features of each row times its segment's sums, into out and total."""
    arguments = {**strided("out", out), "weight_ptr": weight, "sums_ptr": sums, "ones_ptr": ones,
                 "total_ptr": total}  # fmt: skip
    _features(features.evaluate_kernel, _row_grid(x, group), x, out.shape[3], group, of, arguments)


def gradient(x: Tensor, v: Tensor, one: Tensor | None, keep: Tensor | None,
             weight: Tensor | None, sums: Tensor, ones: Tensor, group: int, of: Monomials,
             dx: Tensor) -> None:  # fmt: skip
    """Gradient of x, where a feature's gradient is v . sums + one ones."""
    arguments = {**strided("v", v), **strided("dx", dx), "one_ptr": one, "keep_ptr": wider(keep),
                 "weight_ptr": weight, "sums_ptr": sums, "ones_ptr": ones,
                 "BD": configs.padded(x.shape[3])}  # fmt: skip
    _features(features.gradient_kernel, _row_grid(x, group), x, v.shape[3], group, of, arguments)
