"""What ``python -m sublimate check`` runs for this family: each op against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _parity
from .._dtypes import accumulator
from .._parity import Case, Measurement
from . import autograd, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_K, _B, _E, _R = 9, 5, 131, 3
_IMAGE, _MASK = (3, 13, 17), (4, 5)


def _data(dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Points, weights and gradients; x and sums in the accumulator of ``dtype``."""
    generator = torch.Generator().manual_seed(7)
    acc = accumulator(dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(acc).to(device)

    return {
        "x": normal(_B, _E),
        "base": normal(_R, _E),
        "own": normal(_B, _E),
        "index": torch.randint(_R, (_K, _B), generator=generator).to(device),
        "alpha": normal(_K, _B).abs(),
        "weight": normal(_K, _B),
        "grads": normal(_K, _B, _E).to(dtype),
        "acc": normal(_B, _E),
        "stdev": normal(_B).abs(),
        "row": torch.arange(_B, device=device) * 4096,
        "seed": torch.tensor(11, device=device),
        "image": normal(_B, *_IMAGE),
        "other": normal(1, *_IMAGE),
        "mask": normal(_B, 1, *_MASK).sigmoid() * 1.2,
        "along": normal(_K).abs(),
        "pictures": normal(_K, _B, *_IMAGE).to(dtype),
        "parts": normal(2, _B),
    }


def _calls(d: dict[str, Tensor], dtype: torch.dtype) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Variant -> op and its arguments (without backend)."""
    noise = (d["stdev"], d["seed"], d["row"], 132)
    none = (None, None, None, 0)
    line, picked = (d["x"], d["own"], None, d["alpha"]), (d["x"], d["base"], d["index"], d["alpha"])
    sums = (d["grads"], d["weight"])
    pictures = (d["image"], d["other"])
    ends = (d["x"], d["base"], d["index"])
    return {
        "path": ("points", (*line, *none, dtype)),
        "references": ("points", (*picked, *none, dtype)),
        "noise": ("points", (*line, *noise, dtype)),
        "sums": ("accumulate", (*sums, d["acc"], None, False)),
        "moments": ("accumulate", (*sums, d["acc"], d["acc"].square(), True)),
        "differences": ("accumulate_difference", (*sums, *ends, d["acc"], None, False)),
        "transpose": ("difference", (d["acc"], d["weight"], *ends, dtype)),
        "scale": ("scale", (d["acc"], d["x"], d["own"])),
        "one weight": ("points", (d["x"], d["own"], None, d["along"], *none, dtype)),
        "one weight for all": ("accumulate", (d["grads"], d["along"], d["acc"], None, False)),
        "one base": (
            "accumulate_difference",
            (d["grads"], d["along"], d["x"], d["base"][:1], None, d["acc"], None, False),
        ),
        "mask": ("mask_points", (*pictures, d["mask"], d["along"], *none, dtype)),
        "noisy mask": ("mask_points", (*pictures, d["mask"], d["along"], *noise, dtype)),
        "mask gradient": ("mask_grad", (d["pictures"], *pictures, d["along"], *_MASK)),
        "penalty": ("mask_penalty", (d["mask"],)),
        "penalty gradient": ("mask_penalty_grad", (d["mask"], *d["parts"])),
    }


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().cpu().double()
    if isinstance(value, torch.dtype):
        return torch.float64
    return value.cpu() if isinstance(value, Tensor) else value


def _here(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _results(found: Any) -> tuple[Tensor, ...]:
    return tuple(t for t in (found if isinstance(found, tuple) else (found,)) if t.numel())


def _measure(op: str, dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    found = []
    for variant, (name, arguments) in _calls(_data(dtype, device), dtype).items():
        if name != op:
            continue
        run: Callable[..., Any] = getattr(autograd, name)
        plain: Callable[..., Any] = getattr(reference, name)
        got = _results(run(*arguments, backend=backend))
        eager = _results(plain(*(_here(a) for a in arguments)))
        truth = _results(plain(*(_wide(a) for a in arguments)))
        for g, e, t in zip(got, eager, truth, strict=True):
            found.append(_parity.compare(variant, "forward", g, e, t, backward=False))
    return found


_OPS = (
    "points", "accumulate", "accumulate_difference", "difference", "scale", "mask_points",
    "mask_grad", "mask_penalty", "mask_penalty_grad",
)  # fmt: skip


def cases(backend: str, device: str, quick: bool) -> Iterator[Case]:
    """One case for each op and dtype."""
    for op in _OPS:
        for dtype in DTYPES[:2] if quick else DTYPES:
            run = partial(_measure, op, dtype, backend, device)
            yield Case("path_integral", f"path_{op}", backend, device, dtype, run)
