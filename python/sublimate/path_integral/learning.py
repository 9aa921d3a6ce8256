"""Small networks of the demo, and how they learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .expected import expected_gradients
from .priors import attribution_prior

_BATCH = 64


def convolutional(height: int, width: int, classes: int, channels: int = 1) -> nn.Module:
    """A small network with GELU, so that paths are smooth."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 24, 3, 2, 1), nn.GELU(),
        nn.Conv2d(24, 24, 3, 2, 1), nn.GELU(), nn.Flatten(),
        nn.Linear(24 * (height // 4) * (width // 4), classes),
    )  # fmt: skip


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    seed: int,
    prior: float = 0.0,
    rate: float = 3e-3,
) -> nn.Module:
    """Adam on random batches; with ``prior``, the total variation of expected gradients too."""
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    for step in range(steps):
        batch = torch.randint(len(x), (_BATCH,), generator=order).to(x.device)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        if prior:
            attributions = expected_gradients(
                model, x[batch], x[batch.flip(0)], y[batch], n_samples=2, seed=step,
                create_graph=True,
            )  # fmt: skip
            loss = loss + prior * attribution_prior(attributions, kind="total_variation")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits: images (N, 1, 8, 8) in [0, 1] and labels, of training and test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    first, second, labels, others = (torch.from_numpy(part) for part in split)
    shape = (-1, 1, 8, 8)
    return (
        first.float().view(shape) / 16, labels.long(), second.float().view(shape) / 16,
        others.long(),
    )  # fmt: skip
