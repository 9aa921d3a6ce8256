"""Makes uninitialised memory visible: torch's allocators fill what they return with NaN.

Floating results are NaN, integers their type's largest value, booleans True, so a kernel that does
not write all of its output, or reads what it has not written, is wrong every time and not only
when the allocator hands out an unlucky page. torch's own switch (``fill_uninitialized_memory``)
acts only under deterministic algorithms, and so changes which algorithms run; this does not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

FLOATS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128
)  # fmt: skip
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

#: Where each patched allocator lives.
ALLOCATORS = {
    "empty": torch,
    "empty_like": torch,
    "empty_strided": torch,
    "new_empty": torch.Tensor,
    "new_empty_strided": torch.Tensor,
}


def fill(t: torch.Tensor) -> torch.Tensor:
    """Overwrites t, as the module says; tensors without plain memory are left alone."""
    if t.layout != torch.strided or t.device.type == "meta" or t.is_quantized:
        return t
    with torch.no_grad():
        if t.dtype in FLOATS:
            t.fill_(math.nan)
        elif t.dtype in INTEGERS:
            t.fill_(torch.iinfo(t.dtype).max)
        elif t.dtype == torch.bool:
            t.fill_(True)
    return t


def _filling(allocate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(allocate)
    def filled(*arguments: Any, **keywords: Any) -> Any:
        t = allocate(*arguments, **keywords)
        # Compiled code allocates by itself; what is traced stays as the user wrote it.
        return t if torch.compiler.is_compiling() or "out" in keywords else fill(t)

    return filled


def install() -> None:
    """Patches the allocators for the rest of the process; a second call does nothing."""
    if hasattr(torch.empty, "__wrapped__"):
        return
    # torch.device(...) as a context keeps the set of constructors it acts on: of the originals.
    _device_constructors()
    for name, owner in ALLOCATORS.items():
        setattr(owner, name, _filling(getattr(owner, name)))
