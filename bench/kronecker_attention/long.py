"""Exact attention where its competitor's tensors do not fit: time, memory, and what that needs.

    python -m bench.kronecker_attention.long HEADS CAUSAL MODE >> bench/kronecker_attention/long.csv

N = 4096, D = 32, fp32, one batch, two threads, one call; CAUSAL is 0 or 1, MODE "fwd" or "both".
``SDPA over all pairs`` holds keys and values of N^2 pairs, with gradients those of both too, and
under causality a mask of N^3 bytes. Its tensors are allocated here, without a page of them being
touched, while the address space may grow by the machine's memory and no more.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from sublimate.kronecker_attention import kronecker_attention

N, DIM, THREADS = 4096, 32, 2


def needed(heads: int, causal: bool, mode: str) -> list[int]:
    """Bytes of each tensor that the competitor holds at once."""
    pairs = 4 * heads * N * N * DIM
    return [pairs] * (4 if mode == "both" else 2) + ([N**3] if causal else [])


def _status(key: str) -> int:
    """Bytes, of this process (VmHWM, VmSize) by Linux."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))


def _memory() -> int:
    with open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemTotal"))


def refusal(sizes: list[int]) -> str:
    """torch's refusal of tensors of these sizes, or "fits"."""
    most = _memory()
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + most, resource.RLIM_INFINITY))
    held = []
    try:
        for size in sizes:
            held.append(torch.empty(size, dtype=torch.uint8))
    except RuntimeError as error:
        told = str(error).split("you tried to allocate ")[-1].split(".")[0]
        return f"refused {told} beside {sum(t.numel() for t in held)} of {most} bytes"
    return f"fits into {most} bytes"


def main(heads: int, causal: bool, mode: str) -> None:
    torch.set_num_threads(THREADS)
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, heads, N, DIM, generator=draw).requires_grad_() for _ in range(5)]
    short = [t[:, :, :64] for t in leaves]
    kronecker_attention(*short, causal=causal, backend="cpu").sum().backward()
    before = _status("VmHWM")
    start = time.perf_counter()
    out = kronecker_attention(*leaves, causal=causal, backend="cpu")
    if mode == "both":
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    taken = 1e3 * (time.perf_counter() - start)
    peak = _status("VmHWM") - before
    sizes = needed(heads, causal, mode)
    print(f"{heads},{int(causal)},{mode},{taken:.4g},{peak},{sum(sizes)},{refusal(sizes)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), bool(int(sys.argv[2])), sys.argv[3])
