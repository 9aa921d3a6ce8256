"""Train a small MLP whose linear layers keep a tenth to a half of their input, sketched.

Run: python examples/randomized_linear.py          (a few seconds on two cores)
"""

from __future__ import annotations

import copy

import sublimate
import torch
from sublimate import fewbit, randomized_linear
from torch import nn


def make_data(n: int = 2048) -> tuple[torch.Tensor, torch.Tensor]:
    """Two interleaved spirals, lifted to 16 random features."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(n, generator=generator) * 3
    label = torch.arange(n) % 2
    angle = 4 * t + torch.pi * label
    points = torch.stack([t * angle.cos(), t * angle.sin()], 1)
    points += 0.05 * torch.randn(n, 2, generator=generator)
    return points @ torch.randn(2, 16, generator=generator), label


def train(model: nn.Module, x: torch.Tensor, label: torch.Tensor, steps: int = 200) -> float:
    """Trains on the whole set and returns the final accuracy."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimiser.step()
    with torch.no_grad():
        return float((model(x).argmax(1) == label).float().mean())


def main() -> None:
    x, label = make_data()
    torch.manual_seed(0)
    exact = nn.Sequential(
        nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 2)
    )
    print(sublimate.memory.plan(exact, x), "\n")
    batches = [(x[part], label[part]) for part in torch.randperm(len(x)).chunk(8)]
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    print(randomized_linear.noise_report(exact, batches, loss=loss), "\n")

    rows = [("exact", copy.deepcopy(exact))]
    for sketch in ("srht", "rows", "wta"):
        for ratio in (0.5, 0.1):
            model = copy.deepcopy(exact)
            randomized_linear.convert(model, ratio, sketch)
            rows.append((f"{sketch} at {ratio}", model))
    both = copy.deepcopy(exact)
    randomized_linear.convert(both, 0.2)
    fewbit.convert(both, 3)
    rows.append(("srht at 0.2 and 3-bit GELU", both))
    for name, model in rows:
        accuracy = train(model, x, label)
        kept = sublimate.memory.saved_bytes(model, x)
        print(f"{name:28s} accuracy {accuracy:.3f}, keeps {kept / 1024:8.0f} KiB")


if __name__ == "__main__":
    main()
