"""Rows of the all-pairs passes over two gloo processes: the labels of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import multicut_distributed_worker as worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="this torch was built without gloo; install a build that has it",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left the labels of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker.main, (2, str(folder)), nprocs=2, join=True)
    return folder


@pytest.mark.parametrize("name", worker.CASES)
def test_two_processes(name, folder):
    due = worker.run(name, None)
    assert int(due.max()) > 5
    for rank in range(2):
        labels, largest = torch.load(folder / f"{name}-{rank}")
        assert torch.equal(labels, due)
        assert largest == 301 - rank, "each rank computes its half of the rows"
