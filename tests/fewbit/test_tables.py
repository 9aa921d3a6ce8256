"""Codebooks of unusual shape: few or many borders, repeated and permuted codes, all backends alike."""

from __future__ import annotations

import pytest
import torch

from sublimate import fewbit
from sublimate.fewbit import reference


def book(borders: list[float], codes: list[int], bits: int) -> fewbit.Codebook:
    levels = torch.linspace(-0.5, 1.5, 2**bits).double()
    return fewbit.Codebook(
        torch.tensor(borders, dtype=torch.float64), torch.tensor(codes), levels, bits
    )


SHAPES = {
    "none": ([], [2], 3),
    "fewer intervals than codes, in order": ([-1.0, 0.0, 1.0], [0, 1, 2, 3], 3),
    "two intervals, four bits": ([0.25], [0, 1], 4),
    "in order": ([-1.0, 0.0, 1.0], [0, 1, 2, 3], 2),
    "reversed": ([-1.0, 0.0, 1.0], [3, 2, 1, 0], 2),
    "up and down": ([-2.0, -1.0, 0.0, 1.0, 2.0], [0, 1, 3, 3, 1, 0], 2),
    "31 borders": ([i / 8 - 2 for i in range(31)], [i % 16 for i in range(32)], 4),
    "32 borders": ([i / 8 - 2 for i in range(32)], [(5 * i) % 8 for i in range(33)], 3),
    "255 borders": ([i / 64 - 2 for i in range(255)], [(7 * i) % 16 for i in range(256)], 4),
    "equal after rounding": ([1.0, 1.0 + 2**-12, 1.0 + 2**-11], [0, 1, 2, 3], 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_any_table(shape, dtype, backend, request):
    if backend == "cuda":
        request.getfixturevalue("emulated_cuda")
    code = book(*SHAPES[shape])
    x = torch.cat([torch.linspace(-2.5, 2.5, 301), code.borders.float()]).to(dtype)
    x.requires_grad_()
    dy = torch.linspace(0.5, 2, x.numel()).to(dtype)
    fewbit.activation(x, code, fn=torch.sin, backend=backend).backward(dy)
    at = reference.encode(x.detach(), code.borders, code.codes)
    acc = reference.accumulator(dtype)
    due = (code.levels.to(acc)[at] * dy.to(acc)).to(dtype)
    assert torch.equal(x.grad, due)
