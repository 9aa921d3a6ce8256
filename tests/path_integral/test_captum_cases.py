"""What Captum's published tests of these classes check beyond ``test_captum.py``, in our words.

Each case is about behaviour that a program written for Captum may rest on: one-dimensional inputs,
lists among the arguments, baselines from functions, gradients that users hold. Layers are in
``test_captum_layers.py``.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.path_cases import Layers
from sublimate import path_integral as pi
from torch import Tensor, nn

captum = pytest.importorskip(
    "captum.attr", reason="captum is not installed; pip install captum==0.9.0"
)
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward")
F64 = torch.float64
METHODS = ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]
KINDS = ["smoothgrad", "smoothgrad_sq", "vargrad"]
RELU = nn.functional.relu


def kinked(a: Tensor, b: Tensor) -> Tensor:
    """relu(relu(a) - 1 - relu(b))."""
    return RELU(RELU(a) - 1 - RELU(b))


def kinked_in_turns(a: Tensor, b: Tensor) -> Tensor:
    """The same function, computed otherwise."""
    first = RELU(a)
    return RELU(RELU(first - 1) - RELU(b))


def bent(x: Tensor) -> Tensor:
    """1 - relu(1 - x) of one number."""
    return 1 - RELU(1 - x)


# ---------------------------------------------------------------------------- integrated gradients


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_one_dimension(method: str) -> None:
    """A vector is a batch of numbers; completeness for positive, zero and negative ones."""
    for x, start in ((1.0, torch.zeros(1)), (0.0, torch.zeros(1)), (-1.0, 1e-5)):
        given = torch.tensor([x], requires_grad=True)
        got, delta = pi.IntegratedGradients(bent).attribute(
            given, start, n_steps=400, method=method, return_convergence_delta=True
        )
        want = bent(given.detach()) - bent(torch.as_tensor(start))
        assert got.shape == (1,) and delta.shape == (1,) and given.grad is None
        torch.testing.assert_close(got, want, atol=4e-3, rtol=0)
        assert float(delta.abs().max()) < 4e-3


@pytest.mark.parametrize("multiply", [True, False])
def test_two_forms_of_one_function_are_attributed_alike(multiply: bool) -> None:
    pair = torch.tensor([3.0]), torch.tensor([1.0], requires_grad=True)
    found = [
        pi.IntegratedGradients(f, multiply_by_inputs=multiply).attribute(
            pair, (torch.zeros(1), torch.zeros(1)), method="riemann_right", n_steps=2000
        )
        for f in (kinked, kinked_in_turns)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    want = (1.5, -0.5) if multiply else (0.5, -0.5)
    for value, expected in zip(found[0], want, strict=True):
        assert abs(float(value) - expected) < 2e-3


@pytest.mark.parametrize(("kind", "method"), list(zip(itertools.cycle(KINDS), METHODS)))
@pytest.mark.parametrize("at_once", [None, 1, 2, 3])
def test_copies_at_once_change_nothing(kind: str, method: str, at_once: int | None) -> None:
    """Of several inputs and of one; each copy's delta is small and in its place."""
    model = Layers()
    x = torch.tensor([[1.5, 2.1, 1.9], [0.5, 0.0, 0.7], [1.5, 2.1, 1.1]])
    for inputs in (x, (x, x.flip(0) / 2)):
        found = []
        for size in (None, at_once):
            tunnel = pi.NoiseTunnel(pi.IntegratedGradients(model), seed=3)
            found.append(
                tunnel.attribute(
                    inputs,
                    kind,
                    nt_samples=5,
                    nt_samples_batch_size=size,
                    stdevs=0.1,
                    target=0,
                    n_steps=60,
                    method=method,
                    return_convergence_delta=True,
                )
            )
        for (got, delta), (again, other) in itertools.pairwise(found):
            assert delta.shape == (15,)
            torch.testing.assert_close(delta, other, atol=1e-5, rtol=0)
            # smoothgrad_sq and vargrad subtract numbers of the size of the squares
            for a, b in zip(pi.arguments.as_tuple(got), pi.arguments.as_tuple(again), strict=True):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_deltas_stay_with_their_samples() -> None:
    """The left rule of a cube is off differently for each sample."""
    x = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [2.5, -1.0]])
    tunnel = pi.NoiseTunnel(pi.IntegratedGradients(lambda z: (z**3).sum(1)))
    options: dict[str, Any] = {
        "nt_samples": 4, "stdevs": 0.0, "n_steps": 2, "method": "riemann_left",
        "return_convergence_delta": True,
    }  # fmt: skip
    _, want = tunnel.attribute(x, **options)
    rows = want.view(3, 4)
    assert bool((rows == rows[:, :1]).all()) and len(set(rows[:, 0].tolist())) == 3
    for at_once in (1, 2, 3):
        _, delta = tunnel.attribute(x, nt_samples_batch_size=at_once, **options)
        assert torch.equal(delta, want)


