"""What the machine can do, measured in the run that uses it: copy bandwidth and matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy (read and written), and FLOP/s of a matrix product."""

    copy: float
    matmul: float

    def roofline_ms(self, moved: int, flops: int) -> tuple[float, str]:
        """Least time, and which ceiling binds: "memory" or "compute"."""
        memory, compute = moved / self.copy * 1e3, flops / self.matmul * 1e3
        return max(memory, compute), "memory" if memory >= compute else "compute"


_measured: dict[tuple[str, torch.dtype, int, bool], Ceilings] = {}


def measure(device: str, dtype: torch.dtype, elements: int, quick: bool) -> Ceilings:
    """Ceilings for tensors of that size; once per size and dtype in a process.

    The copy is between two buffers that exist already, so that no allocation is in it. It is at
    least 2 MiB, so that it is a bandwidth and not the cost of a call.
    """
    elements = max(elements, 2**21 // dtype.itemsize)
    key = (device, dtype, elements, quick)
    if key not in _measured:
        _measured[key] = Ceilings(
            _copy(device, dtype, elements, quick), _matmul(device, dtype, quick)
        )
    return _measured[key]


def _milliseconds(device: str, call: Callable[[], object], quick: bool) -> float:
    if device == "cuda":
        from triton.testing import do_bench

        warmup, rep = (1, 5) if quick else (25, 100)
        return float(do_bench(call, warmup=warmup, rep=rep, return_mode="median"))
    samples = []
    for _ in range(4 if quick else 12):
        start = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - start) * 1e-6)
    return statistics.median(samples[1:])


def _copy(device: str, dtype: torch.dtype, elements: int, quick: bool) -> float:
    source = torch.ones(elements, dtype=dtype, device=device)
    target = torch.empty_like(source).zero_()
    ms = _milliseconds(device, lambda: target.copy_(source), quick)
    return 2 * elements * dtype.itemsize / ms * 1e3


def _matmul(device: str, dtype: torch.dtype, quick: bool) -> float:
    size = 256 if quick else (8192 if device == "cuda" else 1536)
    a = torch.ones(size, size, dtype=dtype, device=device)
    out = torch.empty_like(a)
    ms = _milliseconds(device, lambda: torch.mm(a, a, out=out), quick)
    return 2 * size**3 / ms * 1e3
