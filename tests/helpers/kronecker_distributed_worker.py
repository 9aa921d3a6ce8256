"""Run by test_distributed.py of kronecker_attention in each of two processes, gloo on CPU."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from sublimate.kronecker_attention import KroneckerAttention
from torch import nn

BATCH, LENGTH, STEPS, WORLD = 4, 10, 3, 2


def model() -> nn.Module:
    """A block of each method: exact with key heads shared, polynomial with normalised keys."""
    torch.manual_seed(11)
    return nn.ModuleList(
        [
            KroneckerAttention(12, 4, kv_heads=2, causal=True),
            KroneckerAttention(12, 2, qk_norm=True, method="polynomial", degree=2),
        ]
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = model()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)[0]
        return x


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(STEPS, BATCH, LENGTH, 12, generator=generator)


def train(net: nn.Module, part: slice) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for x in data():
        optimizer.zero_grad()
        (net(x[part]) - 1).square().mean().backward()
        optimizer.step()
    return {n.removeprefix("module."): p.detach().clone() for n, p in net.named_parameters()}


def main(rank: int, world: int, folder: str) -> None:
    """Trains on this rank's half of each batch; the parameters go to <folder>/<rank>."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        half = BATCH // WORLD
        net = nn.parallel.DistributedDataParallel(Net())
        torch.save(train(net, slice(rank * half, (rank + 1) * half)), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()
