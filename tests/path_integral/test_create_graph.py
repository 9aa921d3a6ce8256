"""Every estimator is differentiable: gradcheck in float64, and gradients that reach parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.path_cases import B, X, mlp
from sublimate import path_integral as pi
from torch import Tensor, nn
from torch.autograd import gradcheck

TWO = torch.cat((X, B))
SMOOTH = mlp(act=nn.Softplus)
K = {"create_graph": True}
CASES: dict[str, Any] = {
    "integrated": lambda x, b: pi.integrated_gradients(SMOOTH, x, b, 1, n_steps=4, **K),
    "mean gradient": lambda x, b: pi.integrated_gradients(
        SMOOTH, x, b, 1, n_steps=4, multiply_by_inputs=False, **K
    ),
    "all targets": lambda x, b: pi.integrated_gradients(SMOOTH, x, b, "all", n_steps=3, **K),
    "in chunks": lambda x, b: pi.integrated_gradients(
        SMOOTH, x, b, 1, n_steps=5, internal_batch_size=1, **K
    ),
    "tolerance": lambda x, b: pi.integrated_gradients(SMOOTH, x, b, 1, tol=1e-3, **K),
    "expected": lambda x, b: pi.expected_gradients(SMOOTH, x, b, 1, n_samples=3, **K),
    "expected, mean gradient": lambda x, b: pi.expected_gradients(
        SMOOTH, x, b, 1, n_samples=3, multiply_by_inputs=False, **K
    ),
    "gradient shap": lambda x, b: pi.gradient_shap(
        SMOOTH, x, b, 1, n_samples=3, stdevs=0.2, seed=1, **K
    ),
    "smooth": lambda x, b: pi.smooth_grad(SMOOTH, x + b, 1, n_samples=3, **K),
    "squared": lambda x, b: pi.smooth_grad(SMOOTH, x + b, 1, kind="squared", n_samples=3, **K),
    "variance": lambda x, b: pi.smooth_grad(SMOOTH, x + b, 1, kind="variance", n_samples=3, **K),
    "fft": lambda x, b: pi.cross_domain_integrated_gradients(SMOOTH, x, b, 1, n_steps=3, **K),
    "rfft": lambda x, b: pi.cross_domain_integrated_gradients(
        SMOOTH, x, b, 1, transform="rfft", n_steps=3, **K
    ),
    "dct": lambda x, b: pi.cross_domain_integrated_gradients(
        SMOOTH, x, b, 1, transform="dct", n_steps=3, **K
    ),
    "moreau": lambda x, b: pi.moreau_grad(SMOOTH, x + b, 1, lam=0.3, tol=1e-13, **K),
    "sparse moreau": lambda x, b: pi.moreau_grad(
        SMOOTH, x + b, 1, lam=0.3, sparsity=0.05, tol=1e-13, **K
    ),
    "group-sparse moreau": lambda x, b: pi.moreau_grad(
        SMOOTH, x + b, 1, lam=0.3, sparsity=0.02, groups=torch.tensor([0, 0, 1, 1, 2]), tol=1e-13,
        **K,
    ),
    "captum's names": lambda x, b: (
        pi.ExpectedGradients(SMOOTH, seed=1, **K).attribute(x, b, 3, 1)
        + pi.GradientShap(SMOOTH, seed=2, **K).attribute(x, b, 3, 0.1, 1)
        + pi.SmoothGrad(SMOOTH, seed=3, **K).attribute(x, 1, n_samples=2)
        + pi.IntegratedGradients(SMOOTH, **K).attribute(x, b, 1, n_steps=2)
    ),
    "full grad, inputs": lambda x, b: pi.full_grad(SMOOTH, x + b, 1, **K).input_part,
    "full grad, biases": lambda x, b: tuple(
        pi.full_grad(SMOOTH, x + b, 1, **K).bias_parts.values()
    ),
    "hessian": lambda x, b: pi.integrated_hessian(SMOOTH, x, b, 1, n_steps=2, **K),
    "layer": lambda x, b: pi.LayerIntegratedGradients(SMOOTH, SMOOTH[0], **K).attribute(
        x, b, 1, n_steps=3
    ),
    "saliency": lambda x, b: pi.Saliency(SMOOTH, **K).attribute(x + b, 1, abs=False),
    "noise tunnel": lambda x, b: pi.NoiseTunnel(pi.IntegratedGradients(SMOOTH, **K), seed=3)
    .attribute(x, "vargrad", nt_samples=3, stdevs=0.2, baselines=b, target=1, n_steps=2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    x, b = TWO.clone().requires_grad_(), (0.3 * TWO.flip(0)).requires_grad_()
    assert gradcheck(CASES[name], (x, b), atol=1e-6)


def test_gradcheck_of_norm_grad() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    for kind in ("conv1x1", "conv3x3", "bias", "scaling"):
        assert gradcheck(
            lambda x, kind=kind: pi.norm_grad(model, x, 1, layer=model[0], kind=kind, **K), x
        )


def test_gradcheck_of_igos_with_masks_held() -> None:
    """Score and objective of the masks found, in images and baselines; with no iteration to move
    them, finite differences hold the masks too."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(32, 2))
    model = model.double()
    x, b = (torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def run(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = pi.igos(model, x, b, 1, size=3, iterations=4, n_steps=3, l1=0.1, l2=0.1, **K)
        assert found.masks.min() < 1 and not found.masks.requires_grad
        fixed.append(found.masks)
        return found.score, found.objective

    fixed: list[Tensor] = []
    score, objective = run(x, b)
    grads = torch.autograd.grad(score.sum() + objective.sum(), (x, b, model[0].weight))

    up = nn.functional.interpolate(fixed[0], (6, 6), mode="bilinear", align_corners=True)
    held = [model(b + a * up * (x - b))[:, 1].sum() for a in (1 / 3, 2 / 3, 1.0)]
    both = held[-1] + sum(held) / 3
    expected = torch.autograd.grad(both, (x, b, model[0].weight))
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in CASES if "linear" not in n])
def test_gradients_reach_the_parameters(name: str) -> None:
    """Against a finite difference along the weights of the first layer."""
    weight = SMOOTH[0].weight
    direction = torch.randn_like(weight)

    def value() -> Tensor:
        got = CASES[name](TWO, 0.3 * TWO.flip(0))
        parts = got if isinstance(got, tuple) else (got,)
        return torch.stack([(p * torch.arange(1.0, p.numel() + 1).view(p.shape)).sum()
                            for p in parts]).sum()  # fmt: skip

    (grad,) = torch.autograd.grad(value(), weight)
    h = 1e-6
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * h * direction
            ends.append(float(value().detach()))
            weight -= sign * h * direction
    expected = (ends[0] - ends[1]) / (2 * h)
    assert abs(float((grad * direction).sum()) - expected) < 1e-5 * (1 + abs(expected))


