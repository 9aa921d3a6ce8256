"""Cases of test_triton_interpreter.py: every Triton kernel of the family against the reference."""

from __future__ import annotations

import pytest
import torch
from helpers import path_kernels as K


# The interpreter's bf16 is not to be trusted; the kernels widen right after each load.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", K.SIZES, ids=str)
def test_paths(dtype, size):
    for call in K.path_calls(dtype, "cpu", (size,)):
        call.check("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("picture", K.PICTURES, ids=str)
def test_masks(dtype, picture):
    for call in K.mask_calls(dtype, "cpu", (picture,)):
        call.check("triton")
