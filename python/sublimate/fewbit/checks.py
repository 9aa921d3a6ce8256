"""What ``python -m sublimate check`` runs for this family; demo and benchmarks use parts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _parity, _philox
from .._dtypes import accumulator
from .._parity import Case, Measurement
from . import functional, reference
from . import gated as gated_units
from .codebook import Codebook, default_codebook, fit_codebook
from .reference import FUNCTIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GATED = (("swiglu", "silu"), ("geglu", "gelu"), ("geglu", "gelu_tanh"))
_SHAPE = (61, 67)
_CONSTANT = 2048  # bytes kept besides the codes: the table of levels, one partial word


def _normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers whose memory order is not their index order."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape[::-1], generator=generator, dtype=torch.float64)
    return x.to(dtype).t()


def inputs(dtype: torch.dtype, borders: Tensor) -> tuple[Tensor, Tensor]:
    """x (61, 67) spread over the codebook, with its borders and awkward values; dy normal."""
    x = 3 * _normal(_SHAPE, dtype, 1)
    awkward = [
        math.nan,
        0.0,
        -0.0,
        1e-7,
        -1e-7,
        0.5,
        -0.5,
        3.0,
        -3.0,
        6.0,
        19.0,
        -19.0,
        40.0,
        -40.0,
    ]
    odd = torch.cat([torch.tensor(awkward, dtype=torch.float64), borders.double()]).to(dtype)
    x[0, : len(odd)] = odd[: _SHAPE[1]]
    return x, _normal(_SHAPE[::-1], dtype, 2).t().contiguous()


def _call(forward: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The result of ``forward`` on leaves, and the distinct tensors autograd keeps for backward."""
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = forward(*leaves)
    return y, list(kept.values())


def _codes(variant: str, kept: list[Tensor], x: Tensor, bits: int) -> tuple[Tensor, Measurement]:
    """Codes among the kept tensors, in the shape of x, and a verdict on their form and size."""
    packed = [t for t in kept if t.dtype == torch.int32]
    n = x.numel()
    if len(packed) != 1 or packed[0].numel() != reference.words(n, bits):
        wrong = Measurement(variant, "kept bytes", math.inf, 0.0)
        return torch.full(x.shape, -1), wrong
    flat = reference.unpack(packed[0].cpu(), n, bits)
    total = sum(t.untyped_storage().nbytes() for t in kept)
    limit = 4 * reference.words(n, bits) + _CONSTANT
    size = Measurement(variant, "kept bytes", float(total), float(limit))
    return reference.unflatten(flat, x.shape, reference.dense_order(x)), size


