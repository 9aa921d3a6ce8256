"""Benchmarks of linear layers that keep a sketch, against the exact layer; of the transform alone.

A case is a shape, a ratio and a dtype; the sketches are its providers, so that they take turns with
one another and with one exact layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sublimate import _backends, randomized_linear
from sublimate._dtypes import accumulator
from sublimate._native import randomized_linear as native
from sublimate._parity import Measurement, compare
from sublimate.randomized_linear import reference
from torch import Tensor

from bench.harness.case import Case, Forward, Provider, Unavailable

#: Sketches without products of their own: no slower than the exact layer at ratio 0.2, faster at
#: 0.1 (by FLOPs 0.73 and 0.7 of it); the dense ones cost what they cost.
BARS = {0.2: {"both": 1.0}, 0.1: {"both": 0.95}}
LIGHT = ("srht", "countsketch", "rows", "crs", "wta")
DENSE = ("gaussian", "rademacher")
#: Over a copy that takes turns with it, where memory is what binds: 80 % of its bandwidth.
HADAMARD_BAR = {"fwd": 1.25}
LOG_LENGTHS = (7, 10, *range(13, 21))
#: Numbers that stay in the second-level caches of two cores, with their transforms.
RESIDENT = 2**17
SEED = 20_240_229
_ROWS, _OUTPUTS, _COLUMNS = 64, 64, 96  # of the parts that are compared in float64


def _unavailable(backend: str, device: str, dtype: torch.dtype) -> None:
    why = _backends.reasons("randomized_linear", backend, device, dtype)
    if why:
        raise Unavailable("; ".join(why))


# --------------------------------------------------------------------------------------- parity


def _parts(inputs: tuple[Tensor, ...], dy: Tensor) -> tuple[slice, slice, slice]:
    """Rows, outputs and input columns that are looked at: away from the start."""

    def window(size: int, count: int) -> slice:
        start = max(0, (size - count) * 2 // 3)
        return slice(start, start + min(size, count))

    x = inputs[0]
    return (
        window(x.shape[0], _ROWS),
        window(dy.shape[1], _OUTPUTS),
        window(x.shape[1], _COLUMNS),
    )


def _estimate(
    x: Tensor, columns: slice, dy: Tensor, sketch: str, k: int, dtype: torch.dtype
) -> Tensor:
    """(S^T dy)^T (S^T x[:, columns]) by the reference, in a dtype."""
    kept, rows = x[:, columns].to(dtype), dy.to(dtype)
    if sketch in reference.OBLIVIOUS:
        kept, rows = (reference.project(t, sketch, k, SEED) for t in (kept, rows))
    else:
        p = reference.row_probabilities(x)
        index, square = reference.sample(sketch, p, k, SEED)
        kept = reference.gather(kept, index, square.to(accumulator(dtype)))
        rows = reference.gather(rows, index)
    return rows.t() @ kept


def _verify(sketch: str, ratio: float):  # type: ignore[no-untyped-def]
    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        """y, dx and db on parts, exact; dW on a part, from the same sketch in float64."""
        x, weight, bias = (t.detach() for t in inputs)
        rows, outputs, columns = _parts(inputs, dy)
        y = forward(*inputs)
        dx, dw, db = torch.autograd.grad(y, inputs, dy)
        k = reference.rows_kept(x.shape[0], ratio)
        wide = torch.float64
        eager, truth = (
            _estimate(x, columns, dy[:, outputs], sketch, k, t) for t in (dw.dtype, wide)
        )
        return [
            compare(
                sketch, "forward", y[rows], F.linear(x[rows], weight, bias),
                F.linear(x[rows].to(wide), weight.to(wide), bias.to(wide)), backward=False,
            ),
            compare(
                sketch, "dx", dx[rows], dy[rows] @ weight, dy[rows].to(wide) @ weight.to(wide),
                backward=True,
            ),
            compare(
                sketch, "dW", dw[outputs, columns], eager, truth, backward=True,
            ),
            compare(sketch, "db", db, dy.sum(0), dy.to(wide).sum(0), backward=True),
        ]  # fmt: skip

    return verify


def _gradient_error(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> float:
    """Relative RMS difference of some rows of dW from the exact ones in float64: a layer with those
    outputs alone has the same sketch."""
    _, outputs, _ = _parts(inputs, dy)
    x, weight, bias = (t.detach() for t in inputs)
    part = weight[outputs].clone().requires_grad_()
    y = forward(x, part, bias[outputs])
    (got,) = torch.autograd.grad(y, part, dy[:, outputs])
    true = dy[:, outputs].double().t() @ x.double()
    return float(((got.double() - true).square().sum() / true.square().sum()).sqrt())


# ---------------------------------------------------------------------------------------- cases


def _linear_provider(
    sketch: str, ratio: float, backend: str, device: str, dtype: torch.dtype, n: int, i: int, o: int
) -> Provider:
    def make() -> Forward:
        _unavailable(backend, device, dtype)
        return lambda x, weight, bias: randomized_linear.linear(
            x, weight, bias, ratio=ratio, sketch=sketch, seed=SEED, backend=backend
        )

    k = reference.rows_kept(n, ratio)
    own = 2 * n * k if sketch in DENSE else 0  # of a projection, for each column
    fwd, bwd = 2 * n * i * o + own * i, 2 * n * i * o + 2 * k * i * o + own * o
    return Provider(
        f"sublimate-{backend}-{sketch}",
        make,
        verify=_verify(sketch, ratio),
        bars={} if sketch in DENSE or n < 1024 else BARS[ratio],
        flops={"fwd": fwd, "bwd": bwd, "both": fwd + bwd},
    )


def _linear(
    ratio: float,
    dtype: torch.dtype,
    n: int,
    i: int,
    o: int,
    device: str,
    sketches: tuple[str, ...],
    modes: tuple[str, ...],
) -> Case:
    s, k = dtype.itemsize, reference.rows_kept(n, ratio)
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    # Read x, W and b, write y and the sketch; read dy and W, the sketch and dy again, write dx, dW,
    # db.
    fwd = s * (n * i + o * i + o + n * o + k * i)
    bwd = s * (2 * n * o + o * i + k * i + n * i + o * i + o)
    short = str(dtype).removeprefix("torch.")
    flops = {"fwd": 2 * n * i * o, "bwd": 2 * (n + k) * i * o}
    return Case(
        id=f"randomized_linear/linear/ratio{ratio:g}/{short}/{n}x{i}-{o}/{device}",
        family="randomized_linear",
        op="linear",
        device=device,
        dtype=dtype,
        shapes=((n, i), (o, i), (o,)),
        output=(n, o),
        bits=0,
        bytes_moved={"fwd": fwd, "bwd": bwd, "both": fwd + bwd},
        flops={**flops, "both": flops["fwd"] + flops["bwd"]},
        providers=(
            Provider("eager", lambda: F.linear, peer=True),
            *(
                _linear_provider(sketch, ratio, backend, device, dtype, n, i, o)
                for backend in backends
                for sketch in sketches
            ),
        ),
        verify=_verify(sketches[0], ratio),
        gradient_error=_gradient_error,
        modes=modes,
    )


def _verify_hadamard(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
    y, x = forward(*inputs).detach(), inputs[0].detach()
    found = []
    for row in sorted({0, x.shape[0] // 2, x.shape[0] - 1}):
        part = x[row : row + 1]
        truth = reference.hadamard_transform(part.double())
        eager = reference.hadamard_transform(part)
        found.append(
            compare(f"row {row}", "forward", y[row : row + 1], eager, truth, backward=False)
        )
    return found


def _copy() -> Forward:
    """The same bytes, read and written once, into memory that the allocator has at hand."""
    return torch.clone


def _resident() -> Forward:
    """The transform of as many numbers, of the same few rows again and again: the same work without
    memory's part. Where this takes longer than the copy, arithmetic binds and not memory."""
    _unavailable("cpu", "cpu", torch.float32)

    def forward(x: Tensor) -> Tensor:
        rows = max(1, min(x.shape[0], RESIDENT // x.shape[1]))
        some = x[:rows].detach()
        out = torch.empty_like(some)
        for _ in range(x.shape[0] // rows):
            native.hadamard("cpu", some, out, 1.0)
        return out

    return forward


def _hadamard(dtype: torch.dtype, rows: int, length: int, device: str) -> Case:
    def ours(backend: str) -> Provider:
        def make() -> Forward:
            _unavailable(backend, device, dtype)
            return lambda x: randomized_linear.hadamard_transform(x, backend=backend)

        return Provider(f"sublimate-{backend}", make)

    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    n, s = rows * length, dtype.itemsize
    short = str(dtype).removeprefix("torch.")
    log = length.bit_length() - 1
    return Case(
        id=f"randomized_linear/hadamard/plain/{short}/{rows}x2^{log}/{device}",
        family="randomized_linear",
        op="hadamard",
        device=device,
        dtype=dtype,
        shapes=((rows, length),),
        bits=0,
        bytes_moved={"fwd": 2 * s * n},
        # An addition takes the place of a multiply-add, which the ceiling counts as two.
        flops={"fwd": 2 * n * log},
        providers=(
            Provider("copy", _copy, peer=True),
            *([Provider("cached", _resident, peer=True)] if device == "cpu" else []),
            *(ours(backend) for backend in backends),
        ),
        verify=_verify_hadamard,
        gradient_error=lambda forward, inputs, dy: 0.0,
        bars=HADAMARD_BAR if n * s >= 2**27 else {},
        modes=("fwd",),
        differentiable=False,
    )


def cases(quick: bool = False) -> list[Case]:
    """All cases, CPU and GPU; ``quick`` shrinks the data until only the harness is tested."""
    fp32, bf16 = torch.float32, torch.bfloat16
    every = ("fwd", "bwd", "both")
    found = []
    for device in ("cpu", "cuda"):
        for dtype in (fp32, bf16):
            if quick:
                found.append(_linear(0.2, dtype, 96, 32, 48, device, DENSE + LIGHT, every))
                found.append(_hadamard(dtype, 8, 256, device))
                continue
            for ratio in BARS:
                found += [
                    _linear(ratio, dtype, 4096, 768, 3072, device, LIGHT + DENSE, every),
                    _linear(ratio, dtype, 16384, 768, 3072, device, LIGHT, ("both",)),
                    _linear(ratio, dtype, 4096, 4096, 4096, device, LIGHT, ("both",)),
                    _linear(ratio, dtype, 16384, 4096, 4096, device, LIGHT, ("both",)),
                ]
            total = 2**26 if device == "cpu" else 2**28
            found += [_hadamard(dtype, total >> log, 1 << log, device) for log in LOG_LENGTHS]
    return found
