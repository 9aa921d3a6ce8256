"""Run by path_integral/test_isa.py under SUBLIMATE_CPU_ISA: every CPU kernel against the reference.

Usage: python -m helpers.path_isa_worker OUTPUT. The file holds
{"isa": level in use, "results": {call: tensor}}: sums and points, to be compared between levels.
"""

from __future__ import annotations

import sys

import torch
from helpers import path_kernels as K
from sublimate import _native


def results() -> dict[tuple, torch.Tensor]:
    out: dict[tuple, torch.Tensor] = {}
    for dtype in K.DTYPES:
        for calls in (K.path_calls(dtype, "cpu"), K.mask_calls(dtype, "cpu")):
            for i, call in enumerate(calls):
                call.check("cpu")
                found = call.op(*call.arguments, "cpu")
                for j, t in enumerate(found if isinstance(found, tuple) else (found,)):
                    out[call.name, i, j, dtype] = t
    return out


if __name__ == "__main__":
    torch.save({"isa": _native.CPU.load().isa, "results": results()}, sys.argv[1])
