"""What ``python -m sublimate check`` runs for this family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _parity
from .._parity import Case, Measurement
from . import coefficients, functional, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = ("dq", "dk1", "dk2", "dv1", "dv2")
#: name -> (rows, keys of each set, query and key heads, head dimensions, options, degree).
SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int], tuple[int, int], Any, int]] = {
    "full": (65, (65, 65), (4, 2), (32, 32), {}, 2),
    "causal, odd": (41, (41, 41), (2, 2), (19, 7), {"causal": True}, 2),
    "windows": (70, (70, 70), (2, 1), (16, 16), {"causal": True, "window": (9, 33)}, 2),
    "padding, cross": (23, (37, 30), (2, 2), (8, 12), {"padded": True}, 4),
}


def _normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int, size: float) -> Tensor:
    """Normal numbers of (B, H, N, D), in memory by position: B, N, H, D."""
    generator = torch.Generator().manual_seed(seed)
    b, h, n, d = shape
    wide = torch.randn(b, n, h, d, generator=generator, dtype=torch.float64)
    return (wide * size).to(dtype).transpose(1, 2)


def _inputs(name: str, dtype: torch.dtype, size: float) -> tuple[list[Tensor], Any, list[Any]]:
    """(q, k1, k2, v1, v2, upstream gradient), options, and the two padding masks."""
    n, (m1, m2), (hq, hkv), (d, dv), options, _ = SHAPES[name]
    shapes = ((hq, n, d), (hkv, m1, d), (hkv, m2, d), (hkv, m1, dv), (hkv, m2, dv), (hq, n, dv))
    sizes = (2 * size, size, size, 1.0, 1.0, 1.0)
    tensors = [
        _normal((2, *s), dtype, at, z) for at, (s, z) in enumerate(zip(shapes, sizes, strict=True))
    ]
    options = dict(options)
    masks: list[Any] = [None, None]
    if options.pop("padded", False):
        generator = torch.Generator().manual_seed(9)
        masks = [torch.rand(2, m, generator=generator) < 0.7 for m in (m1, m2)]
    return tensors, options, masks


def _weights(
    tensors: list[Tensor], options: Any, masks: list[Any], scale: float, c: list[float] | None
) -> tuple[Tensor, Tensor]:
    """Weights of all pairs by the definition, and their logits, in the tensors' dtype."""
    q, k1, k2 = tensors[:3]
    groups = q.shape[1] // k1.shape[1]
    k1, k2 = (t.repeat_interleave(groups, 1) for t in (k1, k2))
    logits = torch.einsum("bhia,bhja,bhka->bhijk", q, k1, k2) * scale
    n = q.shape[2]
    widths = options.get("window", (0, 0))
    causal = options.get("causal", False)
    seen = torch.ones_like(logits, dtype=torch.bool)
    for at, (k, mask, w) in enumerate(zip((k1, k2), masks, widths, strict=True)):
        allow = reference.allowed((0, n), (0, k.shape[2]), mask, causal, w, q.device)
        if allow is not None:
            seen = seen & (allow[:, None, :, :, None] if at == 0 else allow[:, None, :, None])
    if c is None:
        flat = logits.masked_fill(~seen, -math.inf).flatten(3).softmax(-1)
        return flat.reshape(logits.shape), logits
    weight = torch.zeros_like(logits)
    for a in reversed(c):
        weight = weight * logits + a
    return weight * seen, logits


def _dense(
    tensors: list[Tensor], options: Any, masks: list[Any], scale: float, c: list[float] | None
) -> Tensor:
    """O by the definition, in the tensors' dtype."""
    weight, _ = _weights(tensors, options, masks, scale, c)
    if c is not None:
        weight = weight / weight.sum((-1, -2), keepdim=True)
    groups = tensors[0].shape[1] // tensors[1].shape[1]
    v1, v2 = (t.repeat_interleave(groups, 1) for t in tensors[3:])
    return torch.einsum("bhijk,bhjd,bhkd->bhid", weight, v1, v2)


