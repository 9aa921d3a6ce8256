"""Launch shapes of the Kronecker attention kernels, and the list of what is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ..common.aot import DTYPES, Case

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
    """A tile of bm rows and of bn keys (attention) or bn monomials (polynomial)."""

    bm: int
    bn: int
    warps: int
    stages: int = 1

    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": FP_FUSION,
        }


# By the bytes of an operand and the padded head dimension (the larger of D's and Dv's).
# 2: tensor cores. 4, 8: multiplied one by one from registers, or on fp32's tensor cores: small.
FORWARD = {
    2: {16: Config(128, 64, 4), 32: Config(128, 64, 4), 64: Config(128, 64, 8),
        128: Config(128, 64, 8)},
    4: {16: Config(32, 32, 4), 32: Config(32, 32, 4), 64: Config(32, 32, 4),
        128: Config(32, 32, 8)},
    8: {16: Config(16, 16, 4), 32: Config(16, 16, 4), 64: Config(16, 16, 4),
        128: Config(16, 16, 8)},
}  # fmt: skip
QUERY = FORWARD
KEY = {
    2: {16: Config(64, 64, 4, 2), 32: Config(64, 64, 4, 2), 64: Config(64, 64, 8, 2),
        128: Config(64, 64, 8, 2)},
    4: {16: Config(32, 32, 4), 32: Config(32, 32, 4), 64: Config(32, 32, 4),
        128: Config(16, 32, 8)},
    8: {16: Config(16, 16, 4), 32: Config(16, 16, 4), 64: Config(16, 16, 4),
        128: Config(16, 16, 8)},
}  # fmt: skip
# Tiles of features are fp32 (fp64): by the bytes of what is computed.
FEATURES = {
    4: {16: Config(32, 32, 4), 32: Config(32, 32, 4), 64: Config(32, 32, 4),
        128: Config(32, 32, 8)},
    8: {16: Config(16, 16, 4), 32: Config(16, 16, 4), 64: Config(16, 16, 4),
        128: Config(16, 16, 8)},
}  # fmt: skip
TABLES = {"forward": FORWARD, "query": QUERY, "key": KEY, "features": FEATURES}
TABLES_HIP = TABLES
#: Rows at once in the kernel of norms.
NORM_ROWS = 32


def padded(size: int) -> int:
    """Head dimension that a kernel computes with: a power of two."""
    return max(16, int(triton.next_power_of_2(size)))


def config(kernel: str, itemsize: int, d: int, dv: int, hip: bool) -> Config:
    """Launch of a kernel ("forward", "query", "key" or "features") for operands of ``itemsize``."""
    return (TABLES_HIP if hip else TABLES)[kernel][itemsize][max(padded(d), padded(dv))]


def narrow(config: Config, itemsize: int) -> Config:
    """The same with few rows: for a window of few keys beside the positions of a tile."""
    return Config(32 if itemsize == 2 else 16, config.bn, 4, config.stages)


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
    """Positions of a segment of the causal polynomial: its sums are at most a quarter of its features.

    A multiple of every tile of rows and of keys.
    """
    return max(128, 4 * padded(dv))
