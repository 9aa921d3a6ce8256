"""Inputs of the published check values of path integrals, and small models of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "path_integral" / "examples.json").read_text()
)
_I = torch.arange(5, dtype=torch.float64)
X = torch.sin(_I + 1)[None]
B = (torch.cos(_I) / 10)[None]
W = torch.cos(2 * _I + 1)
A = torch.sin(1 + _I[:, None] + 2 * _I) + torch.eye(5, dtype=torch.float64)
W1 = torch.sin(1 + _I[:, None] + 1.5 * _I) / 2
B1, V = torch.cos(_I) / 5, torch.sin(_I + 0.5)
REFERENCES = torch.sin(3 * torch.arange(4, dtype=torch.float64)[:, None] + _I) / 2


def numbers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(z: Tensor) -> Tensor:
    return z @ W + 0.25


def softplus(z: Tensor) -> Tensor:
    return nn.functional.softplus(z @ W + 0.25)


def tanh_mlp(z: Tensor) -> Tensor:
    return torch.tanh(z @ W1.t() + B1) @ V


def quadratic(z: Tensor) -> Tensor:
    return torch.einsum("bi,ij,bj->b", z, A, z)


def mlp(dtype: torch.dtype = torch.float64, act: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """5 -> 8 -> 3, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 8), act(), nn.Linear(8, 3)).to(dtype)


def cnn(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """[B, 3, 12, 12] -> [B, 4], with a normalisation of each kind; random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act(), nn.Conv2d(8, 8, 3), act(),
            nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), act(), nn.Flatten(), nn.LayerNorm(72),
            nn.Linear(72, 4),
        )  # fmt: skip
        model[1].running_mean.normal_()
        model[1].bias.data.normal_()
        return model.eval()


class Layers(nn.Module):
    """[B, 3] -> [B, 2] by a linear layer, a rectifier that may give a pair, and another."""

    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.pair = pair
        self.first, self.act, self.last = nn.Linear(3, 4), Doubled(), nn.Linear(4, 2)
        self.relu = nn.ReLU()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.sin(torch.arange(1.0, p.numel() + 1)).view_as(p))

    def forward(self, *inputs: Tensor) -> Tensor:
        h = self.first(torch.stack(inputs).sum(0))
        if self.pair:
            one, two = self.act(h)
            return self.last(one + two / 2)
        return self.last(self.relu(h))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.relu(x), nn.functional.relu(2 * x)
