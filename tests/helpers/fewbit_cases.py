"""Functions, inputs and tables that the few-bit tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from sublimate import fewbit
from sublimate.fewbit import functional
from sublimate.fewbit import reference as R
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

#: torch's own activation under each of our names; written out, so that a lost function is noticed.
EAGER_SMOOTH: dict[str, Callable[..., Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softplus": F.softplus,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
}
#: The same of those with two slopes.
EAGER_EXACT: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "threshold": F.threshold,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
}
EAGER = EAGER_SMOOTH | EAGER_EXACT
SMOOTH, EXACT = tuple(EAGER_SMOOTH), tuple(EAGER_EXACT)

#: Of the form x (1 + t) with t near -1, or x - tanh(x): an error in x's last place, in torch too.
CANCELLING = ("gelu", "gelu_tanh", "tanhshrink")

#: (name, parameters): every function at its defaults, and those with parameters at others.
VARIANTS: list[tuple[str, tuple[float, ...]]] = [
    *((name, (0.0, 0.0) if name == "threshold" else ()) for name in EAGER),
    ("elu", (0.7,)),
    ("celu", (1.7,)),
    ("softplus", (2.5, 4.0)),
    ("leaky_relu", (0.21,)),
    ("leaky_relu", (-0.3,)),
    ("threshold", (0.3, -7.3)),
    ("hardtanh", (-0.3, 2.7)),
    ("hardshrink", (0.3,)),
    ("softshrink", (0.77,)),
]


def variant_id(value: object) -> str | None:
    """Readable ids: "softplus", "2.5_4.0"; pytest's own for the rest."""
    if isinstance(value, tuple):
        return "_".join(map(str, value)) or "defaults"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return None


#: (name, parameters, bits): variants with each bit width they take.
CODED = [
    (name, params, bits)
    for name, params in VARIANTS
    for bits in ((1, 2, 3, 4) if name in SMOOTH else (1,))
]


def public(name: str) -> Callable[..., Tensor]:
    """The public function ``(x, *params, bits=, backend=, ...)``."""
    if name == "gelu_tanh":
        return partial(fewbit.gelu, approximate="tanh")
    return getattr(fewbit, name)


def full_params(name: str, params: tuple[float, ...]) -> tuple[float, ...]:
    return params or R.FUNCTIONS[name].defaults


def truth_of(name: str, params: tuple[float, ...], x: Tensor) -> Tensor:
    """f in float64. Jumps stand where torch's do: lambda in x's dtype, a threshold in fp32."""
    jump = {"hardshrink": x.dtype, "threshold": R.accumulator(x.dtype)}.get(name, torch.float64)
    params = tuple(torch.tensor(p, dtype=jump).item() for p in full_params(name, params))
    return R.FUNCTIONS[name].forward(x.double(), *params)


def default_tables(
    name: str, params: tuple[float, ...], bits: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """(borders, codes, levels) that the public function uses for these arguments."""
    acc, where = R.accumulator(dtype), torch.device(device)
    params = tuple(map(float, full_params(name, params)))
    if name in EXACT:
        return functional._exact_tables(name, params, where, acc)
    return functional._default_tables(name, bits, params, "auto", where, acc)


def odd_tables(bits: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Borders that 16-bit rounding moves, codes that are no identity, levels in no order."""
    acc = R.accumulator(dtype)
    borders = torch.linspace(-2.3, 2.1, m, dtype=acc) + 0.0137
    codes = ((torch.arange(m + 1) * 5 + 3) % 2**bits).to(torch.uint8)
    levels = torch.sin(torch.arange(2**bits, dtype=torch.float64) * 2.3 + 0.4).to(acc)
    return borders, codes, levels


#: Values that go wrong where something is careless.
ODD = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-3, -1e-3, 40.0, -40.0, 1e-7, 3.0, -3.0, 6.0, 0.5,
    -0.5, 1.0, -1.0, 20.0, 20.5, -90.0, 90.0, 2e-5, 6e-8, -6e-8, 1e-40, -1e-40, 6e4, -6e4,
)  # fmt: skip


def samples(shape: object, dtype: torch.dtype, seed: int = 0, *, odd: bool = True) -> Tensor:
    """Normal numbers of deviation 2; with ``odd``, ``ODD`` among the last elements."""
    shape = (shape,) if isinstance(shape, int) else shape
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2  # type: ignore[call-overload]
    k = min(x.numel() // 2, len(ODD)) if odd else 0
    if k:
        x.view(-1)[-k:] = torch.tensor(ODD[:k], dtype=torch.float64)
    return x.to(dtype)


def upstream(shape: object, dtype: torch.dtype, seed: int = 7) -> Tensor:
    """A gradient from above: no two alike, none zero."""
    return samples(shape, dtype, seed, odd=False)


def corners(name: str, params: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Where f' jumps, as elements of the dtype, and the elements on both sides of them."""
    at = torch.tensor(R.FUNCTIONS[name].breakpoints(*full_params(name, params)), dtype=dtype)
    up, down = (torch.full_like(at, v) for v in (math.inf, -math.inf))
    return torch.cat([at, torch.nextafter(at, up), torch.nextafter(at, down), -at])


def code_of(
    name: str, params: tuple[float, ...], x: Tensor, borders: Tensor, codes: Tensor
) -> Tensor:
    """The code of each element as the format defines it, int64 of x's shape."""
    predicate = R.FUNCTIONS[name].predicate
    if predicate is not None:
        return predicate(x, *full_params(name, params)).long()
    return R.encode(x, borders, codes)


def exact_product(code: Tensor, levels: Tensor, grad: Tensor) -> Tensor:
    """levels[code] * grad in the arithmetic type, rounded once to grad's dtype."""
    return (levels[code] * grad.to(levels.dtype)).to(grad.dtype)


def packed_of(y: Tensor) -> Tensor:
    """The words of codes that y's node keeps for backward."""
    (packed,) = (t for t in y.grad_fn.saved_tensors if t.dtype == torch.int32)
    return packed
