"""Run by path_integral/test_isa.py under SUBLIMATE_CPU_ISA: results of every CPU kernel.

Usage: python -m helpers.path_isa_worker OUTPUT. The file holds
{"isa": level in use, "results": {call: tensor}}: sums and points, to be compared between levels.
The lowest level is compared with the reference, which takes longer than all kernels together;
test_kernels.py does the same at the highest.
"""

from __future__ import annotations

import sys

import torch
from helpers import path_kernels as K
from sublimate import _native


def results(level: str) -> dict[tuple, torch.Tensor]:
    out: dict[tuple, torch.Tensor] = {}
    for dtype in K.DTYPES:
        for calls in (K.path_calls(dtype, "cpu"), K.mask_calls(dtype, "cpu")):
            for i, call in enumerate(calls):
                if level == "base":
                    call.check("cpu")
                found = call.op(*call.arguments, "cpu")
                for j, t in enumerate(found if isinstance(found, tuple) else (found,)):
                    out[call.name, i, j, dtype] = t
    return out


if __name__ == "__main__":
    level = _native.CPU.load().isa
    torch.save({"isa": level, "results": results(level)}, sys.argv[1])
