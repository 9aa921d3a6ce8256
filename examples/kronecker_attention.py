"""Train one layer on Match3, where ordinary attention is lost, and look at what "auto" does.

Run: python examples/kronecker_attention.py        (under a minute on two cores)
"""

from __future__ import annotations

import torch
from sublimate.kronecker_attention import KroneckerAttention, choose, kronecker_attention
from torch import nn
from torch.nn import functional as F

MODULUS, LENGTH, WIDTH, FREQUENCIES = 41, 8, 32, (1, 7, 11)


def match3(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers mod 41, and for each whether two others make the sum 0.

    Pairs must not give the answer away: no two numbers are equal or opposite, or make a sum of 0
    with one of them taken twice.
    """
    a, b = torch.arange(MODULUS)[:, None], torch.arange(MODULUS)
    apart = (a - b) * (a + b) * (2 * a + b) * (a + 2 * b) % MODULUS != 0
    free, drawn = (b > 0).float().repeat(count, 1), []
    for _ in range(LENGTH):
        drawn.append(torch.multinomial(free, 1, generator=generator)[:, 0])
        free = free * apart[drawn[-1]]
    x = torch.stack(drawn, 1)
    total = x[:, :, None, None] + x[:, None, :, None] + x[:, None, None, :]
    return x, (total % MODULUS == 0).flatten(2).any(-1)


class Layer(nn.Module):
    """Attention, then a small feed-forward part on each position."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        turns = torch.tensor(FREQUENCIES)[:, None] * torch.arange(MODULUS) * 2 * torch.pi / MODULUS
        self.register_buffer("circles", torch.cat((turns.cos(), turns.sin())).T * 4 / 3**0.5)
        self.embed, self.attention = nn.Linear(2 * len(FREQUENCIES), WIDTH), attention
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.head = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(self.circles[x])
        h = torch.cat((self.start.expand(len(x), -1, -1), h), 1)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(h)[:, 1:, 0]


def train(model: nn.Module, steps: int = 300) -> float:
    """Trains on fresh sequences; the mean of the accuracies of both answers on others."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps, pct_start=0.1)
    for _ in range(steps):
        x, y = match3(128, generator)
        loss = F.binary_cross_entropy_with_logits(model(x), y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x, y = match3(2000, torch.Generator().manual_seed(2))
    with torch.no_grad():
        right = ((model(x) > 0) == y).double()
    return float(right[y].mean() + right[~y].mean()) / 2


def main() -> None:
    print("chance                   50.0 % right")
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
