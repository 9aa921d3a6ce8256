"""Train a small MLP with 3-bit activations: same accuracy, a fraction of the kept memory.

Run: python examples/fewbit.py          (a few seconds on two cores)
"""

from __future__ import annotations

import copy

import sublimate
import torch
from sublimate import fewbit
from torch import nn


def make_data(n: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
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
    return (model(x).argmax(1) == label).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    x, label = make_data()
    exact = nn.Sequential(
        nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 2)
    )
    coded = copy.deepcopy(exact)
    # Codebooks fitted to what each layer sees; without calibrate they suit N(0, 1).
    print(fewbit.convert(coded, bits=3, calibrate=[x]))

    for name, model in (("exact", exact), ("3 bits", coded)):
        kept = sublimate.memory.saved_bytes(model, x)
        accuracy = train(model, x, label)
        print(f"{name:7s} accuracy {accuracy:.3f}   kept for backward {kept / 2**20:.2f} MiB")

    print(coded[1].codebook)


if __name__ == "__main__":
    main()
