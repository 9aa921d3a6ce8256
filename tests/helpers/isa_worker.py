"""Run by test_isa.py under SUBLIMATE_CPU_ISA: results of every CPU kernel, saved to a file.

Usage: python -m helpers.isa_worker OUTPUT. The file holds
{"isa": level in use, "results": {key: tensor}}.
"""

from __future__ import annotations

import math
import sys

import torch
from helpers.fewbit_cases import (
    CODED,
    DTYPES,
    SMOOTH,
    default_tables,
    full_params,
    odd_tables,
    samples,
    upstream,
)
from sublimate import _native
from sublimate.fewbit import reference as R

ops = torch.ops.sublimate
N = 2 * 512 + 3 * 64 + 45  # whole blocks, whole vectors and a tail


def results() -> dict[tuple, torch.Tensor]:
    out: dict[tuple, torch.Tensor] = {}
    for dtype in DTYPES:
        x, grad = samples(N, dtype), upstream(N, dtype)
        for name, params, bits in CODED:
            tables = default_tables(name, params, bits, dtype)
            a, b = (*map(float, full_params(name, params)), 0.0, 0.0)[:2]
            y, packed = ops.fewbit_fwd(x, *tables, None, name, a, b, bits, "cpu")
            out["value", name, params, bits, dtype] = y
            out["words", name, params, bits, dtype] = packed
            out["gradient", name, params, bits, dtype] = ops.fewbit_bwd(
                grad, packed, tables[2], [1], bits, "cpu"
            )
        for bits, m in ((1, 0), (2, 9), (3, 31), (4, 255)):
            tables = odd_tables(bits, m, dtype)
            out["encode", bits, m, dtype] = ops.fewbit_encode(x, *tables, None, bits, "cpu")
        levels = torch.linspace(-0.3, 1.3, 8, dtype=R.accumulator(dtype))
        tables = (levels[:0].clone(), torch.zeros(1, dtype=torch.uint8), levels)
        seed = torch.tensor(2**40 + 17)
        given = torch.rand(N, generator=torch.Generator().manual_seed(2)).to(dtype)
        out["given", dtype] = ops.fewbit_encode(given, *tables, seed, 3, "cpu")
        for name in SMOOTH:
            a, b = (*R.FUNCTIONS[name].defaults, 0.0, 0.0)[:2]
            _, packed = ops.fewbit_fwd(x, *tables, seed, name, a, b, 3, "cpu")
            out["stochastic", name, dtype] = packed
        gate, up, dy = (samples((29, 43), dtype, seed=s, odd=False) for s in (1, 2, 3))
        borders, codes, levels = odd_tables(3, 7, dtype)
        values = levels.flip(0).contiguous()
        for keep in ("up", "gate"):
            y, packed, scale = ops.fewbit_gated_fwd(
                gate, up, borders, codes, "gelu", 3, keep, "cpu"
            )
            kept = up if keep == "up" else gate
            dgate, dup = ops.fewbit_gated_bwd(
                dy, kept, packed, scale, levels, values, "gelu", 3, keep, True, True, "cpu"
            )
            out["gated value", keep, dtype], out["gated words", keep, dtype] = y, packed
            out["gated dgate", keep, dtype], out["gated dup", keep, dtype] = dgate, dup
    for dtype in (torch.float16, torch.bfloat16):
        # Every number in and out; and every number times factors that round in each direction.
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        none, code = torch.empty(0), torch.zeros(1, dtype=torch.uint8)
        half = 2.0 ** (-11 if dtype == torch.float16 else -8)
        levels = torch.tensor([1 + half, 1 - half, 1 / 3, 2.0**-9, -1.7, 2.0**9, 1.5, 2.0**-15])
        identity = (None, "threshold", -math.inf, -math.inf, 1, "cpu")
        out["all values", dtype], _ = ops.fewbit_fwd(x, none, code, levels[:2].clone(), *identity)
        for k in range(8):
            packed = ops.fewbit_encode(x, none, code + k, levels, None, 3, "cpu")
            out["all products", k, dtype] = ops.fewbit_bwd(x, packed, levels, [1], 3, "cpu")
            out["expected products", k, dtype] = (x.float() * levels[k]).to(dtype)
        out["expected values", dtype] = x
    return out


if __name__ == "__main__":
    torch.save({"isa": _native.CPU.load().isa, "results": results()}, sys.argv[1])
