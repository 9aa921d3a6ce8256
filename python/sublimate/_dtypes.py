"""Element types: in which one a kernel and the reference compute."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, else fp32: what tables, sums and per-element arithmetic are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
