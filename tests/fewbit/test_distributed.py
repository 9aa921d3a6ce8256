"""DDP and FSDP2 around few-bit models: two processes give what one gives on the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import distributed_worker
from sublimate import fewbit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="this torch was built without gloo; install a build that has it",
    ),
]


@pytest.fixture(scope="module")
def single():
    return distributed_worker.single()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left the results of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(distributed_worker.main, (2, str(folder)), nprocs=2, join=True)
    return folder


@pytest.mark.parametrize(("kind", "order"), distributed_worker.CASES)
def test_two_processes(kind, order, single, folder):
    due, losses = single
    start = distributed_worker.full_state(distributed_worker.model())
    halves = []
    for rank in range(2):
        state, half = torch.load(folder / f"{kind}-{order}-{rank}")
        assert state.keys() == due.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, due[name], rtol=1e-5, atol=1e-6)
            if name in start:
                assert (value - start[name]).norm() > 1e-3, f"{name} was not trained"
        halves.append(half)
    means = [sum(pair) / 2 for pair in zip(*halves, strict=True)]
    assert means == pytest.approx(losses, rel=1e-5)
    assert halves[0] != halves[1], "both ranks saw the same half"


def test_few_bits_make_the_difference(single):
    """The comparison above has force: the exact model trains to other weights."""
    exact = distributed_worker.model()
    distributed_worker.train(exact, 0, 1)
    due, _ = single
    worst = max((v - due[k]).abs().max().item() for k, v in exact.state_dict().items())
    assert worst > 1e-4
    assert {k for k in due if k.endswith("levels")} == {"1.levels", "7.levels"}
    assert isinstance(fewbit.GELU(bits=2).levels, torch.Tensor)