def test_second_derivatives() -> None:
    x, b = TWO.clone().requires_grad_(), (0.3 * TWO.flip(0)).requires_grad_()
    for name in ("integrated", "expected"):
        assert torch.autograd.gradgradcheck(CASES[name], (x, b), atol=1e-5)


def test_a_prior_is_trained_down() -> None:
    """A few steps with each prior lower it; the task's loss alone does not ask for that."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    for kind in ("smoothness", "sparsity", "gini", "total_variation"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 2))
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        penalties = []
        for step in range(25):
            a = pi.expected_gradients(model, x, x, y, n_samples=2, seed=step, create_graph=True)
            penalty = pi.attribution_prior(a, kind=kind)
            penalties.append(float(penalty.detach()))
            optimiser.zero_grad()
            penalty.backward()
            optimiser.step()
        assert sum(penalties[-3:]) < sum(penalties[:3])


def test_ig_regularizer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Softplus(4), nn.Linear(32, 2))
    regularizer = pi.IGRegularizer(model, stdev=0.5)
    assert not list(regularizer.parameters())
    x, moved = torch.randn(2, 16, 8).unbind()
    assert float(regularizer(x, 1, x).detach()) < 1e-6
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    first = float(regularizer(x, 1, moved).detach())
    for _ in range(20):
        optimiser.zero_grad()
        regularizer(x, 1, moved).backward()
        optimiser.step()
    assert 0 <= float(regularizer(x, 1, moved).detach()) < 0.7 * first
