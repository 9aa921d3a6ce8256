"""Benchmarks of Kronecker attention: exact against SDPA over all pairs, polynomial against torch.

The honest competitor of the exact kernel in plain PyTorch is ``scaled_dot_product_attention`` over
the n^2 products of keys, with the products of values: much faster than an einsum of three operands.
That of the polynomial is the same factored form in torch's GEMMs, on gathered features.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from sublimate import _backends, kronecker_attention
from sublimate._parity import Measurement, compare
from sublimate.kronecker_attention import coefficients, reference
from torch import Tensor

from bench.harness.case import Case, Forward, Provider, Unavailable

#: Of the competitor's time.
EXACT_BARS = {"fwd": 0.6, "both": 0.6}
POLYNOMIAL_BARS = {"fwd": 1 / 3, "both": 1 / 3}
#: Scale of the entries: logits of the polynomial's cases have a deviation of about 0.15.
SMALL = 0.55
#: Smaller for odd degrees: no logit may lie beyond the root of their polynomial. Weights are then
#: nearly equal, and values have a mean of 1, as without one the output would be what cancels.
SMALL_ODD = 0.36
_PART = 160  # rows, of one head, that are compared in float64


def _unavailable(backend: str, device: str, dtype: torch.dtype) -> None:
    why = _backends.reasons("kronecker_attention", backend, device, dtype)
    if why:
        raise Unavailable("; ".join(why))


def over_all_pairs(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
    """SDPA with M1 M2 keys and values, all of them in memory."""
    keys, values = (
        (a.unsqueeze(3) * b.unsqueeze(2)).flatten(2, 3) for a, b in ((k1, k2), (v1, v2))
    )
    return F.scaled_dot_product_attention(q, keys, values)


def factored(
    q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, *, degree: int, causal: bool = False
) -> Tensor:
    """The polynomial method in plain PyTorch: gathered features, GEMMs."""
    c = torch.tensor(coefficients.taylor(degree), dtype=q.dtype).expand(*q.shape[:2], -1)
    sums = reference.polynomial(
        q, (k1, k2), (v1, v2), None, c, scale=q.shape[-1] ** -0.5, causal=causal
    )
    return reference.divide(*sums, q.dtype)


def _forward(backend: str, device: str, dtype: torch.dtype, **options: object) -> Provider:
    def make() -> Forward:
        _unavailable(backend, device, dtype)
        return partial(kronecker_attention.kronecker_attention, backend=backend, **options)

    return Provider(f"sublimate-{backend}", make)


def _part(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The first rows and keys of the first head, as a problem of its own."""
    return [t.detach()[:, :1, :_PART].contiguous().requires_grad_() for t in inputs]


