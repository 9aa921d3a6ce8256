"""Launch shapes of the Kronecker attention kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from ..common.aot import Case

#: Multiply-adds may contract. Stated at every launch: the default differs between Triton versions.
FP_FUSION = True
#: Largest head dimension.
MOST_D = 128
#: Without a running maximum where no logit can exceed this: exp(40) times any number of pairs is
#: far from fp32's largest number. fp16 rounds exp(X) itself: 2^-14 to 2^14 are its normal numbers.
BOUND, BOUND_FP16 = 40.0, 9.7
#: Programs that fill a large GPU (some 132 multiprocessors, two each). A constant, not a question
#: to the device: the order of the sums depends on it, and is to be the same anywhere.
FILL = 264


@dataclass(frozen=True)
class Config:
    """A tile of bm rows and of bn keys (attention) or bn monomials (polynomial).

    Attributes:
        most: registers a thread; 0: not said (AMD). Left to itself, ptxas parks words on the stack
            to fit one more block on a multiprocessor, in a loop that then waits for them.
    """

    bm: int
    bn: int
    warps: int
    stages: int = 1
    most: int = 255

    def options(self) -> dict[str, Any]:
        said = {"maxnreg": self.most} if self.most else {}
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": FP_FUSION,
            **said,
        }


# By the bytes of an operand and the padded head dimension (the larger of D's and Dv's).
# 2: tensor cores; what limits a tile is registers: two sums of a row tile (query, forward), four of
# a key tile (key). 4, 8: IEEE products from registers (or TF32, polynomial), small tiles. Each is
# the largest found that fits with every mode of aot.py.
_SMALL = {
    4: {16: Config(32, 32, 4), 32: Config(32, 32, 4), 64: Config(32, 32, 8),
        128: Config(16, 16, 8)},
    8: {16: Config(16, 16, 8), 32: Config(16, 16, 8), 64: Config(16, 16, 8),
        128: Config(16, 16, 8)},
}  # fmt: skip
_ROWS = {16: Config(64, 64, 4), 32: Config(64, 64, 4), 64: Config(128, 64, 8),
         128: Config(64, 64, 8)}  # fmt: skip
_KEY = {
    2: {16: Config(64, 64, 4, 2), 32: Config(64, 64, 8, 2), 64: Config(64, 32, 8, 2),
        128: Config(64, 32, 8, 2)},
    4: {16: Config(32, 16, 4), 32: Config(32, 16, 4), 64: Config(32, 16, 8),
        128: Config(16, 16, 8)},
    8: dict.fromkeys((16, 32, 64, 128), Config(16, 8, 8)),
}  # fmt: skip
_FEATURES = {
    4: {16: Config(32, 32, 4), 32: Config(32, 32, 4), 64: Config(32, 16, 4),
        128: Config(32, 16, 8)},
    8: _SMALL[8],
}  # fmt: skip
#: "forward" and "query" hold rows, "key" keys of the second set, "features" rows or monomials, in
#: tiles of what is computed (fp32, fp64).
TABLES = {
    "forward": {
        2: {**_ROWS, 64: Config(64, 64, 8)},
        4: _SMALL[4],
        8: {**_SMALL[8], 64: Config(16, 16, 4)},
    },
    "query": {**_SMALL, 2: _ROWS, 4: {**_SMALL[4], 64: Config(32, 16, 4)}},
    "key": _KEY,
    "features": _FEATURES,
}
# Without the operands in shared memory of warp-group products, more of a tile is in registers.
_SM_80 = {
    **TABLES,
    "query": {**TABLES["query"], 2: {**_ROWS, 128: Config(32, 64, 8)}},
    "key": {**_KEY, 2: {**_KEY[2], 32: Config(32, 64, 8, 2)}},
}
_SM_100 = {
    **TABLES,
    "forward": {**TABLES["forward"], 8: _SMALL[8]},
    "key": {
        **_KEY,
        2: {**_KEY[2], 16: Config(64, 64, 8, 2)},
        8: {**_KEY[8], 128: Config(16, 16, 8)},
    },
    "features": {
        **_FEATURES,
        4: {**_FEATURES[4], 64: Config(32, 16, 8), 128: Config(16, 16, 8)},
    },
}
# AMD keeps a comparison of 64 lanes in two scalar registers: few pairs a lane, or they run out.
_HIP = {size: dict.fromkeys((16, 32, 64, 128), Config(16, 32 if size == 2 else 16, 4, most=0))
        for size in (2, 4, 8)}  # fmt: skip
_HIP_KEY = {**_HIP, 2: {**_HIP[2], 16: Config(16, 16, 4, most=0)},
            4: dict.fromkeys((16, 32, 64, 128), Config(16, 16, 2, most=0))}  # fmt: skip
_HIP_QUERY = {**_HIP, 2: {**_HIP[2], 128: Config(16, 32, 8, most=0)}}
_HIP_TABLES = {"forward": _HIP, "query": _HIP_QUERY, "key": _HIP_KEY, "features": _HIP}
#: Each target's tables, by the name that its compiler knows it by.
TARGETS = {"sm_80": _SM_80, "sm_90": TABLES, "sm_100": _SM_100, "gfx942": _HIP_TABLES}
#: Rows at once in the kernel of norms.
NORM_ROWS = 32


def norm_launch(target: str) -> Config:
    return Config(NORM_ROWS, 0, 4, most=0 if target == "gfx942" else 255)


def padded(size: int) -> int:
    """Head dimension that a kernel computes with: a power of two."""
    return max(16, int(triton.next_power_of_2(size)))


def target_of(backend: str, arch: int | str) -> str:
    """Whose tables a device launches with, from what Triton says of it.

    Between two of them the older one's. Blackwell without its tensor memory (12.x) multiplies as
    8.x does.
    """
    if backend == "hip":
        return "gfx942"
    return "sm_90" if arch == 90 else "sm_100" if 100 <= int(arch) < 120 else "sm_80"


def config(kernel: str, itemsize: int, d: int, dv: int, target: str) -> Config:
    """Launch of a kernel ("forward", "query", "key" or "features") for operands of ``itemsize``."""
    found = TARGETS[target][kernel][itemsize][max(padded(d), padded(dv))]
    odd = padded(d) != d or padded(dv) != dv
    large = kernel == "key" or (kernel == "query" and found.bm * d > 64 * 64)
    if odd and itemsize == 2 and large:
        return replace(found, bm=min(found.bm, 32))  # masks of loads take registers too
    return found


def row_tile(found: Config, itemsize: int, masked: bool, narrow: bool) -> Config:
    """What a kernel that holds rows launches with: few of them where a window of few keys is
    ``narrow`` beside the positions of a tile, and where a mask would not fit into the registers."""
    if narrow or (masked and found.warps == 8):
        return replace(found, bm=min(found.bm, 32 if itemsize == 2 else 16))
    return found


def operand(dtype: torch.dtype, polynomial: bool) -> tuple[Any, int, str]:
    """What is multiplied: its Triton type, its bytes, and how products of it are taken.

    16 bits stay (softmax), or become TF32 (polynomial: its gradients do not fit into fp16); fp32 is
    IEEE, no TF32.
    """
    if dtype == torch.float64:
        return tl.float64, 8, "ieee"
    if dtype == torch.float32 or polynomial:
        return tl.float32, 4, "ieee" if dtype == torch.float32 else "tf32"
    return (tl.float16 if dtype == torch.float16 else tl.bfloat16), 2, "ieee"


def shares(pairs: int, m1: int, m2: int, config: Config) -> tuple[int, int]:
    """Shares of the two key sets in the kernel of their gradients: (of j, of tiles of k).

    About FILL programs with few copies of the gradients: shares of k copy those of the first set,
    shares of j those of the second, so both are near the root.
    """
    wanted = triton.cdiv(FILL, max(1, pairs))
    tiles = triton.cdiv(m2, config.bn)
    of_k = min(tiles, round(wanted**0.5 + 0.5))
    return max(1, min(m1, 16, triton.cdiv(wanted, of_k))), of_k


def segment(dv: int) -> int:
    """Positions of a segment of the causal polynomial: its sums are a quarter of its features.

    A multiple of every tile of rows and of keys.
    """
    return max(128, 4 * padded(dv))


def aot_cases() -> list[Case]:
    """Every launch, compiled ahead of time: kernels/kronecker_attention/aot.py."""
    from . import aot

    return list(aot.cases())
