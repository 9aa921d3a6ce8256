"""Calls of every path-integral kernel beside the reference: bodies of the lanes' tests.

A call is checked by the rule of ``helpers.parity``: the truth is the reference in float64 on the
inputs as they are, the allowance is the reference's own error in their dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sublimate.path_integral.ops  # noqa: F401  registers the operators
import torch
from sublimate._dtypes import accumulator
from sublimate.path_integral import reference
from torch import Tensor

from . import parity

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: (points, samples, size): around vectors, the CPU's block of 1024 and Triton's of 512, and the
#: four points that the CPU sums at once.
SIZES = ((1, 1, 1), (3, 2, 37), (2, 3, 1030), (0, 2, 5), (2, 0, 5), (2, 1, 2049), (10, 2, 45))
#: (points, images, channels, height, width, mask height, mask width)
PICTURES = (
    (2, 2, 3, 9, 11, 3, 4), (1, 1, 1, 1, 1, 1, 1), (3, 2, 1, 32, 40, 28, 28),
    (2, 1, 2, 5, 600, 7, 3), (2, 2, 1, 4, 5, 1, 6),
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One op, its arguments without the backend, and its namesake in plain torch."""

    name: str
    op: Callable[..., Any]
    truth: Callable[..., Any]
    arguments: tuple[Any, ...]

    def check(self, backend: str) -> None:
        got = self.op(*self.arguments, backend)
        wide = [_widened(a) for a in self.arguments]
        for result, eager, truth in zip(
            _tuple(got), _tuple(self.truth(*self.arguments)), _tuple(self.truth(*wide)), strict=True
        ):
            if truth.numel() >= 32 and result.dtype != torch.float64:
                parity.assert_parity(result, truth.double(), eager, what=self.name)
                continue
            # One number that cancels has no statistics, and in float64 the truth rounds like the
            # result (and places of an interpolation are off by an ulp of the place): units in the
            # last place of the largest terms.
            unit = (32 if result.dtype == torch.float64 else 8) * torch.finfo(result.dtype).eps
            size = max([8.0, *truth[truth.isfinite()].abs().tolist()])
            torch.testing.assert_close(
                result.double(), truth.double(), rtol=0, atol=unit * size, equal_nan=True,
                msg=lambda text: f"{self.name}: {text}",
            )  # fmt: skip


def _widened(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.double()
    return torch.float64 if isinstance(argument, torch.dtype) else argument


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


class Numbers:
    """A stream of test data on a device; ``offset`` puts it off every alignment."""

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device = dtype, device

    def normal(self, *shape: int, dtype: torch.dtype | None = None, offset: int = 0) -> Tensor:
        count = torch.Size(shape).numel()
        room = torch.randn(count + offset, generator=self.generator, dtype=torch.float64)
        return room.to(dtype or accumulator(self.dtype)).to(self.device)[offset:].view(shape)

    def index(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator).to(self.device)


def _noise(data: Numbers, samples: int, step: int) -> tuple[Tensor, Tensor, Tensor, int]:
    row = torch.arange(samples, device=data.device) * 10007 + 2**33 + 3
    seed = torch.tensor(2**40 + 12345, device=data.device)
    return data.normal(samples).abs(), seed, row, step


def path_calls(dtype: torch.dtype, device: str, sizes: Any = SIZES) -> Iterator[Call]:
    """Points, sums and their transposes."""
    ops, data = torch.ops.sublimate, Numbers(dtype, device)
    for k, b, e in sizes:
        x, up, acc = data.normal(b, e), data.normal(b, e, offset=1), data.normal(b, e)
        square = data.normal(b, e).abs()
        grads = data.normal(k, b, e, dtype=dtype, offset=3)
        for rows, gathered, each in ((b, False, False), (1, False, True), (7, True, False),
                                     (7, True, True)):  # fmt: skip
            base = data.normal(rows, e, offset=1)
            index = data.index(7, k, b) if gathered else None
            weight = data.normal(k, b) if each else data.normal(k)
            shown = f"{dtype} {k}x{b}x{e} base {rows} {'gathered' if gathered else ''} {each}"
            for noise in ((None, None, None, 0), _noise(data, b, e + 1)):
                arguments = (x, base, index, weight, *noise, dtype)
                yield Call(f"points {shown}", ops.path_points, reference.points, arguments)
            for second in (False, True):
                for before in ((None, None), (acc, square if second else None)):
                    tail = (*before, second)
                    yield Call(
                        f"sums {shown}", ops.path_accumulate, reference.accumulate,
                        (grads, weight, *tail),
                    )  # fmt: skip
                    yield Call(
                        f"difference sums {shown}", ops.path_accumulate_difference,
                        reference.accumulate_difference, (grads, weight, x, base, index, *tail),
                    )  # fmt: skip
            yield Call(
                f"difference {shown}", ops.path_difference, reference.difference,
                (up, weight, x, base, index, dtype),
            )  # fmt: skip
            if not gathered and dtype == accumulator(dtype):
                yield Call(f"scale {shown}", ops.path_scale, reference.scale, (acc, x, base))


def mask_calls(dtype: torch.dtype, device: str, pictures: Any = PICTURES) -> Iterator[Call]:
    """Mask points, the mask's gradient, and the penalties with theirs."""
    ops, data = torch.ops.sublimate, Numbers(dtype, device)
    for k, n, c, h, w, small_h, small_w in pictures:
        image, base = data.normal(n, c, h, w), data.normal(1 if k > 2 else n, c, h, w)
        mask, alpha = data.normal(n, 1, small_h, small_w), data.normal(k)
        shown = f"{dtype} {k}x{n}x{c}x{h}x{w} mask {small_h}x{small_w}"
        for noise in ((None, None, None, 0), _noise(data, n, c * h * w)):
            arguments = (image, base, mask, alpha, *noise, dtype)
            yield Call(f"mask points {shown}", ops.path_mask_points, reference.mask_points,
                       arguments)  # fmt: skip
        grads = data.normal(k, n, c, h, w, dtype=dtype)
        yield Call(
            f"mask gradient {shown}", ops.path_mask_grad, reference.mask_grad,
            (grads, image, base, alpha, small_h, small_w),
        )  # fmt: skip
        if dtype == accumulator(dtype):
            mask = mask + 0.5
            yield Call(f"penalty {shown}", ops.path_mask_penalty, reference.mask_penalty, (mask,))
            yield Call(
                f"penalty gradient {shown}", ops.path_mask_penalty_grad, penalty_grad,
                (mask, data.normal(n), data.normal(n)),
            )  # fmt: skip


def penalty_grad(mask: Tensor, variation: Tensor, area: Tensor) -> Tensor:
    """What autograd makes of the reference's penalties."""
    leaf = mask.detach().requires_grad_()
    terms = reference.mask_penalty(leaf)
    (grad,) = torch.autograd.grad(terms, leaf, (variation, area))
    return grad
