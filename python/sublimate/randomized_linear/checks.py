"""What ``python -m sublimate check`` runs for this family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _parity
from .._parity import Case, Measurement
from . import functional, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: (rows, inputs, outputs, ratio): within a block of the transforms, and two blocks of them.
SHAPES = ((301, 37, 41, 0.3), (1100, 24, 9, 0.1))
#: Lengths of the transform: short rows, one block, and more than a block holds.
LENGTHS = (37, 1024, 5000, 2**16)
SEED = 2**40 + 5
_CONSTANT = 2048  # bytes kept besides the sketch: a seed


def _normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, rows of different sizes, apart in memory."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator, dtype=torch.float64)
    size = 0.2 + torch.rand(shape[0], 1, generator=generator, dtype=torch.float64)
    return (wide * size).to(dtype)[..., : shape[-1]]


def _estimate(
    x: Tensor, dy: Tensor, sketch: str, k: int, p: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(S^T dy)^T (S^T x) by the reference, in a dtype."""
    x, dy = x.to(dtype), dy.to(dtype)
    if p is None:
        kept, rows = (reference.project(t, sketch, k, SEED) for t in (x, dy))
    else:
        index, square = reference.sample(sketch, p, k, SEED)
        kept = reference.gather(x, index, square)
        rows = reference.gather(dy, index)
    return rows.t() @ kept


def _linear(sketch: str, dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    found = []
    for n, i, o, ratio in SHAPES:
        variant, wide = f"{n} rows, ratio {ratio:g}", torch.float64
        x, weight, dy = (_normal(s, dtype, m) for m, s in enumerate(((n, i), (o, i), (n, o))))
        bias = _normal((1, o), dtype, 3)[0]
        p = reference.row_probabilities(x) if sketch in reference.SAMPLERS else None
        there = [t.to(device).requires_grad_() for t in (x, weight, bias)]
        kept: dict[int, Tensor] = {}

        def keep(t: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            return kept.setdefault(t.untyped_storage().data_ptr(), t)

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
        with torch.enable_grad(), hooks:
            y = functional.linear(
                *there, ratio=ratio, sketch=sketch, seed=SEED, backend=backend,
                probabilities=None if p is None else p.to(device),
            )  # fmt: skip
        own = there[1].untyped_storage().data_ptr()
        total = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at != own)
        grads = torch.autograd.grad(y, there, dy.to(device))
        k = reference.rows_kept(n, ratio)
        x64, w64, b64, dy64 = (t.to(wide) for t in (x, weight, bias, dy))
        estimates = [_estimate(x, dy, sketch, k, p, t) for t in (dtype, wide)]
        eager = (dy @ weight, estimates[0], dy.sum(0))
        truth = (dy64 @ w64, estimates[1], dy64.sum(0))
        plain, true = F.linear(x, weight, bias), F.linear(x64, w64, b64)
        found.append(_parity.compare(variant, "forward", y, plain, true, backward=False))
        found += [
            _parity.compare(f"{variant}, {what}", "gradient", *parts, backward=True)
            for what, *parts in zip(("dx", "dW", "db"), grads, eager, truth, strict=True)
        ]
        limit = k * (i * x.element_size() + 4 * (p is not None)) + _CONSTANT
        found.append(Measurement(variant, "kept bytes", float(total), float(limit)))
    return found


def _hadamard(dtype: torch.dtype, quick: bool, backend: str, device: str) -> list[Measurement]:
    found = []
    for length in LENGTHS[: 2 if quick else None]:
        x, scale = _normal((3, length), dtype, length), length**-0.5
        dy = _normal((3, reference.power_of_two(length)), dtype, 1)
        leaf = x.to(device).requires_grad_()
        y = functional.hadamard_transform(leaf, scale, backend=backend)
        (dx,) = torch.autograd.grad(y, leaf, dy.to(device))
        pairs = [
            [reference.hadamard_transform(v.to(t), scale) for t in (dtype, torch.float64)]
            for v in (x, dy)
        ]
        back = [t[:, :length] for t in pairs[1]]
        found += [
            _parity.compare(f"length {length}", "forward", y, *pairs[0], backward=False),
            _parity.compare(f"length {length}", "gradient", dx, *back, backward=True),
        ]
    return found


def cases(backend: str, device: str, quick: bool) -> Iterator[Case]:
    """A layer with each sketch, and the transform: all dtypes, or two of them."""

    def case(op: str, dtype: torch.dtype, run: Callable[[], list[Measurement]]) -> Case:
        return Case("randomized_linear", op, backend, device, dtype, run)

    for dtype in DTYPES[:2] if quick else DTYPES:
        for sketch in reference.SKETCHES:
            run = partial(_linear, sketch, dtype, backend, device)
            yield case(f"linear, {sketch}", dtype, run)
        yield case("hadamard", dtype, partial(_hadamard, dtype, quick, backend, device))