def test_without_the_factor_through_a_tunnel() -> None:
    model, x = Layers(), torch.tensor([[1.5, 2.0, 1.3], [0.5, 0.1, 2.3]], requires_grad=True)
    found = [
        pi.NoiseTunnel(pi.IntegratedGradients(model, multiply_by_inputs=m)).attribute(
            x, nt_samples=5, stdevs=0.0, target=0, n_steps=200
        )
        for m in (False, True)
    ]
    torch.testing.assert_close(found[0] * x.detach(), found[1], atol=1e-5, rtol=1e-5)
    for m in (True, False):
        tunnel = pi.NoiseTunnel(pi.IntegratedGradients(model, multiply_by_inputs=m))
        assert tunnel.multiplies_by_inputs is m and tunnel.has_convergence_delta()


@pytest.mark.parametrize("extra", [
    (torch.arange(1.0, 7.0).reshape(2, 3), 1), ([2, 3], 1), (np.float64(2.0), 0),
])  # fmt: skip
def test_lists_and_numbers_among_the_arguments(extra: Any) -> None:
    """What is no tensor goes to the function as it is."""

    def f(a: Tensor, b: Tensor, scale: Any, power: int) -> Tensor:
        factor = scale[0] if isinstance(scale, list) else scale
        return ((RELU(a - 1) * factor - b * b / 9) + power).sum(1)

    pair = tuple(
        torch.tensor(v, dtype=F64, requires_grad=True)
        for v in ([[1.5, 2.0, 34.3], [3.4, 1.2, 2.0]], [[3.0, 3.5, 23.2], [2.3, 1.2, 0.3]])
    )
    for start in ((0.0, 1e-5), (torch.zeros(1, 3, dtype=F64), 1e-5), (torch.zeros(2, 3), 0.0)):
        got, want = (
            library.IntegratedGradients(f).attribute(
                pair, start, additional_forward_args=extra, return_convergence_delta=True
            )
            for library in (pi, captum)
        )
        for g, w in zip((*got[0], got[1]), (*want[0], want[1]), strict=True):
            torch.testing.assert_close(g.double(), w.double(), atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Softmax(1), nn.LogSoftmax(1)])
def test_classifiers_with_a_last_function(kind: str | None, last: nn.Module) -> None:
    """Completeness at 200 points for a tensor target of one number; small noise is no noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4), last).double()
    x, b = torch.arange(12, dtype=F64).view(2, 6) / 6, torch.arange(6, dtype=F64).view(1, 6) / 20
    ig = pi.IntegratedGradients(model)
    plain, delta = ig.attribute(x, b, torch.tensor(1), n_steps=200, return_convergence_delta=True)
    assert float(delta.abs().max()) < 5e-3
    if kind is None:
        want = captum.IntegratedGradients(model).attribute(x, b, torch.tensor(1), n_steps=200)
        torch.testing.assert_close(plain, want, atol=1e-5, rtol=0)
        return
    noisy = pi.NoiseTunnel(ig).attribute(
        x, kind, nt_samples=4, stdevs=1e-5, baselines=b, target=torch.tensor(1), n_steps=200
    )
    expected = {"smoothgrad": plain, "smoothgrad_sq": plain**2, "vargrad": 0 * plain}[kind]
    torch.testing.assert_close(noisy, expected, atol=1e-3, rtol=1e-2)


# ----------------------------------------------------------------------------------- gradient SHAP


def test_shap_of_several_inputs_is_integrated_gradients() -> None:
    model = nn.Linear(7, 1)
    x, y = torch.ones(10, 3), torch.ones(10, 4)

    def f(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = model(torch.cat((a, b), 1))[:, 0]
        return found

    zeros = torch.zeros(20, 3), torch.zeros(20, 4)
    got, delta = pi.GradientShap(f).attribute(
        (x, y), zeros, n_samples=50, return_convergence_delta=True
    )
    want = pi.IntegratedGradients(f).attribute((x, y))
    assert delta.shape == (500,) and float(delta.abs().max()) < 1e-5
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)
    near = torch.ones(20, 3) + 2e-5, torch.ones(20, 4) + 2e-5
    found, bare = (
        pi.GradientShap(f, multiply_by_inputs=m).attribute((x, y), near, n_samples=50)
        for m in (True, False)
    )
    for a, factor, b, z in zip(found, bare, near, (x, y), strict=True):
        torch.testing.assert_close(factor * (z - b[:1]), a, atol=1e-9, rtol=1e-4)


def test_shap_baselines_from_functions() -> None:
    """Of nothing or of the inputs; one that gives an array is refused."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10), nn.Softmax(1))
    x = torch.arange(0.0, 80.0).view(2, 40) / 80
    rows = torch.arange(0.0, 160.0).view(4, 40) / 160
    shap = pi.GradientShap(model, seed=0)
    options: dict[str, Any] = {
        "target": torch.tensor(1), "n_samples": 10, "stdevs": 1e-5,
        "return_convergence_delta": True,
    }  # fmt: skip
    for baselines in (rows, lambda: rows, lambda inputs: inputs / 2):
        got, delta = shap.attribute(x, baselines, **options)
        assert got.shape == x.shape and delta.shape == (20,) and bool(got.isfinite().all())
    with pytest.raises(TypeError, match="ndarray"):  # Captum: AssertionError
        shap.attribute(x, lambda: rows.numpy(), **options)
    with pytest.raises(AssertionError):  # four ends for two attributions
        shap.compute_convergence_delta(got, x, rows, target=torch.tensor(1))


