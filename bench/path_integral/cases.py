"""Benchmarks of the path-integral kernels: path points and sums along them, noisy batches, expected
gradients, mask paths; whole calls are in ``calls.py``.

A case's forward writes a chunk of K points for B samples of E numbers (or, for expected gradients,
sums one), its backward is the other map. The bytes declared are the least: each number of the chunk
once, and what belongs to samples once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sublimate import _backends
from sublimate._dtypes import accumulator
from sublimate._parity import Measurement, compare
from sublimate.path_integral import autograd, reference
from torch import Tensor

from bench.harness.case import Case, Forward, Provider, Unavailable
from bench.path_integral import calls

#: Of the copy bandwidth: within 25 % of the least bytes.
FRACTION = 0.8
#: SmoothGrad's noisy batch against torch.randn.
NOISE_BAR = {"fwd": 1 / 3}
SEED, STDEV = 20_240_229, 0.15
#: (points, samples, size): digits for an MLP, pictures of a small and a large network.
CHUNKS = ((50, 64, 784), (50, 8, 12288), (10, 8, 150528))
#: (points, images, channels, height, width), with a mask of MASK x MASK.
PICTURES = ((10, 8, 3, 224, 224),)
MASK = 28


def _backends_of(device: str) -> tuple[str, ...]:
    return ("cuda", "triton") if device == "cuda" else ("cpu",)


def _random(shape: tuple[int, ...], device: str, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)


def _ours(
    backend: str, device: str, dtype: torch.dtype, forward: Callable[[str], Forward]
) -> Provider:
    def make() -> Forward:
        why = _backends.reasons("path_integral", backend, device, dtype)
        if why:
            raise Unavailable("; ".join(why))
        return forward(backend)

    return Provider(f"sublimate-{backend}", make)


def _verify(eager: Forward, truth: Forward) -> Any:
    """Result and gradient against the plain forms, in the case's dtype and in float64."""

    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        (leaf,) = inputs
        wide = leaf.detach().double().requires_grad_()
        results = [f(t) for f, t in ((forward, leaf), (eager, leaf), (truth, wide))]
        grads = [
            torch.autograd.grad(y, t, dy.to(y.dtype))[0]
            for y, t in zip(results, (leaf, leaf, wide), strict=True)
        ]
        return [
            compare("path", "forward", *(y.detach() for y in results), backward=False),
            compare("path", "gradient", *grads, backward=True),
        ]

    return verify


def _case(
    op: str, dtype: torch.dtype, device: str, shown: str, leaf: tuple[int, ...],
    output: tuple[int, ...], moved: dict[str, int], flops: dict[str, int],
    forward: Callable[[str], Forward], eager: Forward, truth: Forward, **more: Any,
) -> Case:  # fmt: skip
    short = str(dtype).removeprefix("torch.")
    ours = (_ours(b, device, dtype, forward) for b in _backends_of(device))
    return Case(
        id=f"path_integral/{op}/plain/{short}/{shown}/{device}",
        family="path_integral",
        op=op,
        device=device,
        dtype=dtype,
        shapes=(leaf,),
        output=output,
        bits=0,
        bytes_moved=moved,
        flops=flops,
        providers=(Provider("eager", lambda: eager, peer=True), *ours),
        verify=_verify(eager, truth),
        gradient_error=lambda forward, inputs, dy: 0.0,
        **more,
    )


def _straight(k: int, b: int, e: int, dtype: torch.dtype, device: str) -> Case:
    """Forward: points of a straight path; backward: their weighted sum."""
    acc = accumulator(dtype)
    base, alpha = _random((b, e), device, acc, 1), torch.linspace(0, 1, k + 2, device=device)[1:-1]

    def ours(backend: str) -> Forward:
        weight = alpha.to(acc)
        return lambda x: autograd.points(
            x.to(acc), base, None, weight, dtype=dtype, backend=backend
        )

    def plain(x: Tensor) -> Tensor:
        start = base.to(accumulator(x.dtype))
        z = start + alpha.to(start.dtype)[:, None, None] * (x.to(start.dtype) - start)
        return z.to(x.dtype)

    n, s, a = k * b * e, dtype.itemsize, acc.itemsize
    return _case(
        "straight", dtype, device, f"{k}x{b}x{e}", (b, e), (k, b, e),
        {"fwd": s * n + 2 * a * b * e, "bwd": s * n + a * b * e}, {"fwd": 3 * n, "bwd": 2 * n},
        ours, plain, plain, least_fraction=FRACTION if n >= 2**22 else 0.0, modes=("fwd", "bwd"),
    )  # fmt: skip