def _term_sizes(
    tensors: list[Tensor], up: Tensor, out: Tensor, options: Any, masks: list[Any], scale: float,
    c: list[float] | None,
) -> list[float]:  # fmt: skip
    """Of the output and each gradient, the largest sum of magnitudes of the terms it adds up.

    They cancel, in softmax's gradient and among signed monomials, so that rounding is measured by
    them; and a weight is off by the rounding of its logit.
    """
    size = [t.abs() for t in tensors]
    weight, logits = _weights(tensors, options, masks, scale, c)
    if c is not None:
        total = weight.sum((-1, -2), keepdim=True)
        weight = _weights(size, options, masks, scale, c)[0] / total
    groups = size[0].shape[1] // size[1].shape[1]
    k1, k2, v1, v2 = (t.repeat_interleave(groups, 1) for t in size[1:])
    delta = (up * out).abs().sum(-1)[..., None, None]
    ds = weight * (torch.einsum("bhid,bhjd,bhkd->bhijk", up.abs(), v1, v2) + delta) * scale
    q, factor = size[0], 1 + float(logits.abs().max())
    sums = (
        torch.einsum("bhijk,bhjd,bhkd->bhid", weight, v1, v2),
        torch.einsum("bhijk,bhja,bhka->bhia", ds, k1, k2),
        torch.einsum("bhijk,bhia,bhka->bhja", ds, q, k2) * groups,
        torch.einsum("bhijk,bhia,bhja->bhka", ds, q, k1) * groups,
        torch.einsum("bhijk,bhid,bhkd->bhjd", weight, up.abs(), v2) * groups,
        torch.einsum("bhijk,bhid,bhjd->bhkd", weight, up.abs(), v1) * groups,
    )
    return [factor * float(s.max()) for s in sums]


def _graded(call: Callable[..., Tensor], tensors: list[Tensor], up: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        out = call(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, up)]


def measure(
    name: str, method: str, dtype: torch.dtype, backend: str, device: str
) -> list[Measurement]:
    """Output and gradients of a shape in ``SHAPES``, exact or polynomial, on a backend."""
    (*tensors, up), options, masks = _inputs(name, dtype, 0.7 if method == "exact" else 0.4)
    scale, degree = tensors[0].shape[-1] ** -0.5, SHAPES[name][-1]
    there = [None if m is None else m.to(device) for m in masks]

    def ours(leaves: list[Tensor]) -> Tensor:
        out: Tensor = functional.kronecker_attention(
            *leaves, scale=scale, mask1=there[0], mask2=there[1], method=method,
            degree=None if method == "exact" else degree, backend=backend, **options,
        )  # fmt: skip
        return out

    c = None if method == "exact" else coefficients.taylor(degree)
    got = _graded(ours, [t.to(device) for t in tensors], up.to(device))
    plain = _graded(lambda ts: _dense(ts, options, masks, scale, c), tensors, up)
    wide = [t.double() for t in tensors]
    truth = _graded(lambda ts: _dense(ts, options, masks, scale, c), wide, up.double())
    sizes = _term_sizes(wide, up.double(), truth[0], options, masks, scale, c)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    found = []
    for what, g, p, t, size in zip(("forward", *NAMES), got, plain, truth, sizes, strict=True):
        kind = "forward" if what == "forward" else "gradient"
        variant = name if kind == "forward" else f"{name}, {what}"
        m = _parity.compare(variant, kind, g, p, t, backward=kind == "gradient")
        found.append(replace(m, max_limit=m.max_limit + 4 * unit * size))
    return found


def _every_shape(
    quick: bool, method: str, dtype: torch.dtype, backend: str, device: str
) -> list[Measurement]:
    names = list(SHAPES)[:2] if quick else list(SHAPES)
    return [m for n in names for m in measure(n, method, dtype, backend, device)]


def cases(backend: str, device: str, quick: bool) -> Iterator[Case]:
    """Exact and polynomial attention with every kind of mask: all dtypes, or two of them."""
    for dtype in DTYPES[:2] if quick else DTYPES:
        for method in ("exact", "polynomial"):
            run = partial(_every_shape, quick, method, dtype, backend, device)
            yield Case("kronecker_attention", f"{method} attention", backend, device, dtype, run)
