"""Checks of the arguments that this family's functions share; all raise before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .reference import SAMPLERS, SKETCHES


def check_options(ratio: Any, sketch: Any) -> None:
    _checks.number("ratio", ratio)
    if not 0 < ratio <= 1:
        raise _checks.fail_value("ratio", "a number in (0, 1]", ratio)
    _checks.one_of("sketch", sketch, SKETCHES)


def check_seed(seed: Any, x: Tensor) -> None:
    if seed is None:
        raise _checks.fail_type("seed", "an int or a 0-dim int64 tensor", seed)
    _checks.seed("seed", seed)
    if isinstance(seed, Tensor) and seed.device != x.device:
        raise _checks.fail_value("seed", f"a tensor on {x.device}", seed.device)


def check_plain(**tensors: Any) -> None:
    """No DTensor: one sketch is of all rows that a layer sees, and kernels read local memory."""
    if torch.compiler.is_compiling():
        return
    for argument, t in tensors.items():
        if type(t).__name__ == "DTensor":
            raise _checks.fail_kind(
                argument,
                "a plain tensor (of a DTensor its to_local(); FSDP2 hands layers plain tensors)",
                "a DTensor",
            )


def check_rows(x: Tensor, n: int) -> None:
    if n >= 2**31:
        raise _checks.fail_value("x", "fewer than 2**31 rows", n)


def check_probabilities(p: Any, sketch: str, x: Tensor) -> None:
    """None, or for a sampler (N,) values >= 0 that sum to 1. Reads two numbers on the host."""
    if p is None:
        return
    if sketch not in SAMPLERS:
        raise _checks.fail_value(
            "probabilities", f"None unless sketch is one of {SAMPLERS}", f"a value for {sketch!r}"
        )
    n = 1
    for size in x.shape[:-1]:
        n = n * size
    _checks.floating_tensor("probabilities", p)
    if p.shape != (n,):
        raise _checks.fail_value("probabilities", f"shape ({n},), one for each row", tuple(p.shape))
    if p.device != x.device:
        raise _checks.fail_value("probabilities", f"a tensor on {x.device}", p.device)
    if n == 0:
        return
    p = p.detach()
    total = p.double().sum()
    tolerance = 1e-3 if p.element_size() == 2 else 1e-5
    if torch.compiler.is_compiling():
        good = (p >= 0).all() & ((total - 1).abs() <= tolerance)
        torch._assert_async(good, "probabilities: expected values >= 0 with sum 1")
    elif bool((p < 0).any()):
        raise _checks.fail_value("probabilities", "values >= 0", float(p.min()))
    elif not abs(float(total) - 1) <= tolerance:
        raise _checks.fail_value("probabilities", "values that sum to 1", f"sum {float(total):.6g}")
