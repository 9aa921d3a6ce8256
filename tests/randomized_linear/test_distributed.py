"""DDP and FSDP2: two processes give what one gives that plays both ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import sketch_distributed_worker as worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="this torch was built without gloo; install a build that has it",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left the results of every kind."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker.main, (2, str(folder)), nprocs=2, join=True)
    return folder


@pytest.mark.parametrize("kind", worker.KINDS)
def test_two_processes(kind, folder):
    apart, together = worker.single((0, 1)), worker.single((0, 0))
    due, other = (together, apart) if kind == "tensor-parallel" else (apart, together)
    start = dict(worker.model().named_parameters())
    for rank in range(2):
        state = torch.load(folder / f"{kind}-{rank}")
        assert state.keys() == due.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, due[name], rtol=1e-5, atol=1e-6)
            assert (value - start[name]).norm() > 1e-4, f"{name} was not trained"
        # Drawing apart and drawing together are told from one another.
        worst = max(float((state[n] - other[n]).abs().max()) for n in state)
        assert worst > 1e-3
