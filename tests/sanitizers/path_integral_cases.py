"""Small calls of the path-integral CUDA kernels; see cases.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from helpers import path_kernels as K


def cases(device: str) -> Iterator[Callable[[], None]]:
    for dtype in (torch.float32, torch.bfloat16):
        for call in K.path_calls(dtype, device, ((3, 2, 37), (2, 2, 1030))):
            yield lambda call=call: call.check("cuda")
        for call in K.mask_calls(dtype, device, K.PICTURES[:2]):
            yield lambda call=call: call.check("cuda")
