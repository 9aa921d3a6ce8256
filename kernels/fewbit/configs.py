"""Launch shapes of the few-bit kernels, and the list of what is compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton.language as tl

#: Multiply-adds may contract. Stated at every launch: the default differs between Triton versions.
#: No code and no gradient depends on it, for they are compared and multiplied once.
FP_FUSION = True


@dataclass(frozen=True)
class Config:
    """BLOCK elements per program (a power of two, at least 32) on ``warps`` warps."""

    block: int
    warps: int


SMALL = Config(block=256, warps=1)
LARGE = Config(block=1024, warps=4)
CONFIGS = (SMALL, LARGE)

# Below this many elements LARGE would leave multiprocessors idle (132 of them, 8 blocks each).
_LARGE_FROM = 1 << 20


def pick(n: int) -> Config:
    """Both give 8 elements to a thread: one 16-byte access of fp16, two of fp32.

    A fixed rule instead of autotuning: the kernels are bound by memory, and a first call must not
    time anything.
    """
    return LARGE if n >= _LARGE_FROM else SMALL


def rows(inner: int) -> dict[str, Any]:
    """Constants of ``codes.row_scale`` for rows of ``inner`` elements."""
    return {
        "BY_GROUP": inner % 32 == 0,
        "INDEX": tl.int32 if inner < 2**30 else tl.int64,
    }