def _verify(
    forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor, *, peer: Forward, causal: bool
) -> list[Measurement]:
    """Rows of the timed output against float64, and output and gradients of a part of the data."""
    found = []
    with torch.no_grad():
        y = forward(*inputs)
        n = y.shape[2]
        for row in () if causal else sorted({0, n // 2, n - 1}):
            one = (inputs[0][:, :1, row : row + 1], *(t[:, :1] for t in inputs[1:]))
            found.append(
                compare(
                    f"row {row}", "forward", y[:, :1, row : row + 1], peer(*one),
                    peer(*(t.double() for t in one)), backward=False,
                )
            )  # fmt: skip
    part, up = _part(inputs), dy[:, :1, :_PART].contiguous()
    wide = [t.detach().double().requires_grad_() for t in part]
    outputs = forward(*part), peer(*part), peer(*wide)
    found.append(compare("part", "forward", *outputs, backward=False))
    got, plain, truth = (
        torch.autograd.grad(o, leaves, up.to(o.dtype))
        for o, leaves in zip(outputs, (part, part, wide), strict=True)
    )
    for name, *three in zip(("dq", "dk1", "dk2", "dv1", "dv2"), got, plain, truth, strict=True):
        found.append(compare(name, "gradient", *three, backward=True))
    return found


def _gradient_error(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> float:
    """Relative RMS error of dq against exact attention's, on a part of the data."""
    part, up = _part(inputs), dy[:, :1, :_PART].contiguous()
    (got,) = torch.autograd.grad(forward(*part), part[:1], up)
    wide = [t.detach().double().requires_grad_() for t in part]
    (true,) = torch.autograd.grad(over_all_pairs(*wide), wide[:1], up.double())
    return float((got.double() - true).norm() / true.norm())


def _normal(
    n: int, dim: int, dtype: torch.dtype, device: str, size: float, heads: int, mean: float
):  # type: ignore[no-untyped-def]
    def make() -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        sizes = (size, size, size, 1.0, 1.0)
        return tuple(
            (torch.randn(1, heads, n, dim, generator=generator, device=device) * s + m).to(dtype)
            for s, m in zip(sizes, (0.0, 0.0, 0.0, mean, mean), strict=True)
        )

    return make


def _case(
    op: str,
    n: int,
    dim: int,
    device: str,
    dtype: torch.dtype,
    peer: Forward | None,
    flops: int,
    modes: tuple[str, ...],
    bars: dict[str, float],
    size: float,
    heads: int = 4,
    mean: float = 0.0,
    verify: Forward | None = None,
    back: float = 3.0,
    **options: object,
) -> Case:
    backend = "cpu" if device == "cpu" else "triton"
    short = str(dtype).removeprefix("torch.")
    moved = 6 * heads * n * dim * dtype.itemsize
    return Case(
        id=f"kronecker_attention/{op}/{short}/{n}x{dim}/{device}",
        family="kronecker_attention",
        op=op,
        device=device,
        dtype=dtype,
        shapes=((1, heads, n, dim),) * 5,
        bits=0,
        bytes_moved={"fwd": moved, "bwd": 2 * moved, "both": 3 * moved},
        flops={"fwd": flops, "bwd": int(back * flops), "both": int((1 + back) * flops)},
        providers=(
            *((Provider("eager", lambda: peer, peer=True),) if peer is not None else ()),
            _forward(backend, device, dtype, **options),
        ),
        verify=partial(_verify, peer=verify or peer or over_all_pairs, causal="causal" in op),
        gradient_error=_gradient_error,
        bars=bars,
        modes=modes,
        make_inputs=_normal(n, dim, dtype, device, size, heads, mean),
    )


def _exact(n: int, dim: int, device: str, dtype: torch.dtype, compared: bool = True) -> Case:
    peer = over_all_pairs if compared else None
    every, heads = ("fwd", "bwd", "both"), 4
    return _case(
        "exact", n, dim, device, dtype, peer, 4 * dim * heads * n**3,
        every if compared else ("fwd",), EXACT_BARS if compared and n >= 512 else {}, 1.0,
        verify=over_all_pairs, back=2.5 if device == "cpu" else 3.0, method="exact",
    )  # fmt: skip


def _polynomial(n: int, dim: int, degree: int, device: str, causal: bool = False) -> Case:
    peer = partial(factored, degree=degree, causal=causal)
    flops = 6 * 4 * n * reference.rank(dim, degree) * (dim + 1)
    return _case(
        f"polynomial{degree}{'-causal' if causal else ''}", n, dim, device, torch.float32, peer,
        flops, ("fwd", "bwd", "both"), {} if causal or n < 512 else POLYNOMIAL_BARS,
        SMALL_ODD if degree % 2 else SMALL, mean=float(degree % 2),
        verify=peer, method="polynomial", degree=degree, causal=causal,
    )  # fmt: skip


def cases(quick: bool = False) -> list[Case]:
    """All cases, CPU and GPU; ``quick`` shrinks the data until only the harness is tested."""
    fp32, bf16 = torch.float32, torch.bfloat16
    if quick:
        return [
            *(_exact(24, 16, device, fp32) for device in ("cpu", "cuda")),
            *(_polynomial(40, 8, 2, device) for device in ("cpu", "cuda")),
            _polynomial(40, 8, 2, "cpu", causal=True),
        ]
    return [
        _exact(128, 32, "cpu", fp32),
        _exact(256, 32, "cpu", fp32),
        _exact(512, 32, "cpu", fp32),
        _exact(512, 64, "cpu", fp32),
        _exact(256, 32, "cpu", bf16),
        _polynomial(512, 32, 2, "cpu"),
        _polynomial(4096, 32, 2, "cpu"),
        _polynomial(512, 16, 3, "cpu"),
        _polynomial(4096, 16, 3, "cpu"),
        _polynomial(512, 32, 3, "cpu"),
        _polynomial(512, 16, 2, "cpu", causal=True),
        _polynomial(512, 32, 2, "cpu", causal=True),
        _polynomial(4096, 16, 2, "cpu", causal=True),
        _polynomial(512, 16, 3, "cpu", causal=True),
        _exact(512, 64, "cuda", bf16),
        _exact(512, 128, "cuda", bf16),
        _exact(4096, 128, "cuda", bf16, compared=False),
        _polynomial(8192, 64, 2, "cuda"),
        _polynomial(4096, 32, 3, "cuda"),
    ]
