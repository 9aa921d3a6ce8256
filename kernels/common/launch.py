"""What every host launcher of a Triton kernel needs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device current, where Triton launches; does nothing on the CPU."""
    import torch

    return torch.cuda.device_of(tensor)


def accumulator(tensor: Tensor) -> tl.dtype:
    """Dtype in which a kernel computes: fp64 for fp64, else fp32."""
    return tl.float64 if tensor.element_size() == 8 else tl.float32
