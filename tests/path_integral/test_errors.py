"""Bad input: the exception, and the argument it names, before any long work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.path_cases import B, X, mlp
from sublimate import path_integral as pi
from torch import Tensor

IG = pi.integrated_gradients
CROSS = pi.cross_domain_integrated_gradients
TUNNEL = pi.NoiseTunnel(pi.Saliency(mlp()))
LINEAR = torch.nn.Linear(5, 3).double()
LAYER = pi.LayerIntegratedGradients(LINEAR, LINEAR)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_steps": 0}, ValueError, "n_steps: expected an int from 1"),
        ({"n_steps": 2.5}, TypeError, "n_steps: expected an int"),
        ({"method": "simpson"}, ValueError, "method: expected one of 'gausslegendre'"),
        (
            {"n_steps": 1, "method": "riemann_trapezoid"},
            ValueError,
            "n_steps: expected an int >= 2",
        ),
        ({"baselines": torch.zeros(1, 4)}, ValueError, r"baselines: .*shape \(1, 5\).*\(1, 4\)"),
        ({"baselines": torch.zeros(3, 5)}, ValueError, "baselines: expected a number or shape"),
        ({"baselines": "zero"}, TypeError, "baselines: expected a tensor or a number"),
        ({"baselines": (0, 0)}, ValueError, "baselines: expected one for each of 1 inputs"),
        ({"target": 3}, ValueError, "target: expected indices below 3"),
        ({"target": -4}, ValueError, "target: expected indices below 3"),
        ({"target": None}, ValueError, r"target: expected an index into the output of shape"),
        ({"target": (0, 1)}, ValueError, "target: expected 1 indices"),
        ({"target": [0, 1]}, ValueError, "target: expected a list of 1 targets"),
        ({"target": 1.0}, TypeError, "target: expected an int"),
        ({"target": torch.tensor([1.0])}, TypeError, "target: expected an integer tensor"),
        ({"target": "best"}, ValueError, "target: expected 'all'"),
        ({"tol": 0.0}, ValueError, "tol: expected a number > 0"),
        ({"tol": 1e-20}, ValueError, "tol: expected at least .* rounding of float64"),
        ({"tol": 0.1, "max_steps": 5}, ValueError, "max_steps: expected an int from 9"),
        ({"memory_budget": 0}, ValueError, "memory_budget: expected an int >= 1"),
        ({"internal_batch_size": "2"}, TypeError, "internal_batch_size: expected None or an int"),
        ({"backend": "quick"}, ValueError, "backend: expected one of"),
        ({"shard": "both"}, ValueError, "shard: expected one of"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    calls = []
    model = mlp()

    def f(z: Tensor) -> Tensor:
        calls.append(len(z))
        return model(z)

    options = {"target": 1} | options
    with pytest.raises(error, match=message):
        IG(f, X, **options)
    assert len(calls) <= 1, "the model ran more than once"


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("x", TypeError, "inputs: expected a torch.Tensor, got str"),
        (torch.zeros(2, 5, dtype=torch.int64), TypeError, "token ids use LayerIntegratedGradients"),
        (torch.tensor(1.0), ValueError, "inputs: expected a batch dimension"),
        ((X, torch.zeros(2, 5)), ValueError, r"inputs\[1\]: expected the batch size"),
        ((), ValueError, "inputs: expected a tensor or a tuple"),
    ],
)
def test_inputs(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        IG(mlp(), inputs, target=1)


def test_forward() -> None:
    with pytest.raises(TypeError, match="forward: expected a callable"):
        IG(3, X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"forward: .*returns a torch.Tensor, got list"):
        IG(lambda z: [z.sum(1)], X)
    with pytest.raises(TypeError, match="returns floating numbers"):
        IG(lambda z: z.sum(1).long(), X)
    with pytest.raises(RuntimeError, match="without a gradient path"):
        IG(lambda z: z.detach().sum(1), X)
    parameter = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="depends on none of them"):
        IG(lambda z: parameter * z.detach().sum(1), X)
    with pytest.raises(ValueError, match="forward: expected 50 rows of output"):
        IG(lambda z: torch.cat((z, z)), X, target=1)


def test_nan_is_reported_with_its_path_point() -> None:
    def f(z: Tensor) -> Tensor:
        return (0.5 - z[:, 0]).sqrt()

    x = torch.tensor([[0.4], [1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"NaN at path point 5 \(alpha = 0.55\) of sample 1"):
        IG(f, x, n_steps=10, method="riemann_middle")
    with pytest.raises(ValueError, match=r"NaN at path point 5 \(alpha = 0.55\) of sample 1"):
        IG(f, x, n_steps=10, method="riemann_middle", internal_batch_size=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pi.expected_gradients(mlp(), X, torch.zeros(3, 4), 1), ValueError, "references"),
        (lambda: pi.expected_gradients(mlp(), X, B, 1, n_samples=0), ValueError, "n_samples"),
        (lambda: pi.expected_gradients(mlp(), X, B, 1, seed=-1), ValueError, "seed"),
        (lambda: pi.smooth_grad(mlp(), X, 1, kind="max"), ValueError, "kind"),
        (lambda: pi.smooth_grad(mlp(), X, 1, stdev=-1.0), ValueError, "stdev"),
        (lambda: pi.smooth_grad(mlp(), X, 1, sample_ids=[1]), TypeError, "sample_ids"),
        (lambda: pi.cross_domain_integrated_gradients(mlp(), X, transform="wave"), ValueError,
         "transform"),
        (lambda: CROSS(mlp(), X, target=1, dim=0), ValueError, "dim"),
        (lambda: pi.moreau_grad(mlp(), X, 1, lam=0.0), ValueError, "lam"),
        (lambda: pi.moreau_grad(mlp(), X, 1, sparsity=0.1, groups=torch.zeros(4).long()),
         ValueError, "groups"),
        (lambda: pi.full_grad(lambda z: z.sum(1), X), ValueError, "forward"),
        (lambda: pi.norm_grad(mlp(), X, 1, layer=torch.nn.Linear(1, 1)), ValueError, "layer"),
        (lambda: pi.igos(mlp(), X), ValueError, "inputs"),
        (lambda: pi.integrated_hessian(mlp(), (X,)), TypeError, "inputs"),
        (lambda: pi.attribution_prior(X, kind="nice"), ValueError, "kind"),
        (lambda: pi.attribution_prior(X, backend="nice"), ValueError, "backend"),
        (lambda: pi.attribution_prior(X, kind=lambda a: None), TypeError, "kind"),
        (lambda: pi.layer_integrated_gradients(3, LINEAR, X), TypeError, "forward"),
        (lambda: LAYER.attribute(X, target=1, grad_kwargs=[1]), TypeError, "grad_kwargs"),
        (lambda: LAYER.attribute(X, target=1, grad_kwargs={"create_graph": True}), ValueError,
         "grad_kwargs"),
        (lambda: LAYER.attribute(X, target=1, return_convergence_delta=1), TypeError,
         "return_convergence_delta"),
        (lambda: TUNNEL.attribute(X, "meangrad"), ValueError, "nt_type"),
        (lambda: pi.LayerIntegratedGradients(mlp(), torch.nn.Linear(1, 1)).attribute(X, target=1),
         ValueError, "layer"),
    ],
)  # fmt: skip
def test_other_estimators(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}: expected"):
        call()


def test_large_ints_are_numbers() -> None:
    assert pi.integrated_gradients(mlp(), X, target=1, tol=2**70).shape == X.shape
    assert pi.moreau_grad(mlp(), X, 1, lam=1, tol=2**70, sparsity=2**70).shape == X.shape


def test_captums_assertions_are_caught_as_such() -> None:
    with pytest.raises(AssertionError):
        pi.IntegratedGradients(mlp()).attribute(X, torch.zeros(3, 5), 1)
