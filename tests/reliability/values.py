"""Values for arguments: tensors of every dtype, shape and layout, and things that are no tensors.

Hypothesis strategies, so that one generator serves the short run of the suite, shrinks what fails,
and turns the bytes of a coverage-guided fuzzer into calls (``fuzz.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

#: ``draw`` of a composite strategy.
Draw = Callable[[st.SearchStrategy[Any]], Any]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
    torch.complex128, torch.complex32, torch.float8_e4m3fn, torch.uint16,
)  # fmt: skip
#: How the numbers are: mostly ordinary, sometimes what overflows or passes through.
KINDS = ("normal", "normal", "normal", "whole", "zero", "nan", "inf", "huge", "tiny")
LAYOUTS = ("plain", "plain", "permuted", "stepped", "offset", "expanded", "leaf", "grown")


def one(draw: Draw, *choices: Any) -> Any:
    return draw(st.sampled_from(choices))


def maybe(draw: Draw, value: Callable[[], Any], otherwise: Any = None) -> Any:
    """``value()`` in half of the cases."""
    return value() if draw(st.booleans()) else otherwise


def numbers(shape: Sequence[int], dtype: torch.dtype, kind: str, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tuple(shape), generator=g, dtype=torch.float64)
    if kind == "whole" or not (dtype.is_floating_point or dtype.is_complex):
        x = (2 * x).round()
    elif kind == "zero":
        x = x * 0
    elif kind in ("nan", "inf") and x.numel():
        x.view(-1)[seed % x.numel()] = math.nan if kind == "nan" else math.inf
    elif kind in ("huge", "tiny"):
        x = x * (3e4 if kind == "huge" else 1e-40)
    return x.to(dtype)


def tensor(
    draw: Draw,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    kinds: Sequence[str] = KINDS,
    grad: bool = True,
) -> Tensor:
    """A tensor of this shape and dtype with random numbers, strides and history."""
    layout, kind = one(draw, *LAYOUTS), one(draw, *kinds)
    seed = draw(st.integers(0, 2**16))
    shape = list(shape)
    if layout == "permuted" and len(shape) > 1:
        x = numbers(shape[::-1], dtype, kind, seed).permute(*reversed(range(len(shape))))
    elif layout == "stepped" and shape:
        x = numbers([*shape[:-1], 2 * shape[-1] + 1], dtype, kind, seed)[..., : 2 * shape[-1] : 2]
    elif layout == "offset" and shape:
        x = numbers([shape[0] + 1, *shape[1:]], dtype, kind, seed)[1:]
    elif layout == "expanded" and shape and 0 not in shape:
        x = numbers([1, *shape[1:]], dtype, kind, seed).expand(shape)
    else:
        x = numbers(shape, dtype, kind, seed)
    if grad and dtype.is_floating_point and layout in ("leaf", "grown") and dtype in FLOATS:
        x = x.requires_grad_()
        x = x * 1 if layout == "grown" else x
    return x


def floating(draw: Draw) -> torch.dtype:
    return one(draw, torch.float32, *FLOATS)


def dims(draw: Draw, least: int, most: int, *, smallest: int = 0, largest: int = 9) -> list[int]:
    """A shape of ``least`` to ``most`` dimensions; some are empty, one or prime."""
    size = st.sampled_from([n for n in (3, 1, 2, 5, 0, 9, 17, 65) if smallest <= n <= largest])
    return draw(st.lists(size, min_size=least, max_size=most))


def backend(draw: Draw) -> str | None:
    return one(draw, None, None, "auto", "cpu", "cpu", "reference", "triton", "cuda")


def seed(draw: Draw) -> int | Tensor:
    value = one(draw, 0, 1, 12345, 2**62, 2**63 - 1)
    return torch.tensor(value) if draw(st.booleans()) else value


# -------------------------------------------------------------------------------- everything else


class Other:
    """Of no type that anything expects."""


#: No integer between 65 and 2**31: as a number of steps or outputs it would be a legitimate call
#: that takes hours or all memory.
SCALARS: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 17, 64, 2**31 + 1, 2**62, 2**63, 2**64, -(2**63) - 1,
    10**400, 0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e300, math.nan, math.inf, -math.inf, 1j, "",
    "auto", "gelu", "srht", "cpu", "exact", "all", "none", b"mean",
)  # fmt: skip
CONTAINERS: tuple[Callable[[], Any], ...] = (
    list, tuple, dict, set, lambda: [1], lambda: [0, 0], lambda: (0, 0), lambda: (1, 2, 3),
    lambda: [None], lambda: [[]], lambda: [0.5, 0.5], lambda: {"a": 1}, lambda: range(3),
    lambda: [torch.zeros(2)], lambda: (torch.zeros(2, 3), torch.zeros(2, 3)),
)  # fmt: skip
OBJECTS: tuple[Callable[[], Any], ...] = (
    Other, lambda: Other, lambda: torch.float32, lambda: torch.device("cpu"), lambda: nn.Identity(),
    lambda: nn.Linear(3, 2), lambda: (lambda x: x), lambda: np.float32(1.5), lambda: np.int64(3),
    lambda: np.float64(0.5), lambda: np.zeros(3), lambda: np.ones((4, 3)), lambda: np.array("a"),
    lambda: torch.Generator(), lambda: iter([1]),
)  # fmt: skip


def _sparse() -> Tensor:
    return torch.eye(3).to_sparse()


STRANGE: tuple[Callable[[], Tensor], ...] = (
    lambda: torch.zeros(4, 3, device="meta"),
    lambda: torch.zeros((), device="meta"),
    lambda: torch.zeros(1, 2, 4, 3, device="meta"),
    _sparse,
    lambda: torch.eye(3).to_sparse_csr(),
    lambda: torch.zeros(4, 3, dtype=torch.complex64).conj(),
    lambda: torch.zeros(4, 3, dtype=torch.complex64).imag,
    lambda: torch._neg_view(torch.ones(4, 3)),
    lambda: torch.zeros(1).expand(4, 3),
    lambda: torch.zeros(7).as_strided((4, 3), (1, 1)),
    lambda: torch.zeros(0).as_strided((0, 3), (0, 7)),
    lambda: nn.Parameter(torch.ones(4, 3)),
    lambda: torch.zeros(4, 3).to(memory_format=torch.preserve_format),
    lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    lambda: torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.qint8),
)


def anything(draw: Draw) -> Any:
    """A value that most arguments must refuse."""
    family = one(draw, "scalar", "scalar", "tensor", "strange", "container", "object")
    if family == "scalar":
        return draw(st.sampled_from(SCALARS))
    if family == "tensor":
        dtype = one(draw, *FLOATS, *OTHERS)
        return tensor(draw, dims(draw, 0, 5, largest=5), dtype)
    source = {"strange": STRANGE, "container": CONTAINERS, "object": OBJECTS}[family]
    return draw(st.sampled_from(source))()


def spoilt(draw: Draw, arguments: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """None, one or two of the arguments replaced, or one left out."""
    arguments = dict(arguments)
    for _ in range(one(draw, 0, 1, 1, 2) if names else 0):
        name = draw(st.sampled_from(list(names)))
        if one(draw, *range(12)) == 0:
            arguments.pop(name, None)
        else:
            arguments[name] = anything(draw)
    return arguments
