"""Run by test_distributed.py of randomized_linear in each of two processes, gloo on CPU."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from sublimate import randomized_linear
from torch import nn

BATCH, STEPS, WORLD = 48, 3, 2
KINDS = ("ddp", "fsdp2", "tensor-parallel")


def model(rank: object = None) -> nn.Module:
    """An MLP of sketched layers; ``rank`` as of ``convert``."""
    torch.manual_seed(11)
    m = nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 5))
    randomized_linear.convert(m, 0.25, "srht", seed=5, rank=rank)
    return m


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(STEPS, BATCH, 12, generator=generator)


def loss(y: torch.Tensor) -> torch.Tensor:
    return (y - 1).square().mean()


def share(x: torch.Tensor, rank: int) -> torch.Tensor:
    return x.chunk(WORLD)[rank]


def single(ranks: tuple[int, int]) -> dict[str, torch.Tensor]:
    """One process that plays both: gradients of two models of these ranks, averaged."""
    models = [model(rank) for rank in ranks]
    for x in data():
        for rank, m in enumerate(models):
            m.zero_grad()
            loss(m(share(x, rank))).backward()
        with torch.no_grad():
            for pair in zip(*(m.parameters() for m in models), strict=True):
                mean = (pair[0].grad + pair[1].grad) / 2  # type: ignore[operator]
                for p in pair:
                    p -= 0.5 * mean
    return {n: p.detach().clone() for n, p in models[0].named_parameters()}


def train(m: nn.Module, rank: int) -> None:
    optimizer = torch.optim.SGD(m.parameters(), lr=0.5)
    for x in data():
        optimizer.zero_grad()
        loss(m(share(x, rank))).backward()
        optimizer.step()


def full(m: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for name, p in m.named_parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        state[name.removeprefix("module.")] = whole.detach().clone()
    return state


def main(rank: int, world: int, folder: str) -> None:
    """Every kind in turn; its parameters go to <folder>/<kind>-<rank>."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        own = [dist.new_group([r]) for r in range(world)]  # a data-parallel group of one
        for kind in KINDS:
            m = model(own[rank] if kind == "tensor-parallel" else None)
            if kind == "fsdp2":
                from torch.distributed.device_mesh import init_device_mesh
                from torch.distributed.fsdp import fully_shard

                mesh = init_device_mesh("cpu", (world,))
                for layer in (m[0], m[2]):
                    fully_shard(layer, mesh=mesh)
                fully_shard(m, mesh=mesh)
            else:
                m = nn.parallel.DistributedDataParallel(m)
            train(m, rank)
            torch.save(full(m), f"{folder}/{kind}-{rank}")
    finally:
        dist.destroy_process_group()