def test_shap_of_a_kinked_function_is_integrated_gradients() -> None:
    pair = torch.tensor([[3.0]]), torch.tensor([[1.0]], requires_grad=True)
    zeros = torch.zeros(1, 1), torch.zeros(1, 1)

    def f(a: Tensor, b: Tensor) -> Tensor:
        return kinked(a, b)[:, 0]

    got = pi.GradientShap(f, seed=1).attribute(pair, zeros, n_samples=20000)
    # A share of 1/2 of 20,000 draws: standard error 1.5 * 0.007; five of them.
    for value, expected in zip(got, (1.5, -0.5), strict=True):
        assert abs(float(value) - expected) < 0.055


# ---------------------------------------------------------------------------------------- saliency


def test_saliency_leaves_the_users_gradient() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    x.grad = torch.randn_like(x)
    kept = x.grad.clone()
    model = nn.Linear(5, 4)
    got = pi.Saliency(model).attribute(x, torch.tensor(2))
    torch.testing.assert_close(got, model.weight.detach()[2].abs().expand(3, 5))
    assert torch.equal(x.grad, kept) and x.requires_grad and model.weight.grad is None
    assert not pi.Saliency(model).multiplies_by_inputs


@pytest.mark.parametrize("kind", KINDS)
def test_saliency_of_several_inputs_in_batches_of_copies(kind: str) -> None:
    a = torch.tensor([[1.5, 2.0, 3.3], [-1.0, 0.2, 0.4]], requires_grad=True)
    b = torch.tensor([[3.0, 3.5, 2.2], [0.1, -2.0, 1.0]], requires_grad=True)

    def f(a: Tensor, b: Tensor, power: int) -> Tensor:
        return ((a + 2 * b) ** power).sum(1)

    plain = pi.Saliency(f).attribute((a, b), additional_forward_args=2)
    for got, want in zip(plain, (2 * (a + 2 * b), 4 * (a + 2 * b)), strict=True):
        torch.testing.assert_close(got, want.detach().abs())
    tunnel = pi.NoiseTunnel(pi.Saliency(f), seed=9)
    whole = tunnel.attribute((a, b), kind, 10, stdevs=2e-3, additional_forward_args=2)
    for size in (1, 2, 3, 6):
        parts = tunnel.attribute((a, b), kind, 10, size, 2e-3, additional_forward_args=2)
        for got, want in zip(parts, whole, strict=True):
            torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-5)


# --------------------------------------------------------------------------- targets, other callers


def test_a_scripted_module_is_a_function_like_any_other() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(2, 3)
    traced = torch.jit.trace(model, x)
    for target in (0, [1, 0], torch.tensor([0, 1])):
        got, want = (pi.IntegratedGradients(m).attribute(x, target=target) for m in (traced, model))
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("target", [(1, 0, 1), [(1, 0, 1), (0, 1, 2)], [(0, 0, 0), (1, 1, 2)]])
def test_targets_with_several_indices(target: Any) -> None:
    model = nn.Linear(4, 12)

    def f(x: Tensor) -> Tensor:
        return model(x).tanh().view(-1, 2, 2, 3)

    x = torch.randn(2, 4)
    got, want = (
        library.IntegratedGradients(f).attribute(x, target=target) for library in (pi, captum)
    )
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    got, want = (library.Saliency(f).attribute(x, target=target) for library in (pi, captum))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("wrong", [7, -8, [0, 9], [0], (0, 0)])
def test_targets_out_of_range(wrong: Any) -> None:
    for method in (pi.IntegratedGradients, pi.Saliency):
        with pytest.raises((AssertionError, IndexError, ValueError)):
            method(nn.Linear(3, 4)).attribute(torch.randn(2, 3), target=wrong)
