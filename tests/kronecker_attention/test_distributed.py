"""DDP: two processes on half a batch each train what one does on the whole."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import kronecker_distributed_worker as worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="this torch was built without gloo; install a build that has it",
    ),
]


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(worker.main, (2, str(tmp_path)), nprocs=2, join=True)
    start = {n: p.detach().clone() for n, p in worker.Net().named_parameters()}
    due = worker.train(worker.Net(), slice(None))
    for rank in range(2):
        state = torch.load(tmp_path / str(rank))
        assert state.keys() == due.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, due[name], rtol=1e-5, atol=1e-6)
    moved = [n for n in due if (due[n] - start[n]).norm() > 1e-4]
    # A bias of all keys of a set shifts every logit of a row alike only in order 2: all move here.
    assert len(moved) > len(due) - 4, sorted(set(due) - set(moved))
