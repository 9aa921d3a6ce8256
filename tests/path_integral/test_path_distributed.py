"""Two gloo processes share out path points or samples: the one-process answer, one all-reduce."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import path_distributed_worker


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this torch was built without gloo; install a build that has it",
)
def test_two_processes_give_the_answer_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(
        path_distributed_worker.main, (str(tmp_path / "store"),), nprocs=2, join=True
    )
