"""DDP and FSDP2 around a converted model, on two CPU processes; on GPUs only the group differs.

``fewbit.convert`` and ``randomized_linear.convert`` come before the wrapper. Each rank draws its
own sketches: ``rank=None``, the default, is its rank in the default group. The same script runs
under ``torchrun --nproc-per-node 2 examples/distributed_training.py``.

Run: python examples/distributed_training.py          (about 10 seconds on two cores)
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sublimate import fewbit, memory, randomized_linear
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

WORLD, STEPS, BATCH = 2, 60, 64


def build() -> nn.Sequential:
    """The same random weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 4)
    )


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """This rank's share of a step's samples: four noisy directions to tell apart."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    label = torch.randint(4, (BATCH,), generator=generator)
    return torch.randn(BATCH, 32, generator=generator) + 1.5 * torch.eye(4, 32)[label], label


def convert(model: nn.Sequential) -> None:
    """3-bit activations and sketched linear layers; the last layer stays exact."""
    fewbit.convert(model, bits=3)
    randomized_linear.convert(model, ratio=0.25, exclude="4")


def wrap(kind: str, model: nn.Sequential) -> nn.Module:
    """The converted model under DDP or FSDP2."""
    if kind == "DDP":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):  # ours are subclasses of it
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model: nn.Module, rank: int) -> list[float]:
    """Losses averaged over the ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        x, label = batch(step, rank)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), label)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / dist.get_world_size())
    return losses


def whole(model: nn.Module) -> dict[str, Tensor]:
    """All parameters in full, under the names that the unwrapped model has."""
    return {
        name.removeprefix("module."): p.full_tensor() if hasattr(p, "full_tensor") else p.detach()
        for name, p in model.named_parameters()
    }


def run() -> dict[str, dict[str, Any]]:
    """On every rank: trains under both wrappers; the process group exists."""
    rank = dist.get_rank()
    results: dict[str, dict[str, Any]] = {}
    for kind in ("DDP", "FSDP2"):
        model = build()
        x, _ = batch(0, rank)
        kept = [int(memory.saved_bytes(model, x))]
        convert(model)
        kept.append(int(memory.saved_bytes(model, x)))
        wrapped = wrap(kind, model)
        losses = train(wrapped, rank)
        results[kind] = {"losses": losses, "kept": kept, "weights": whole(wrapped)}
        if rank == 0:
            print(
                f"{kind:6s} loss {losses[0]:.3f} -> {losses[-1]:.3f}; kept for backward on a rank "
                f"{kept[0] / 1024:.0f} -> {kept[1] / 1024:.0f} KiB",
                flush=True,
            )
    return results


def worker(rank: int, folder: str) -> None:
    """One of the processes that ``main`` starts."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        torch.save(run(), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


def main() -> list[dict[str, dict[str, Any]]]:
    """The results of both ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / str(rank)) for rank in range(WORLD)]


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # torchrun has started the processes
        dist.init_process_group("gloo")
        run()
        dist.destroy_process_group()
    else:
        main()
