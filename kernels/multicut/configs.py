"""Launch shapes of the multicut kernels, and the list of what is compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton

#: Multiply-adds may contract. Stated at every launch: the default differs between Triton versions.
FP_FUSION = True
#: Column indices are 32 bits while they are compared, and the highest stand for "none".
MOST_ROWS = 2**31 - 2**12
#: Longest list that a program keeps in registers.
MOST_K = 256

# Programs that fill a large GPU (some 132 multiprocessors, two each). A constant, not a question
# to the device: the sums of ``negative_sum`` depend on the shares, and are to be the same anywhere.
_FILL = 264
# Most shares of the columns: what the joining kernel reads per row grows with them.
_MOST_SHARES = 32


@dataclass(frozen=True)
class Config:
    """A tile of bm rows and bn columns, bk of the inner size at a time."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": FP_FUSION,
        }

    def constants(self, d: int) -> dict[str, Any]:
        """The tile for an inner size of d."""
        return {
            "RESIDENT": d <= self.bk,
            "EVEN": d % self.bk == 0,
            "BM": self.bm,
            "BN": self.bn,
            "BK": self.bk,
        }


# Two bytes: tensor cores, and the rows stay in shared memory up to d = 128. Wider elements are
# multiplied one by one from registers: small tiles, a part of the coordinates at a time.
_BEST = {2: Config(128, 128, 128, 8, 3), 4: Config(64, 64, 32, 8, 2), 8: Config(32, 32, 16, 4, 2)}


def sweep(itemsize: int, d: int, keep: int) -> Config:
    """Launch of a pass over pairs of elements of ``itemsize`` bytes; lists of ``keep`` a row."""
    return _BEST[itemsize]


def shares(n: int, m: int, config: Config) -> int:
    """Shares of m columns: enough programs for a large GPU, where the rows alone are too few."""
    wanted = triton.cdiv(_FILL, triton.cdiv(n, config.bm))
    return max(1, min(wanted, triton.cdiv(m, config.bn), _MOST_SHARES))


def candidates(k: int, narrow: bool) -> int:
    """Columns that a share keeps for each row: k, and some more where values are taken anew."""
    if k == 1:
        return 2 if narrow else 1
    return int(triton.next_power_of_2(k + 2 if narrow else k))


def room(count: int) -> int:
    """Places for ``count`` candidates: a power of two."""
    return max(2, int(triton.next_power_of_2(count)))


def join(count: int) -> Config:
    """Launch of the kernels that compare ``count`` candidates a row."""
    return Config(max(1, min(64, 4096 // room(count))), 0, 32, 4, 1)


def coordinates(d: int) -> int:
    """Coordinates that a program has at once: all of them up to 1024."""
    return int(min(1024, max(32, triton.next_power_of_2(d))))


#: Rows at once in the sums over instances; slots at once in the search for an empty one.
SUM_BLOCK, SLOT_BLOCK = 1024, 256
