"""``pytest bench``: the CPU cases through pytest-benchmark; see README.md for the full run."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def threads():
    """The thread count, set and shown with the results (BENCH_THREADS, default all cores)."""
    count = int(os.environ.get("BENCH_THREADS") or len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    return count
