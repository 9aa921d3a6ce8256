"""Run by randomized_linear/test_isa.py under SUBLIMATE_CPU_ISA: results of every CPU kernel.

Usage: python -m helpers.sketch_isa_worker OUTPUT. The file holds
{"isa": level in use, "results": {key: tensor}}.
"""

from __future__ import annotations

import sys

import torch
from helpers.sketch_kernels import DTYPES, SEED, numbers, strided
from sublimate import _native, _normal
from sublimate._native import randomized_linear as native

#: Several blocks of rows, registers of columns and a rest of each.
ROWS, COLUMNS, OUTPUTS = 1100, 77, 230
#: Rows and lengths: parts of registers, lines in the cache, and longer ones.
LENGTHS = ((9, 3), (70, 8), (30, 16), (11, 100), (3, 2000), (2, 40000), (1, 2**17 + 5))


def matrix(dtype: torch.dtype) -> torch.Tensor:
    return strided(numbers((ROWS, COLUMNS), dtype))


def results() -> dict[tuple, torch.Tensor]:
    out: dict[tuple, torch.Tensor] = {}
    for dtype in DTYPES:
        x = matrix(dtype)
        for sketch in native.PROJECTIONS:
            kept = torch.empty(OUTPUTS, COLUMNS, dtype=dtype)
            native.project("cpu", x, kept, torch.tensor(SEED), sketch, _normal.table())
            out[sketch, dtype] = kept
        index = (torch.arange(OUTPUTS) * 7 % ROWS).to(torch.int32)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        kept = torch.empty(OUTPUTS, COLUMNS, dtype=dtype)
        native.gather("cpu", x, index, torch.linspace(0.1, 3, OUTPUTS, dtype=wide), kept)
        out["gather", dtype] = kept
        for rows, length in LENGTHS:
            kept = torch.empty(rows, 1 << (length - 1).bit_length(), dtype=dtype)
            native.hadamard("cpu", numbers((rows, length), dtype), kept, 0.37)
            out["hadamard", length, dtype] = kept
    return out


if __name__ == "__main__":
    torch.save({"isa": _native.CPU.load().isa, "results": results()}, sys.argv[1])
