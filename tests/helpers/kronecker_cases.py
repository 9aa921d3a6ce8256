"""Data, closed formulas and variants of the Kronecker attention tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from helpers import lanes
from torch import Tensor


@dataclass(frozen=True)
class Variant:
    """Shapes and masks of one call; lengths of the keys default to n."""

    name: str
    n: int = 17
    lengths: tuple[int, int] | None = None
    heads: tuple[int, int] = (2, 2)
    dims: tuple[int, int] = (16, 16)
    batch: int = 2
    causal: bool = False
    window: tuple[int, int] | None = None
    padding: str = ""

    @property
    def key_lengths(self) -> tuple[int, int]:
        return self.lengths or (self.n, self.n)


VARIANTS = (
    Variant("length 1", n=1),
    Variant("full 17", heads=(4, 2)),
    Variant("full 63", n=63, heads=(2, 1), dims=(32, 32), batch=1),
    Variant("full 129", n=129, heads=(1, 1), dims=(8, 12), batch=1),
    Variant("odd head dims", n=33, dims=(19, 7)),
    Variant("wide heads", n=9, dims=(128, 100), heads=(1, 1), batch=1),
    Variant("head dim 1", n=20, dims=(1, 1)),
    Variant("cross lengths", n=23, lengths=(41, 30), heads=(2, 1)),
    Variant("one key", n=5, lengths=(1, 35)),
    Variant("causal", n=63, causal=True, batch=1),
    Variant("causal cross", n=40, lengths=(17, 66), causal=True, batch=1),
    Variant("both windows", n=70, causal=True, window=(9, 33), batch=1),
    Variant("window one", n=50, window=(0, 7), batch=1),
    Variant("window other, causal", n=50, causal=True, window=(20, 0), heads=(3, 1), batch=1),
    Variant("padding", n=21, lengths=(37, 18), padding="both"),
    Variant("padding, causal", n=37, padding="both", causal=True, heads=(4, 2)),
    Variant("padding one, window", n=45, padding="first", window=(11, 6), causal=True),
    Variant("rows without keys", n=21, padding="rows", causal=True),
    Variant("a batch without keys", n=19, padding="batch"),
)


def name_of(value: object) -> str:
    return getattr(value, "name", str(value)).replace(" ", "-").removeprefix("torch.")


def normal(shape: Sequence[int], seed: int, dtype: torch.dtype, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(dtype)


def inputs(v: Variant, dtype: torch.dtype = torch.float64, size: float = 0.7) -> list[Tensor]:
    """q, k1, k2, v1, v2 and an upstream gradient of the output, rounded to ``dtype``."""
    (hq, hkv), (d, dv), (m1, m2) = v.heads, v.dims, v.key_lengths
    shapes = [(hq, v.n, d), (hkv, m1, d), (hkv, m2, d), (hkv, m1, dv), (hkv, m2, dv), (hq, v.n, dv)]
    sizes = [size * 2, size, size, 1.0, 1.0, 1.0]
    return [
        normal((v.batch, *shape), at, dtype, s)
        for at, (shape, s) in enumerate(zip(shapes, sizes, strict=True))
    ]


def masks(v: Variant) -> tuple[Tensor | None, Tensor | None]:
    if not v.padding:
        return None, None
    m1, m2 = v.key_lengths
    generator = torch.Generator().manual_seed(7)
    first = torch.rand(v.batch, m1, generator=generator) < 0.7
    second = torch.rand(v.batch, m2, generator=generator) < 0.7
    if v.padding == "first":
        return first, None
    if v.padding == "rows":  # causal rows before the first allowed key
        first[:, : m1 // 2] = False
    if v.padding == "batch":
        first[0] = False
    return first, second


def allowed(v: Variant) -> tuple[Tensor, Tensor]:
    """(B, N, M1) and (B, N, M2) bool, written out."""
    found = []
    window = v.window or (0, 0)
    i = torch.arange(v.n)[:, None]
    for m, w, mask in zip(v.key_lengths, window, masks(v), strict=True):
        j = torch.arange(m)[None]
        a = torch.ones(v.n, m, dtype=torch.bool)
        if v.causal or w:
            a = a & (j <= i)
        if w:
            a = a & (j > i - w)
        a = a.expand(v.batch, -1, -1)
        found.append(a if mask is None else a & mask[:, None])
    return found[0], found[1]


def dense(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    allow: Sequence[Tensor],
    scale: float,
    c: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE) by the definition, in q's dtype: every logit at once. For rows with no key: 0, -inf.

    c: coefficients of a polynomial in place of exp; LSE is then the log of the denominator.
    """
    groups = q.shape[1] // keys[0].shape[1]
    keys = [k.repeat_interleave(groups, 1) for k in keys]
    values = [t.repeat_interleave(groups, 1) for t in values]
    letters = "jklm"[: len(keys)]
    logits = scale * torch.einsum(
        f"bhia,{','.join(f'bh{x}a' for x in letters)}->bhi{letters}", q, *keys
    )
    seen = torch.ones_like(logits, dtype=torch.bool)
    for at, a in enumerate(allow):
        shape = [a.shape[0], 1, a.shape[1], *(1,) * len(keys)]
        shape[3 + at] = a.shape[2]
        seen = seen & a.reshape(shape)
    if c is None:
        flat = logits.masked_fill(~seen, -math.inf).flatten(3)
        lse = flat.logsumexp(-1)
        weight = flat.softmax(-1).nan_to_num(0.0).reshape(logits.shape)
        weight = torch.where(seen, weight, torch.zeros_like(weight))
    else:
        weight = torch.zeros_like(logits)
        for x in reversed(c):
            weight = weight * logits + x
        weight = torch.where(seen, weight, torch.zeros_like(weight))
        total = weight.flatten(3).sum(-1)
        lse = total.log()
        weight = weight / torch.where(total == 0, torch.ones_like(total), total).reshape(
            *total.shape, *(1,) * len(keys)
        )
    out = torch.einsum(
        f"bhi{letters},{','.join(f'bh{x}d' for x in letters)}->bhid", weight, *values
    )
    return out, lse


def gradients(function, leaves: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Outputs of ``function(*leaves)`` (a tensor or a tuple), then gradients of all leaves."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = torch.autograd.grad(outputs[: len(upstream)], leaves, upstream)
    return [*(t.detach() for t in outputs), *grads]


#: The family has no CUDA kernel: on a GPU, Triton runs. Triton's interpreter is a lane of its own.
BACKENDS = [
    lanes.REFERENCE,
    lanes.CPU,
    *(pytest.param(lane, marks=pytest.mark.gpu) for lane in lanes.GPU if lane.backend == "triton"),
]
