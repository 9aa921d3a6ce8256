"""Quantus and Captum judge attributions that our classes make: they are called as Captum's are.

Run: python examples/attribution_metrics.py          (about 10 seconds on two cores)
"""

from __future__ import annotations

from typing import Any

import captum.attr
import captum.metrics
import numpy as np
import quantus
import torch
from sklearn.datasets import load_digits
from sublimate import path_integral as pi
from torch import Tensor, nn


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small CNN on the digits, and 16 images with their classes that it has not seen."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, 2), nn.GELU(),
        nn.Flatten(), nn.Linear(16 * 9, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        batch = torch.randint(1400, (128,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model.eval(), x[1400:1416], y[1400:1416]


def explain(
    model: nn.Module, inputs: Any, targets: Any, make: type = pi.IntegratedGradients, **_: Any
) -> np.ndarray:
    """What Quantus calls: arrays in, attributions of the inputs' shape out."""
    x, target = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
    return make(model).attribute(x, target=target, n_steps=32).detach().numpy()


def random(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """Attributions that know nothing: the baseline a metric should tell from the others."""
    return np.random.default_rng(0).normal(size=np.shape(inputs)).astype(np.float32)


def by_quantus(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Three of its metrics: faithfulness and sparseness (more is better), stability (less is)."""
    metrics = {
        "faithfulness": quantus.FaithfulnessCorrelation(
            nr_runs=40, subset_size=16, disable_warnings=True
        ),
        "sparseness": quantus.Sparseness(disable_warnings=True),
        "max sensitivity": quantus.MaxSensitivity(
            nr_samples=4, lower_bound=0.05, disable_warnings=True
        ),
    }
    methods = {
        "sublimate": explain,
        "captum": lambda *a, **k: explain(*a, make=captum.attr.IntegratedGradients, **k),
        "random": random,
    }
    scores: dict[str, dict[str, float]] = {}
    for name, metric in metrics.items():
        scores[name] = {}
        for method, function in methods.items():
            np.random.seed(0)  # of the perturbations
            found = metric(
                model=model, x_batch=x.numpy(), y_batch=y.numpy(), explain_func=function,
                device="cpu",
            )  # fmt: skip
            scores[name][method] = float(np.mean(found))
    return scores


def noise(x: Tensor) -> tuple[Tensor, Tensor]:
    """A perturbation for infidelity: what is taken away, and the input without it."""
    taken = 0.1 * torch.randn_like(x)
    return taken, x - taken


def by_captum(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Its two metrics, and its NoiseTunnel around our class."""
    scores: dict[str, dict[str, float]] = {"infidelity": {}, "sensitivity": {}, "NoiseTunnel": {}}
    for name, library in (("sublimate", pi), ("captum", captum.attr)):
        method = library.IntegratedGradients(model)
        attributions = method.attribute(x, target=y, n_steps=32)
        torch.manual_seed(0)
        score = captum.metrics.infidelity(model, noise, x, attributions, target=y)
        scores["infidelity"][name] = float(score.mean())
        torch.manual_seed(0)
        score = captum.metrics.sensitivity_max(method.attribute, x, target=y, n_steps=8)
        scores["sensitivity"][name] = float(score.mean())
        torch.manual_seed(0)
        smooth = captum.attr.NoiseTunnel(method).attribute(
            x, nt_samples=4, stdevs=0.1, target=y, n_steps=8
        )
        scores["NoiseTunnel"][name] = float(smooth.abs().mean())
    return scores


def main() -> dict[str, dict[str, float]]:
    model, x, y = trained()
    scores = by_quantus(model, x, y) | by_captum(model, x, y)
    for metric, found in scores.items():
        print(f"{metric:16s}", "   ".join(f"{name} {score:.4f}" for name, score in found.items()))
    return scores


if __name__ == "__main__":
    main()
