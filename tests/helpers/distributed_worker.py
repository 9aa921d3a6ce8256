"""Run by test_distributed.py in each of two processes: an MLP under DDP or FSDP2, gloo on CPU."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sublimate import fewbit
from torch import nn

BATCH, STEPS = 32, 3


def model() -> nn.Module:
    """A residual MLP with a smooth, a gated and a two-valued activation."""
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 40), Glu(), nn.Linear(20, 24), nn.ReLU(),
        nn.Linear(24, 12), nn.SiLU(), nn.Linear(12, 5),
    )  # fmt: skip


class Glu(nn.Module):
    """Halves of one projection through our gated unit, which convert leaves as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return fewbit.swiglu(gate, up, bits=3)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS, BATCH, 12, generator=generator)
    return x, torch.randn(STEPS, BATCH, 5, generator=generator)


def train(m: nn.Module, rank: int, world: int) -> list[float]:
    """Losses of the rank's share of every batch; plain SGD, so that gradients show unscaled."""
    optimizer = torch.optim.SGD(m.parameters(), lr=1.0)
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    losses = []
    for x, target in zip(*data(), strict=True):
        optimizer.zero_grad()
        loss = F.mse_loss(m(x[share]), target[share])
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def full_state(m: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in m.state_dict().items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        state[name.removeprefix("module.")] = whole.detach().clone()
    return state


def single() -> tuple[dict[str, torch.Tensor], list[float]]:
    """The result of one process with the whole batch."""
    m = model()
    fewbit.convert(m, bits=2)
    losses = train(m, 0, 1)
    return full_state(m), losses


def wrapped(kind: str, order: str, m: nn.Module) -> nn.Module:
    """m converted and wrapped, in the order asked for."""
    if order == "convert-first":
        fewbit.convert(m, bits=2)
    if kind == "ddp":
        m = nn.parallel.DistributedDataParallel(m)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in list(m):
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(m, mesh=mesh)
    if order == "wrap-first":
        report = fewbit.convert(m, bits=2)
        assert len(report.replaced) == 3
    return m


CASES = [(kind, order) for kind in ("ddp", "fsdp2") for order in ("convert-first", "wrap-first")]


def main(rank: int, world: int, folder: str) -> None:
    """Every case in turn; its result goes to <folder>/<kind>-<order>-<rank>."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        for kind, order in CASES:
            m = wrapped(kind, order, model())
            losses = train(m, rank, world)
            torch.save((full_state(m), losses), f"{folder}/{kind}-{order}-{rank}")
    finally:
        dist.destroy_process_group()
