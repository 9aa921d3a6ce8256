"""Attributions of a digit classifier with a stated error, and a training run with a prior.

Run: python examples/path_integral.py          (a few seconds on two cores)
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sublimate import path_integral as pi
from torch import nn


def train(x: torch.Tensor, y: torch.Tensor, weight: float = 0.0, steps: int = 150) -> nn.Module:
    """A small CNN; with ``weight`` its expected gradients are asked to be smooth over the image."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, 2), nn.GELU(),
        nn.Flatten(), nn.Linear(16 * 9, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    order = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = torch.randint(len(x), (64,), generator=order)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        if weight:
            attributions = pi.expected_gradients(
                model, x[batch], x[batch.flip(0)], y[batch], n_samples=2, seed=step,
                create_graph=True,
            )  # fmt: skip
            loss = loss + weight * pi.attribution_prior(attributions, kind="total_variation")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    model = train(x[:1400], y[:1400])
    test, truth = x[1400:1440], y[1400:1440]

    # Fixed rule; to a tolerance, with an error estimate; all ten classes from one forward.
    fixed, delta = pi.integrated_gradients(model, test, target=truth, return_convergence_delta=True)
    adaptive, info = pi.integrated_gradients(model, test, target=truth, tol=1e-2, return_info=True)
    print(f"50 Gauss-Legendre points: completeness off by at most {delta.abs().max():.1e}")
    print(f"tol 1e-2: {info.steps.float().mean():.0f} points on average, "
          f"{int(info.converged.sum())} of {len(test)} converged, estimated error "
          f"{(info.error / info.size).max():.1e}, from the fixed rule "
          f"{((adaptive - fixed).abs().sum((1, 2, 3)) / info.size).max():.1e}")  # fmt: skip
    print("all classes:", tuple(pi.integrated_gradients(model, test, target="all").shape))

    prior = train(x[:1400], y[:1400], weight=3.0)
    for name, net in (("plain", model), ("prior", prior)):
        accuracy = (net(x[1400:]).argmax(1) == y[1400:]).float().mean()
        rough = pi.attribution_prior(
            pi.integrated_gradients(net, test, target=truth), kind="total_variation"
        )
        print(f"{name}: accuracy {accuracy:.3f}, variation of attributions {rough:.4f}")


if __name__ == "__main__":
    main()
