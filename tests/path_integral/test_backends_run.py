"""A backend that is named runs its own kernels, in every public function that has any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import lanes
from helpers.path_cases import mlp
from sublimate import path_integral as pi
from torch import Tensor, nn

X, Y = torch.linspace(-1, 1, 10).view(2, 5), torch.linspace(1, 0, 15).view(3, 5)
PICTURES = torch.linspace(0, 1, 2 * 3 * 64).view(2, 3, 8, 8)


def picture_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).eval()


MODEL, PICTURE_MODEL = mlp(torch.float32), picture_model()
LAYER = MODEL[0]
#: name -> the call with a backend.
CALLS: dict[str, Callable[[str], Any]] = {
    "integrated_gradients": lambda b: pi.integrated_gradients(MODEL, X, target=1, backend=b),
    "integrated_gradients, opaque": lambda b: pi.integrated_gradients(
        lambda x: MODEL(x), X, target=1, backend=b
    ),
    "integrated_gradients, tol": lambda b: pi.integrated_gradients(
        MODEL, X, target=1, tol=1e-2, backend=b
    ),
    "integrated_gradients, create_graph": lambda b: pi.integrated_gradients(
        MODEL, X, target=1, create_graph=True, backend=b
    ),
    "expected_gradients": lambda b: pi.expected_gradients(
        MODEL, X, Y, 1, n_samples=6, seed=0, backend=b
    ),
    "smooth_grad": lambda b: pi.smooth_grad(MODEL, X, 1, n_samples=4, seed=0, backend=b),
    "cross_domain": lambda b: pi.cross_domain_integrated_gradients(MODEL, X, target=1, backend=b),
    "igos": lambda b: pi.igos(
        PICTURE_MODEL, PICTURES, target=1, size=4, iterations=2, backend=b
    ).masks,
    "IntegratedGradients": lambda b: pi.IntegratedGradients(MODEL, backend=b).attribute(
        X, target=1
    ),
    "LayerIntegratedGradients": lambda b: pi.LayerIntegratedGradients(
        MODEL, LAYER, backend=b
    ).attribute(X, target=1),
    "ExpectedGradients": lambda b: pi.ExpectedGradients(MODEL, seed=0, backend=b).attribute(
        X, Y, 6, 1
    ),
    "GradientShap": lambda b: pi.GradientShap(MODEL, seed=0, backend=b).attribute(
        X, Y, target=1
    ),
    "SmoothGrad": lambda b: pi.SmoothGrad(MODEL, seed=0, backend=b).attribute(X, 1),
    "NoiseTunnel": lambda b: pi.NoiseTunnel(
        pi.Saliency(MODEL), seed=0, backend=b
    ).attribute(X, target=1),
}  # fmt: skip


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (tuple, list)) else []


@pytest.mark.parametrize("name", CALLS)
def test_a_named_backend_runs_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS[name]
    with lanes.counted_calls(monkeypatch) as counts:
        got = call("cpu")
        assert counts["cpu"] > 0 and counts["cuda"] == counts["triton"] == 0, dict(counts)
        counts.clear()
        want = call("reference")
        assert not counts.total(), dict(counts)
    for g, w in zip(tensors(got), tensors(want), strict=True):
        torch.testing.assert_close(g, w, atol=1e-4, rtol=1e-3)


def test_what_is_chosen_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with lanes.counted_calls(monkeypatch) as counts:
        pi.integrated_gradients(MODEL, X, target=1)
    assert counts["cpu"] > 0 and counts["cuda"] == counts["triton"] == 0, dict(counts)
