"""Run by kronecker_attention/test_isa.py under SUBLIMATE_CPU_ISA: every CPU kernel by the rules.

Usage: python -m helpers.kronecker_isa_worker OUTPUT. What is not as it should be ends it; the file
holds {"isa": level in use, "results": {(kernel, variant, dtype): number of results compared}}.
"""

from __future__ import annotations

import sys

import torch
from helpers import kronecker_kernels as K
from helpers.kronecker_cases import Variant, inputs
from sublimate import _native
from sublimate._native import kronecker_attention as N

#: Whole vectors of every level and what is left of them; masks, groups and windows.
VARIANTS = (
    Variant("full", n=37, lengths=(21, 67), heads=(2, 1), dims=(19, 33), batch=1, padding="both"),
    Variant("ordered", n=70, heads=(1, 1), dims=(16, 7), batch=1, causal=True, window=(9, 33)),
)
NARROW, WIDE = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)


def results() -> dict[tuple[object, ...], int]:
    done: dict[tuple[object, ...], int] = {}
    for v in VARIANTS:
        for dtype in (*WIDE, *NARROW):
            K.check_exact(v, dtype)
            done["exact", v.name, dtype] = len(K.NAMES)
        for dtype in WIDE:
            K.check_exact(v, dtype, 0.4, form="strassen")
            done["strassen", v.name, dtype] = len(K.NAMES)
    done["rows without keys"] = rows_without_keys()
    return done


def rows_without_keys() -> int:
    """A key that is not read weighs exactly nothing, under a running maximum too."""
    v = Variant("hidden", n=40, heads=(1, 1), batch=1, causal=True)
    for dtype in WIDE:
        q, *others, g = inputs(v, dtype, 3.0)
        out, lse = torch.empty_like(g), torch.empty(q.shape[:3], dtype=dtype)
        mask = torch.arange(40)[None] >= 5
        N.attention("cpu", q, *others, None, mask, out, lse, 0.5, True, [])
        assert (out[:, :, :5] == 0).all() and (lse[:, :, :5] == -torch.inf).all()
        assert lse[:, :, 5:].isfinite().all()
    return len(K.NAMES)


if __name__ == "__main__":
    torch.save({"isa": _native.CPU.load().isa, "results": results()}, sys.argv[1])
