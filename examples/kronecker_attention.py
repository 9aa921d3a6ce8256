"""Train one layer on Match3, where ordinary attention stops early, and look at what "auto" does.

Run: python examples/kronecker_attention.py        (under a minute on two cores)
"""

from __future__ import annotations

import torch
from sublimate.kronecker_attention import KroneckerAttention, choose, kronecker_attention
from torch import nn
from torch.nn import functional as F

MODULUS, LENGTH, WIDTH = 11, 5, 32


def match3(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers mod 11, and for each whether two others (or itself again) make the sum 0."""
    x = torch.randint(MODULUS, (count, LENGTH), generator=generator)
    total = x[:, :, None, None] + x[:, None, :, None] + x[:, None, None, :]
    return x, (total % MODULUS == 0).flatten(2).any(-1)


class Layer(nn.Module):
    """Attention, then a small feed-forward part on each position."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        turns = torch.arange(1, 6)[:, None] * torch.arange(MODULUS) * (2 * torch.pi / MODULUS)
        self.register_buffer("circles", torch.cat((turns.cos(), turns.sin())).T * 2)
        self.embed, self.attention = nn.Linear(10, WIDTH), attention
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.head = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(self.circles[x])
        h = torch.cat((self.start.expand(len(x), -1, -1), h), 1)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(h)[:, 1:, 0]


def train(model: nn.Module, steps: int = 600) -> float:
    """Trains on fresh sequences and returns the accuracy on others."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        x, y = match3(128, generator)
        loss = F.binary_cross_entropy_with_logits(model(x), y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x, y = match3(2000, torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float(((model(x) > 0) == y).double().mean())


def main() -> None:
    _, y = match3(2000, torch.Generator().manual_seed(2))
    share = float(y.double().mean())
    print(f"always the same answer   {100 * max(share, 1 - share):.1f} % right")
    for name, make in (
        ("ordinary attention", lambda: nn.MultiheadAttention(WIDTH, 4, batch_first=True)),
        ("over pairs of keys", lambda: KroneckerAttention(WIDTH, 4)),
    ):
        torch.manual_seed(0)
        print(f"{name:24s} {100 * train(Layer(make())):.1f} % right")

    # With small logits the polynomial method is near-linear; "auto" takes it within a tolerance.
    q, k1, k2, v1, v2 = (torch.randn(1, 2, 256, 16) for _ in range(5))
    for size in (0.2, 4.0):
        plan = choose(size * q, k1, k2, v1 + 0.5, v2 + 0.5, tol=1e-2)
        print(f"\nqueries times {size:g}: {plan.method}. {plan.reason}")
        kronecker_attention(size * q, k1, k2, v1 + 0.5, v2 + 0.5, tol=1e-2)


if __name__ == "__main__":
    main()