def activation(
    variant: str,
    call: Callable[[Tensor], Tensor],
    codebook: Codebook,
    x: Tensor,
    dy: Tensor,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> list[Measurement]:
    """Measures a few-bit activation on given data: forward, gradient, codes and kept bytes.

    Args:
        call: x -> y, recording; on whatever backend.
        codebook: what it codes with; not for stochastic codes.
        x, dy: input and upstream gradient, on the device to be measured.
        forward: the function in plain PyTorch; default that of the codebook's name.
    """
    here, there = x.detach().cpu(), dy.detach().cpu()
    function = None if forward is not None else FUNCTIONS[codebook.name]
    params = codebook.params
    plain = forward or (lambda t: FUNCTIONS[codebook.name].forward(t, *params))
    if function is not None and function.predicate is not None:
        code = function.predicate(here, *params).long()
    else:
        code = reference.encode(here, codebook.borders.float(), codebook.codes)
    acc = accumulator(x.dtype)
    levels = codebook.levels
    if function is not None and function.exact_levels is not None:
        levels = torch.tensor(function.exact_levels(*params), dtype=torch.float64)
    q = levels[code]

    leaf = x.detach().requires_grad_()
    y, kept = _call(call, leaf)
    got, size = _codes(variant, kept, x, codebook.bits)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    eager = (there.to(acc) * q.to(acc)).to(x.dtype)
    return [
        _parity.compare(variant, "forward", y, plain(x), plain(here.double()), backward=False),
        _parity.compare(variant, "gradient", dx, eager, there.double() * q, backward=True),
        _parity.equal(variant, "codes", got != code),
        size,
    ]


def _public(name: str, x: Tensor, **options: Any) -> Tensor:
    """The public function of a built-in name."""
    if name == "gelu_tanh":
        return functional.gelu(x, approximate="tanh", **options)
    extra = {"threshold": (0.0, 0.0)}.get(name, ())
    function: Callable[..., Tensor] = getattr(functional, name)
    return function(x, *extra, **options)


def _smooth_or_exact(
    name: str, dtype: torch.dtype, bits: tuple[int, ...], backend: str, device: str
) -> list[Measurement]:
    found = []
    for b in (1,) if FUNCTIONS[name].exact else bits:
        codebook = default_codebook(name, b, mode="auto")
        x, dy = (t.to(device) for t in inputs(dtype, codebook.borders))
        call = lambda t, b=b: _public(name, t, bits=b, backend=backend)  # noqa: E731
        found += activation(f"{b} bits", call, codebook, x, dy)
    return found


def _sigmoid_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _custom(dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    """``activation`` with a function that no kernel knows."""
    codebook = fit_codebook(_sigmoid_gelu, 3)
    x, dy = (t.to(device) for t in inputs(dtype, codebook.borders))
    call = lambda t: functional.activation(t, codebook, backend=backend)  # noqa: E731
    return activation("3 bits", call, codebook, x, dy, forward=_sigmoid_gelu)


def _stochastic(
    name: str, dtype: torch.dtype, bits: int, backend: str, device: str
) -> list[Measurement]:
    """Codes are those of Philox's numbers, and the mean over seeds is f'(x)."""
    variant = f"{bits} bits"
    codebook = default_codebook(name, bits, mode="stochastic")
    levels = codebook.levels
    x, dy = (t.to(device) for t in inputs(dtype, codebook.borders))
    x[0, 0] = 1.0  # a derivative that is not a number has no unbiased code
    seed = 20_231
    call = lambda t: _public(  # noqa: E731
        name, t, bits=bits, stochastic=True, seed=seed, backend=backend
    )
    leaf = x.detach().requires_grad_()
    y, kept = _call(call, leaf)
    got, size = _codes(variant, kept, x, bits)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    here, there = x.cpu(), dy.cpu()
    function = FUNCTIONS[name]
    true = function.derivative(here.double(), *function.defaults)
    order = reference.dense_order(here)
    uniform = reference.unflatten(_philox.uniform(seed, x.numel()), here.shape, order).double()
    code = reference.encode_stochastic(true, levels, uniform)
    # f' is evaluated in the kernel's arithmetic: where the draw falls on the edge, both are right.
    lower = torch.searchsorted(levels[1:-1].contiguous(), true.contiguous(), right=True)
    margin = uniform * (levels[lower + 1] - levels[lower]) - (true - levels[lower])
    tie = 1e-11 if dtype == torch.float64 else 1e-5
    edge = (margin.abs() < tie) | ((true.unsqueeze(-1) - levels).abs().amin(-1) < tie)
    q = levels[got.clamp(min=0)]
    acc = accumulator(dtype)
    eager = (there.to(acc) * q.to(acc)).to(dtype)
    plain, truth = (function.forward(t, *function.defaults) for t in (x, here.double()))
    return [
        _parity.compare(variant, "forward", y, plain, truth, backward=False),
        _parity.compare(variant, "gradient", dx, eager, there.double() * q, backward=True),
        _parity.equal(variant, "codes", (got != code) & ~edge),
        size,
        _unbiased(variant, name, bits, levels, backend, device),
    ]


def _unbiased(
    variant: str, name: str, bits: int, levels: Tensor, backend: str, device: str
) -> Measurement:
    """Largest deviation of the mean gradient of 256 draws from f', in standard errors."""
    x, repeats = torch.linspace(-4, 4, 257), 256
    true = FUNCTIONS[name].derivative(x.double(), *FUNCTIONS[name].defaults)
    # Every element draws its own number, so that one call holds all repetitions.
    leaf = x.expand(repeats, -1).contiguous().to(device).requires_grad_()
    y = _public(name, leaf, bits=bits, stochastic=True, seed=7, backend=backend)
    mean = torch.autograd.grad(y.sum(), leaf)[0].cpu().double().mean(0)
    lower = torch.searchsorted(levels[1:-1].contiguous(), true, right=True)
    low, high = levels[lower], levels[lower + 1]
    variance = (high - true) * (true - low)
    # A rare level (less than one time in ten) does not make a normal mean in 256 draws.
    normal = variance > 0.09 * (high - low) ** 2
    score = ((mean - true).abs() / (variance / repeats).sqrt())[normal]
    # The largest of 257 normal numbers exceeds 5 once in 7,000 tries; the seed is fixed.
    return Measurement(variant, "mean gradient", float(score.max()) if len(score) else 0.0, 5.0)


def gated(
    variant: str,
    name: str,
    keep: str,
    bits: int,
    call: Callable[[Tensor, Tensor], Tensor],
    gate: Tensor,
    up: Tensor,
    dy: Tensor,
) -> list[Measurement]:
    """Measures a gated unit with its default codebook: ``activation`` for two inputs."""
    acc, n = accumulator(gate.dtype), gate.numel()
    leaves = [gate.detach().requires_grad_(), up.detach().requires_grad_()]
    y, kept = _call(call, *leaves)
    dgate, dup = torch.autograd.grad(y, leaves, dy)
    g, u, d = (t.detach().cpu() for t in (gate, up, dy))
    tables = gated_units.gated_tables(name, keep, bits, torch.device("cpu"), acc)
    borders, codes, levels, values = tables

    packed = [t for t in kept if t.dtype == torch.int32]
    rows = n // gate.shape[-1]
    limit = 4 * reference.words(n, bits) + n * gate.element_size() + 4 * rows + _CONSTANT
    total = sum(t.untyped_storage().nbytes() for t in kept)
    if len(packed) != 1 or packed[0].numel() != reference.words(n, bits):
        return [Measurement(variant, "kept bytes", math.inf, float(limit))]
    got = reference.unpack(packed[0].cpu(), n, bits).reshape(gate.shape)
    f, derivative = FUNCTIONS[name].forward, FUNCTIONS[name].derivative
    g64, u64, d64, levels64 = g.double(), u.double(), d.double(), levels.double()
    if keep == "up":
        wrong = got != reference.encode(g, borders, codes)
        true_gate, true_up = d64 * u64 * levels64[got], d64 * values.double()[got]
    else:
        # The row's scale is kept in float32; given that one, everything else is determined.
        stored = [t for t in kept if t.dtype == torch.float32 and t.numel() == rows]
        rms = u64.square().mean(-1, keepdim=True).sqrt()
        scale = stored[0].cpu().double().reshape(rms.shape) if stored else torch.zeros_like(rms)
        quotient = u64 / scale
        wrong = got != reference.encode(quotient, borders.double(), codes)
        # Division rounds: a quotient at a border may go either way.
        wrong &= (quotient.unsqueeze(-1) - borders.double()).abs().amin(-1) > 1e-5
        wrong |= (scale / rms - 1).abs() > 1e-6
        true_gate = d64 * derivative(g64) * levels64[got] * scale
        true_up = d64 * f(g64)
    plain = [t.detach().cpu().requires_grad_() for t in (gate, up)]
    eager = reference.gated(plain[0], plain[1], name, keep, *tables)
    eager_gate, eager_up = torch.autograd.grad(eager, plain, d)
    return [
        _parity.compare(variant, "forward", y, eager, f(g64) * u64, backward=False),
        _parity.compare(variant, "gradient", dgate, eager_gate, true_gate, backward=True),
        _parity.compare(variant, "gradient", dup, eager_up, true_up, backward=True),
        _parity.equal(variant, "codes", wrong),
        Measurement(variant, "kept bytes", float(total), float(limit)),
    ]


def _gated(
    op: str, name: str, dtype: torch.dtype, bits: tuple[int, ...], backend: str, device: str
) -> list[Measurement]:
    options = {"approximate": "tanh"} if name == "gelu_tanh" else {}
    function: Callable[..., Tensor] = getattr(gated_units, op)
    gate, dy = (t.to(device) for t in inputs(dtype, torch.zeros(0)))
    gate[0, 0] = 1.0
    up = _normal(_SHAPE, dtype, 3).to(device)
    found = []
    for keep in ("up", "gate"):
        for b in bits:
            call = lambda g, u, b=b, keep=keep: function(  # noqa: E731
                g, u, bits=b, keep=keep, backend=backend, **options
            )
            found += gated(f"{b} bits, keeps {keep}", name, keep, b, call, gate, up, dy)
    return found


def cases(backend: str, device: str, quick: bool) -> Iterator[Case]:
    """Every op of the family on a backend: all dtypes and bits, or 3 bits of two dtypes."""
    bits = (3,) if quick else (1, 2, 3, 4)

    def case(op: str, dtype: torch.dtype, run: Callable[[], list[Measurement]]) -> Case:
        return Case("fewbit", op, backend, device, dtype, run)

    for dtype in DTYPES[:2] if quick else DTYPES:
        for name, function in FUNCTIONS.items():
            yield case(name, dtype, partial(_smooth_or_exact, name, dtype, bits, backend, device))
            # bf16 draws as fp32 does; one of the two is enough where time counts.
            if function.exact or (quick and dtype != torch.float32):
                continue
            run = partial(_stochastic, name, dtype, 3, backend, device)
            yield case(f"{name}, stochastic", dtype, run)
        for op, name in GATED:
            shown = f"{op}, tanh" if name == "gelu_tanh" else op
            yield case(shown, dtype, partial(_gated, op, name, dtype, bits, backend, device))
        yield case("activation", dtype, partial(_custom, dtype, backend, device))