def _smooth(k: int, b: int, e: int, dtype: torch.dtype, device: str) -> Case:
    """SmoothGrad's noisy batch."""
    acc = accumulator(dtype)
    stdev = torch.full((b,), STDEV, dtype=acc, device=device)
    one, seed = torch.ones(k, dtype=acc, device=device), torch.tensor(SEED, device=device)
    step = (e + 3) // 4 * 4
    row = torch.arange(b, device=device) * (k * step)

    def ours(backend: str) -> Forward:
        def forward(x: Tensor) -> Tensor:
            wide = x.to(acc)
            return autograd.points(
                wide, wide.detach(), None, one, stdev, seed, row, step, dtype, backend
            )

        return forward

    def randn(x: Tensor) -> Tensor:
        return x + torch.randn((k, b, e), dtype=x.dtype, device=x.device) * STDEV

    def same_noise(x: Tensor) -> Tensor:
        wide = x.to(accumulator(x.dtype))
        normal = reference.noise(seed, row, k, step, e).to(wide.dtype)
        return (wide + stdev.to(wide.dtype)[:, None] * normal).to(x.dtype)

    n, s, a = k * b * e, dtype.itemsize, acc.itemsize
    case = _case(
        "smooth", dtype, device, f"{k}x{b}x{e}", (b, e), (k, b, e),
        {"fwd": s * n + a * b * e}, {"fwd": 2 * n}, ours, randn, same_noise,
        bars=NOISE_BAR if n >= 2**21 else {}, modes=("fwd",),
    )  # fmt: skip
    return replace(case, verify=_verify(same_noise, same_noise))


def _expected(k: int, b: int, e: int, dtype: torch.dtype, device: str) -> Case:
    """Forward: the sum of expected gradients; backward: its transpose in the gradients."""
    acc = accumulator(dtype)
    x, base = _random((b, e), device, acc, 2), _random((b, e), device, acc, 3)
    weight = torch.full((k,), 1 / k, dtype=acc, device=device)
    generator = torch.Generator().manual_seed(4)
    index = torch.randint(0, b, (k, b), generator=generator).to(device)

    def ours(backend: str) -> Forward:
        return lambda grads: autograd.accumulate_difference(
            grads, weight, x, base, index, backend=backend
        )[0].to(grads.dtype)

    def plain(grads: Tensor) -> Tensor:
        wide = accumulator(grads.dtype)
        return reference.accumulate_difference(
            grads, weight.to(wide), x.to(wide), base.to(wide), index, None, None, False
        )[0].to(grads.dtype)

    n, s, a = k * b * e, dtype.itemsize, acc.itemsize
    # The reference rows are read again for each point (the research table's 4E with those of the
    # writer): from the caches while they fit.
    moved = (s + a) * n + 2 * a * b * e
    return _case(
        "expected", dtype, device, f"{k}x{b}x{e}", (k, b, e), (b, e),
        {"fwd": moved, "bwd": moved}, {"fwd": 4 * n, "bwd": 3 * n}, ours, plain, plain,
        least_fraction=FRACTION if n >= 2**22 else 0.0, modes=("fwd", "bwd"),
    )  # fmt: skip


class _MaskPath(torch.autograd.Function):
    """The writer of mask paths and the mask's gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, mask: Tensor, image: Tensor, base: Tensor, alpha: Tensor, dtype: torch.dtype,
        backend: str,
    ) -> Tensor:  # fmt: skip
        ctx.constants, ctx.shape, ctx.backend = (image, base, alpha), mask.shape, backend
        return autograd.mask_points(image, base, mask, alpha, dtype=dtype, backend=backend)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:  # type: ignore[override]
        grad = autograd.mask_grad(up, *ctx.constants, *ctx.shape[2:], ctx.backend)
        return grad, *(None,) * 5


def _mask(
    k: int, n: int, c: int, h: int, w: int, dtype: torch.dtype, device: str, small: int = MASK
) -> Case:
    acc = accumulator(dtype)
    image, base = (_random((n, c, h, w), device, acc, seed) for seed in (5, 6))
    alpha = torch.linspace(0, 1, k + 1, dtype=acc, device=device)[1:]

    def ours(backend: str) -> Forward:
        return lambda mask: _MaskPath.apply(mask.to(acc), image, base, alpha, dtype, backend)

    def plain(mask: Tensor) -> Tensor:
        wide = accumulator(mask.dtype)
        constants = (t.to(wide) for t in (image, base))
        return reference.mask_points(
            *constants, mask.to(wide), alpha.to(wide), None, None, None, 0, mask.dtype
        )

    count, s, a = k * n * c * h * w, dtype.itemsize, acc.itemsize
    moved = s * count + 2 * a * n * c * h * w
    return _case(
        "mask", dtype, device, f"{k}x{n}x{c}x{h}x{w}", (n, 1, small, small), (k, n, c, h, w),
        {"fwd": moved, "bwd": moved + 2 * a * n * h * w}, {"fwd": 2 * count, "bwd": 2 * count},
        ours, plain, plain, least_fraction=FRACTION if count >= 2**22 else 0.0,
        modes=("fwd", "bwd"),
    )  # fmt: skip


def cases(quick: bool = False) -> list[Case]:
    """All cases, CPU and GPU; ``quick`` shrinks the data until only the harness is tested."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    chunks = ((3, 4, 100),) if quick else CHUNKS
    pictures = ((2, 2, 3, 17, 20),) if quick else PICTURES
    found = []
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            for k, b, e in chunks:
                grown = 4 * k if device == "cuda" and not quick else k
                found += [
                    make(grown, b, e, dtype, device) for make in (_straight, _smooth, _expected)
                ]
            found += [_mask(*shape, dtype, device, 7 if quick else MASK) for shape in pictures]
    return found + calls.cases(quick)
