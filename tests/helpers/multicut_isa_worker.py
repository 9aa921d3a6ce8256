"""Run by multicut/test_isa.py under SUBLIMATE_CPU_ISA: results of every CPU kernel, to a file.

Usage: python -m helpers.multicut_isa_worker OUTPUT. The file holds {"isa": level in use,
"results": {key: tensor or tuple of tensors}}.
"""

from __future__ import annotations

import sys

import torch
from helpers.multicut_cases import Instances, mixture, run, slots_of
from sublimate import _native
from sublimate.multicut import dense_multicut

DTYPES = (torch.float32, torch.float64)


def case_of(dtype: torch.dtype) -> Instances:
    return mixture((233, 0, 61), 37, dtype, weighted=True, negative_dims=3)


def results() -> dict[tuple, object]:
    out: dict[tuple, object] = {}
    for dtype in DTYPES:
        case = case_of(dtype)
        state = slots_of(case, 9, 3)
        target, gain = run.multicut_best_cluster(*case.nodes, *state, "cpu")
        order = torch.arange(len(case.features))
        out["partner", dtype] = run.multicut_topk(*case.nodes, None, None, None, 1, 0, "cpu")
        out["topk", dtype] = run.multicut_topk(*case.nodes, None, None, None, 5, None, "cpu")
        out["negative sum", dtype] = run.multicut_negative_sum(*case.nodes, "cpu")
        out["best cluster", dtype] = target, gain
        out["move", dtype] = run.multicut_move(
            *case.nodes, *state, order, case.offsets, target, "cpu"
        )
        out["gaec", dtype] = run.multicut_gaec(*case.nodes, "cpu")
        out["chains", dtype] = run.multicut_kernighan_lin(*case.nodes, order, 4, 3, "cpu")
        x, w, offsets, alpha, q = case.nodes
        out["labels", dtype] = dense_multicut(
            x, alpha=alpha, weights=w, negative_dims=q, offsets=offsets, restarts=4, backend="cpu"
        )
    return out


if __name__ == "__main__":
    torch.save({"isa": _native.CPU.load().isa, "results": results()}, sys.argv[1])
