"""Learn features whose best clustering is a given one, then cluster what was never seen.

Run: python examples/multicut.py          (a few seconds on two cores)
"""

from __future__ import annotations

import torch
from sublimate import multicut
from torch import Tensor, nn

ALPHA, MARGIN = 0.3, 0.3


def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on five rings of the plane, hidden in 20 noisy features; and their ring."""
    ring = torch.randint(5, (n,), generator=generator)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    radius = 1 + ring + 0.08 * torch.randn(n, generator=generator)
    plane = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    mixing = torch.randn(2, 20, generator=torch.Generator().manual_seed(5))
    return plane @ mixing + 0.1 * torch.randn(n, 20, generator=generator), ring


def agreement(labels: Tensor, truth: Tensor) -> float:
    """Share of pairs that both put together or both keep apart (the Rand index)."""
    same = (labels[:, None] == labels) == (truth[:, None] == truth)
    return float(same.double().mean())


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(),
                        nn.Linear(128, 16))  # fmt: skip

    def embed(x: Tensor) -> Tensor:
        return nn.functional.normalize(net(x), dim=1)

    test, truth = sample(2000, generator)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(401):
        if step % 100 == 0:
            with torch.no_grad():
                x = embed(test)
            labels, info = multicut.dense_multicut(x, alpha=ALPHA, return_info=True)
            count, rand = int(labels.max()) + 1, agreement(labels, truth)
            print(f"step {step:3d}: {count:3d} clusters, Rand index {rand:.3f}, gap {info.gap:.2%}")
        x, ring = sample(256, generator)
        optimiser.zero_grad()
        multicut.margin_loss(embed(x), ring, ALPHA, MARGIN).backward()
        optimiser.step()

    bound = float(multicut.lower_bound(x := embed(test).detach(), ALPHA, labels=labels))
    cost = float(multicut.objective(x, labels, ALPHA))
    print(f"cost {cost:.0f}, and no clustering costs less than {bound:.0f}")
    path = multicut.alpha_path(x)
    print({alpha: path.n_clusters(alpha) for alpha in (0.0, 0.2, 0.4, 0.6, 0.8)})


if __name__ == "__main__":
    main()
