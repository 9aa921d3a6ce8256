"""Timing of providers against one another: interleaved rounds, rotating order, quantiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Case, Forward

QUANTILES = (0.2, 0.5, 0.8)


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """p20, p50 and p80 of the samples."""
    values = torch.tensor(samples, dtype=torch.float64)
    low, middle, high = torch.quantile(
        values, torch.tensor(QUANTILES, dtype=torch.float64)
    ).tolist()
    return low, middle, high


def cpu_sample(
    mode: str, forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor, calls: int
) -> float:
    """Milliseconds of one call, the mean of ``calls``. What it made is freed off the clock if it is
    one call, and on it if there are more."""
    if mode == "bwd":
        made = [forward(*inputs) for _ in range(calls)]
        start = time.perf_counter_ns()
        for y in made:
            kept: Any = torch.autograd.grad(y, inputs, dy)
        return (time.perf_counter_ns() - start) * 1e-6 / calls
    start = time.perf_counter_ns()
    if mode == "fwd":
        for _ in range(calls):
            kept = forward(*inputs)
    else:
        for _ in range(calls):
            kept = torch.autograd.grad(forward(*inputs), inputs, dy)
    elapsed = time.perf_counter_ns() - start
    del kept
    return elapsed * 1e-6 / calls


def gpu_samples(
    mode: str, forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor, quick: bool
) -> list[float]:
    """Milliseconds of calls timed by CUDA events, the cache flushed before each."""
    import torch._functorch.config
    from triton.testing import do_bench

    if mode == "fwd":
        call: Callable[[], Any] = lambda: forward(*inputs)  # noqa: E731
    elif mode == "both":
        call = lambda: torch.autograd.grad(forward(*inputs), inputs, dy)  # noqa: E731
    else:
        y = forward(*inputs)
        call = lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)  # noqa: E731
    warmup, rep = (1, 5) if quick else (25, 100)
    samples: list[float] = do_bench(call, warmup=warmup, rep=rep, return_mode="all")
    return samples


def interleave(
    case: Case,
    forwards: dict[str, Forward],
    inputs: tuple[Tensor, ...],
    dy: Tensor,
    rounds: int,
    quick: bool,
) -> dict[tuple[str, str], list[float]]:
    """Samples in ms of every (mode, provider), taken in turns.

    Each round goes through all providers, starting one further on than the round before, so that a
    slow spell of the machine meets all of them and none always comes first.
    """
    names = list(forwards)
    samples: dict[tuple[str, str], list[float]] = {(m, n): [] for m in case.modes for n in names}
    on_gpu = case.device == "cuda"
    # A GPU round already holds many samples.
    count = max(1, rounds // 5) if on_gpu else rounds
    for r in range(-1 if not on_gpu else 0, count):  # round -1 warms up and is dropped
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            for mode in case.modes:
                if on_gpu:
                    samples[mode, name] += gpu_samples(mode, forwards[name], inputs, dy, quick)
                    continue
                taken = cpu_sample(mode, forwards[name], inputs, dy, case.calls)
                if r >= 0:
                    samples[mode, name].append(taken)
    return samples


def peak_bytes(device: str, call: Callable[[], Any]) -> int:
    """Most bytes allocated at once during the call beyond those before it, by torch's allocator."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    level = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
