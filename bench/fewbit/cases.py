"""Benchmarks of few-bit GELU, SiLU, ReLU and SwiGLU against eager and compiled torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sublimate import _backends, fewbit
from sublimate._parity import Measurement
from sublimate.fewbit import checks, reference
from sublimate.fewbit.codebook import default_codebook
from torch import Tensor

from bench.harness.case import Case, Forward, Provider, Unavailable

#: Multiplications and additions of one value of the function, to the nearest ten (an exponential
#: or an error function is some 20); comparisons with the borders come on top. Backward multiplies
#: once.
_FLOPS = {"gelu": 30, "silu": 30, "relu": 1}
_EAGER: dict[str, Forward] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "swiglu": lambda gate, up: F.silu(gate) * up,
}
#: Largest ratio to eager on a CPU, 3 bits, warm allocator.
CPU_BARS = {"fwd": 1.1, "bwd": 0.5, "both": 0.8}
#: Forward and backward together no slower than eager, each at 85 % of the measured copy bandwidth.
GPU_BARS, GPU_FRACTION = {"both": 1.0}, 0.85
_WINDOW = 2**14


# ------------------------------------------------------------------------------------ providers


def _ours(op: str, bits: int, backend: str, device: str, dtype: torch.dtype) -> Provider:
    def make() -> Forward:
        why = _backends.reasons("fewbit", backend, device, dtype)
        if why:
            raise Unavailable("; ".join(why))
        function: Callable[..., Tensor] = getattr(fewbit, op)
        return lambda *inputs: function(*inputs, bits=bits, backend=backend)

    return Provider(f"sublimate-{backend}", make)


def _compiled(op: str, device: str) -> Forward:
    import torch._functorch.config

    torch._dynamo.reset()
    # A backward that is timed again and again must not reuse the memory of what it saved.
    torch._functorch.config.donated_buffer = device != "cuda"
    return torch.compile(_EAGER[op], fullgraph=True, dynamic=False)


def _providers(op: str, bits: int, device: str, dtype: torch.dtype) -> tuple[Provider, ...]:
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    return (
        Provider("eager", lambda: _EAGER[op], peer=True),
        Provider("compile", lambda: _compiled(op, device), peer=True),
        *(_ours(op, bits, backend, device, dtype) for backend in backends),
    )


# --------------------------------------------------------------------------------------- parity


def _windows(inputs: tuple[Tensor, ...], rows: bool) -> list[slice]:
    """First, middle and last elements (or rows) of the data."""
    size = inputs[0].shape[0]
    count = min(size, 4 if rows else _WINDOW)
    return [slice(k, k + count) for k in sorted({0, (size - count) // 2, size - count})]


def _full_size(
    forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor, windows: list[slice]
) -> list[Measurement]:
    """Parts of the whole result are what the same call gives on that part of the input alone."""
    y = forward(*inputs)
    whole = (y, *torch.autograd.grad(y, inputs, dy))
    found = []
    for window in windows:
        leaves = [t.detach()[window].clone().requires_grad_() for t in inputs]
        part = forward(*leaves)
        alone = (part, *torch.autograd.grad(part, leaves, dy[window]))
        for k, (got, want) in enumerate(zip(whole, alone, strict=True)):
            got, want = got.detach()[window].double(), want.detach().double()
            # The vector body and the tail of a loop may round differently, by one unit.
            limit = torch.finfo(dy.dtype).eps * float(want.abs().max())
            error = float((got - want).abs().max())
            name = "forward" if k == 0 else "gradient"
            found.append(Measurement(f"elements from {window.start}", name, error, limit))
    return found


def _verify_activation(op: str, bits: int) -> Callable[..., list[Measurement]]:
    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        codebook = default_codebook(op, bits, mode="auto")
        windows = _windows(inputs, rows=False)
        found = []
        for w in windows:
            x = inputs[0].detach()[w].clone()
            found += checks.activation(f"{bits} bits", forward, codebook, x, dy[w].clone())
        return found + _full_size(forward, inputs, dy, windows)

    return verify


def _verify_swiglu(bits: int) -> Callable[..., list[Measurement]]:
    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        windows = _windows(inputs, rows=True)
        found = []
        for w in windows:
            gate, up, d = (t.detach()[w].clone() for t in (*inputs, dy))
            found += checks.gated(f"{bits} bits", "silu", "up", bits, forward, gate, up, d)
        return found + _full_size(forward, inputs, dy, windows)

    return verify


def _gradient_error(op: str) -> Callable[..., float]:
    def measure(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> float:
        """Relative RMS difference from the exact gradient in float64, on a part of the data."""
        w = _windows(inputs, rows=len(inputs) > 1)[0]
        leaves = [t.detach()[w].clone().requires_grad_() for t in inputs]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        got = torch.autograd.grad(forward(*leaves), leaves, dy[w])
        true = torch.autograd.grad(_EAGER[op](*exact), exact, dy[w].double())
        difference = sum(
            float((g.double() - t).square().sum()) for g, t in zip(got, true, strict=True)
        )
        return (difference / sum(float(t.square().sum()) for t in true)) ** 0.5

    return measure


# ---------------------------------------------------------------------------------------- cases


def _sums(parts: dict[str, int]) -> dict[str, int]:
    return {**parts, "both": parts["fwd"] + parts["bwd"]}


def _power(n: int) -> str:
    return f"2^{n.bit_length() - 1}" if n >= 1024 else str(n)


def _activation(
    op: str,
    bits: int,
    dtype: torch.dtype,
    n: int,
    device: str,
    *,
    bars: dict[str, float] | None = None,
    least_fraction: float = 0.0,
    calls: int = 1,
) -> Case:
    s, codes = dtype.itemsize, 4 * reference.words(n, bits)
    short = str(dtype).removeprefix("torch.")
    return Case(
        id=f"fewbit/{op}/{bits}bit/{short}/{_power(n)}/{device}",
        family="fewbit",
        op=op,
        device=device,
        dtype=dtype,
        shapes=((n,),),
        bits=bits,
        # Forward reads x, writes y and the codes; backward reads dy and the codes, writes dx.
        bytes_moved=_sums({"fwd": 2 * s * n + codes, "bwd": 2 * s * n + codes}),
        flops=_sums({"fwd": (_FLOPS[op] + 2**bits - 1) * n, "bwd": n}),
        providers=_providers(op, bits, device, dtype),
        verify=_verify_activation(op, bits),
        gradient_error=_gradient_error(op),
        bars=bars or {},
        least_fraction=least_fraction,
        calls=calls,
    )


def _swiglu(
    bits: int, dtype: torch.dtype, shape: tuple[int, int], device: str, **bars: float
) -> Case:
    s, n = dtype.itemsize, shape[0] * shape[1]
    codes = 4 * reference.words(n, bits)
    short = str(dtype).removeprefix("torch.")
    return Case(
        id=f"fewbit/swiglu/{bits}bit/{short}/{shape[0]}x{shape[1]}/{device}",
        family="fewbit",
        op="swiglu",
        device=device,
        dtype=dtype,
        shapes=(shape, shape),
        bits=bits,
        # Forward reads gate and up, writes y and the codes; backward reads dy, up and the codes and
        # writes both gradients.
        bytes_moved=_sums({"fwd": 3 * s * n + codes, "bwd": 4 * s * n + codes}),
        flops=_sums({"fwd": (_FLOPS["silu"] + 2**bits) * n, "bwd": 3 * n}),
        providers=_providers("swiglu", bits, device, dtype),
        verify=_verify_swiglu(bits),
        gradient_error=_gradient_error("swiglu"),
        bars=bars,
    )


def cases(quick: bool = False) -> list[Case]:
    """All cases, CPU and GPU; ``quick`` shrinks the data until only the harness is tested."""
    fp32, bf16 = torch.float32, torch.bfloat16
    found = []
    for device, full in (("cpu", 2**24), ("cuda", 2**26)):
        n = 2**14 if quick else full
        options: dict[str, Any] = {"bars": CPU_BARS}
        if device == "cuda":
            options = {"bars": GPU_BARS, "least_fraction": GPU_FRACTION}
        if quick:
            options = {}
        for op in ("gelu", "silu"):
            found += [_activation(op, 3, dtype, n, device, **options) for dtype in (fp32, bf16)]
        found += [_activation("gelu", bits, fp32, n, device) for bits in (1, 2, 4)]
        found += [_activation("relu", 1, dtype, n, device) for dtype in (fp32, bf16)]
        # Rows of tokens by the inner width of an 8-billion Llama.
        rows = 8 if quick else (1024 if device == "cpu" else 8192)
        found.append(_swiglu(3, bf16, (rows, 14336), device))
        # What a call costs when there is nothing to compute.
        found.append(_activation("gelu", 3, fp32, 8, device, calls=20 if quick else 1000))
    return found
