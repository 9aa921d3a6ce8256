"""Captum's classes and ours side by side, and its published test cases in our words."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers.path_cases import cnn, mlp
from sublimate import path_integral as pi
from torch import Tensor, nn

captum = pytest.importorskip(
    "captum.attr", reason="captum is not installed; pip install captum==0.9.0"
)
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor")
F64 = torch.float64
RELU = torch.nn.functional.relu


CLASSES = ["IntegratedGradients", "LayerIntegratedGradients", "GradientShap", "NoiseTunnel",
           "Saliency"]  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_of_captums_is_there(name: str) -> None:
    """And ``attribute_future`` is refused in Captum's words."""
    ours, theirs = getattr(pi, name), getattr(captum, name)
    public = {m for m in dir(theirs) if not m.startswith("_")}
    assert public - set(dir(ours)) == set()
    for method in public & {"compute_convergence_delta", "interpolate"}:
        mine, their = (inspect.signature(getattr(c, method)).parameters for c in (ours, theirs))
        assert {k: v.default for k, v in mine.items()} == {k: v.default for k, v in their.items()}
    if "attribute_future" in public:
        said = []
        for library in (pi, captum):
            arguments = (library.Saliency(mlp()),) if name == "NoiseTunnel" else (mlp(),)
            with pytest.raises(NotImplementedError) as refused:
                getattr(library, name)(*arguments).attribute_future()
            said.append(str(refused.value))
        assert said[0] == said[1]


def test_the_delta_of_given_attributions() -> None:
    model, x, b = mlp(), torch.randn(4, 5, dtype=F64), torch.randn(4, 5, dtype=F64)
    found = torch.randn(4, 5, dtype=F64)
    for name in ("Saliency", "IntegratedGradients", "GradientShap"):
        for start in (b, b[:1], 0.5, None):
            got, want = (
                getattr(library, name)(model).compute_convergence_delta(
                    found, start, x, [0, 1, 2, 0]
                )
                for library in (pi, captum)
            )
            torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
        for library in (pi, captum):
            with pytest.raises(AssertionError):
                getattr(library, name)(model).compute_convergence_delta(found[:3], b, x, 1)
            with pytest.raises(AssertionError):
                getattr(library, name)(model).compute_convergence_delta(found, b, x, [1, 2])


def test_the_delta_of_a_layer_behind_token_ids() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(9, 3)
    model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(12, 2), nn.Tanh())
    ids, start = torch.randint(0, 9, (3, 4)), torch.zeros(1, 4, dtype=torch.int64)
    deltas = []
    for library in (pi, captum):
        method = library.LayerIntegratedGradients(model, embedding)
        found, delta = method.attribute(ids, start, 1, return_convergence_delta=True)
        again = method.compute_convergence_delta(found, start, ids, 1)
        torch.testing.assert_close(again, delta, atol=1e-5, rtol=0)
        deltas.append(again)
    torch.testing.assert_close(*deltas, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "size", "mode"), [
    ((2, 3, 4), 9, "linear"), ((2, 3, 4, 5), (8, 7), "nearest"), ((1, 2, 3, 3), (6, 6), "bilinear"),
])  # fmt: skip
def test_layer_attributions_are_resized(shape: Any, size: Any, mode: str) -> None:
    x = torch.randn(shape)
    got, want = (
        library.LayerIntegratedGradients.interpolate(x, size, mode) for library in (pi, captum)
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_begin_with_captums(name: str) -> None:
    ours, theirs = getattr(pi, name), getattr(captum, name)
    for method in ("__init__", "attribute"):
        mine = inspect.signature(getattr(ours, method)).parameters
        their = inspect.signature(getattr(theirs, method)).parameters
        positional = [p for p in mine if mine[p].kind is not inspect.Parameter.KEYWORD_ONLY]
        if method == "attribute" or name not in ("NoiseTunnel",):
            assert positional == list(their), f"{name}.{method}"
        for p in set(their) & set(mine) - {"self"}:
            assert mine[p].default == their[p].default, f"{name}.{method}({p})"


# ----------------------------------------------------------------------------------- side by side


METHODS = ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [2, [0, 1, 2, 0], torch.tensor([0, 1, 2, 0])])
def test_integrated_gradients(method: str, target: Any) -> None:
    model, x = mlp(), torch.randn(4, 5, dtype=F64)
    for b in (None, 0.3, torch.randn(1, 5, dtype=F64), torch.randn(4, 5, dtype=F64)):
        options = {"method": method, "n_steps": 20, "return_convergence_delta": True}
        got, delta = pi.IntegratedGradients(model, compat_trapezoid=True).attribute(
            x, b, target, **options
        )
        want, their = captum.IntegratedGradients(model).attribute(x, b, target, **options)
        # Captum's nodes are float32.
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
        torch.testing.assert_close(delta, their, atol=1e-6, rtol=0)


def test_a_chunked_cnn() -> None:
    model, x = cnn(nn.GELU), torch.randn(4, 3, 12, 12)
    for options in ({}, {"internal_batch_size": 6}, {"multiply_by_inputs": False}):
        chunk = {k: v for k, v in options.items() if k == "internal_batch_size"}
        init = {k: v for k, v in options.items() if k == "multiply_by_inputs"}
        got = pi.IntegratedGradients(model, **init).attribute(x, target=1, **chunk)
        want = captum.IntegratedGradients(model, **init).attribute(x, target=1, **chunk)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_tuples_and_additional_arguments() -> None:
    def f(a: Tensor, b: Tensor, scale: Tensor, power: int) -> Tensor:
        return (a.sin().sum(1) * b.square().sum((1, 2)) * scale[:, 0]) ** power

    inputs = torch.randn(3, 4, dtype=F64), torch.randn(3, 2, 2, dtype=F64)
    baselines = (0, torch.randn(1, 2, 2, dtype=F64))
    args = (torch.rand(3, 1, dtype=F64), 2)
    options = {"additional_forward_args": args, "return_convergence_delta": True}
    got, delta = pi.IntegratedGradients(f).attribute(inputs, baselines, **options)
    want, their = captum.IntegratedGradients(f).attribute(inputs, baselines, **options)
    assert isinstance(got, tuple)
    for g, w in zip((*got, delta), (*want, their), strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-6)


def test_saliency() -> None:
    model, x = mlp(), torch.randn(4, 5, dtype=F64)
    for a in (True, False):
        got = pi.Saliency(model).attribute(x, [0, 1, 2, 0], abs=a)
        want = captum.Saliency(model).attribute(x, [0, 1, 2, 0], abs=a)
        torch.testing.assert_close(got, want, atol=1e-14, rtol=0)


def test_layers() -> None:
    model, x, b = mlp(), torch.randn(4, 5, dtype=F64), torch.randn(4, 5, dtype=F64)
    for layer, before in ((model[0], False), (model[1], True), (model[2], False)):
        options = {"return_convergence_delta": True, "attribute_to_layer_input": before}
        got, delta = pi.LayerIntegratedGradients(model, layer).attribute(x, b, 1, **options)
        want, their = captum.LayerIntegratedGradients(model, layer).attribute(x, b, 1, **options)
        want = want[0] if isinstance(want, tuple) else want
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
        torch.testing.assert_close(delta, their, atol=1e-6, rtol=0)


def test_several_layers_walk_together() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 4).double(), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x).tanh().sum(1) * self.right(x).sin().sum(1)

    model, x = Branches(), torch.randn(4, 5, dtype=F64)
    layers = [model.left, model.right]
    got = pi.LayerIntegratedGradients(model, layers).attribute(x, x / 3)
    want = captum.LayerIntegratedGradients(model, layers).attribute(x, x / 3)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=0)


def test_gradient_shap_has_captums_expectation() -> None:
    model, x, b = mlp(), torch.randn(2, 5, dtype=F64), torch.randn(3, 5, dtype=F64)
    options = {"n_samples": 4000, "stdevs": 0.2, "target": 1, "return_convergence_delta": True}
    got, delta = pi.GradientShap(model, seed=1).attribute(x, b, **options)
    want, their = captum.GradientShap(model).attribute(x, b, **options)
    assert delta.shape == their.shape
    assert float((got - want).abs().max()) < 0.03 * float(want.abs().max()) + 0.01
    assert float(delta.view(2, -1).mean(1).abs().max()) < 0.05
    again = pi.GradientShap(model, seed=1).attribute(x, b, **options)[0]
    assert torch.equal(got, again)


def test_torchs_seed_is_ours() -> None:
    """Captum's GradientShap draws from NumPy; two runs under one torch seed differ there."""
    model, x = mlp(), torch.randn(2, 5, dtype=F64)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(pi.GradientShap(model).attribute(x, x.flip(0), target=1))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_has_captums_expectation(kind: str) -> None:
    model, x = mlp(), torch.randn(2, 5, dtype=F64)
    options = {"nt_type": kind, "nt_samples": 4000, "stdevs": 0.3, "target": [0, 1]}
    for ours, theirs, extra in (
        (pi.Saliency, captum.Saliency, {"abs": False}),
        (pi.IntegratedGradients, captum.IntegratedGradients, {"n_steps": 3, "baselines": x / 2}),
    ):
        got = pi.NoiseTunnel(ours(model), seed=2).attribute(
            x, nt_samples_batch_size=1500, **options, **extra
        )
        want = captum.NoiseTunnel(theirs(model)).attribute(x, **options, **extra)
        assert float((got - want).abs().max()) < 0.1 * float(want.abs().max())
        foreign = pi.NoiseTunnel(theirs(model), seed=2).attribute(x, **options, **extra)
        torch.testing.assert_close(foreign, got, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["Saliency", "IntegratedGradients"])
def test_captums_noise_tunnel_around_ours(name: str) -> None:
    """It calls ``attribute.__wrapped__``, and then gives what it gives around Captum's class."""
    model, x = mlp(), torch.randn(2, 5, dtype=F64)
    found = []
    for library in (pi, captum):
        torch.manual_seed(5)
        method = captum.NoiseTunnel(getattr(library, name)(model))
        found.append(method.attribute(x, nt_samples=3, stdevs=0.2, target=1))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


# -------------------------------------------------- what Captum's own tests of these classes check


class Rectified(nn.Module):
    """relu(relu(x1) - 1 - relu(x2)): the example of the paper's appendix."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return RELU(RELU(a) - 1 - RELU(b))


class Product(nn.Module):
    """x0 * scale + x1 * x2: several inputs, some of them arguments."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor, scale: int = 1) -> Tensor:
        return (a * scale + b * c).sum(1)


def check_complete(model: Any, inputs: Any, baselines: Any, **options: Any) -> Any:
    """Completeness at 500 steps; that chunks and batches change nothing, at 60."""
    ig = pi.IntegratedGradients(model)
    got, delta = ig.attribute(
        inputs, baselines, n_steps=500, return_convergence_delta=True, **options
    )
    assert float(delta.abs().max()) < 2e-3
    whole = ig.attribute(inputs, baselines, n_steps=60, **options)
    small = ig.attribute(inputs, baselines, n_steps=60, internal_batch_size=1, **options)
    for g, s in zip(pi.arguments.as_tuple(whole), pi.arguments.as_tuple(small), strict=True):
        torch.testing.assert_close(g, s, atol=1e-5, rtol=1e-4)
    zeros = (0,) * len(inputs) if isinstance(inputs, tuple) else 0
    again = ig.compute_convergence_delta(
        got, baselines if baselines is not None else zeros, inputs,
        options.get("target"), options.get("additional_forward_args"),
    )  # fmt: skip
    torch.testing.assert_close(again, delta, atol=1e-5, rtol=1e-4)
    return got


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_rectified_example(method: str) -> None:
    """At (3, 1) from zero the output 1 is shared as 1.5 and -0.5."""
    a, b = torch.tensor([[3.0]]), torch.tensor([[1.0]])

    def f(a: Tensor, b: Tensor) -> Tensor:
        return Rectified()(a, b)[:, 0]

    got = pi.IntegratedGradients(f).attribute((a, b), (0, 0), method=method, n_steps=4000)
    torch.testing.assert_close(got[0], torch.tensor([[1.5]]), atol=2e-3, rtol=0)
    torch.testing.assert_close(got[1], torch.tensor([[-0.5]]), atol=2e-3, rtol=0)


def test_names_are_captums() -> None:
    for name in ("IntegratedGradients", "LayerIntegratedGradients", "GradientShap", "NoiseTunnel"):
        assert getattr(pi, name).get_name() == getattr(captum, name).get_name()


def test_multivariable_forms_of_baselines() -> None:
    a, b, c = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 3.0]]), torch.tensor([[0.5, 2.0]])
    rows = tuple(torch.cat((t, 2 * t, -t)) for t in (a, b, c))
    for baselines in ((0.0, 1, -1.0), (torch.zeros(1, 2), 0, torch.ones(3, 2)), None):
        check_complete(Product(), rows, baselines)
        check_complete(Product(), rows, baselines, additional_forward_args=(3,))


def test_batched_is_the_same_as_one_by_one() -> None:
    model = cnn(nn.ReLU)
    x = torch.rand(4, 3, 12, 12)
    target = torch.tensor([0, 3, 2, 1])
    together = check_complete(model, x[:2], None, target=target[:2])
    apart = [pi.IntegratedGradients(model).attribute(x[i : i + 1], target=int(target[i]),
                                                     n_steps=500) for i in range(2)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-3)


def test_several_dimensions_of_output() -> None:
    model = nn.Linear(4, 6)

    def f(x: Tensor) -> Tensor:
        return model(x).view(-1, 2, 3)

    x = torch.randn(3, 4)
    for target, column in (((1, 2), 5), ([(0, 1), (1, 0), (1, 2)], [1, 3, 5])):
        got = check_complete(f, x, None, target=target)
        torch.testing.assert_close(got, x * model.weight.detach()[column], atol=1e-5, rtol=1e-4)


def test_noise_tunnel_over_integrated_gradients_is_complete_on_average() -> None:
    x = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
    model = nn.Linear(2, 1)
    for kind in ("smoothgrad", "smoothgrad_sq", "vargrad"):
        got, delta = pi.NoiseTunnel(pi.IntegratedGradients(model)).attribute(
            x, kind, nt_samples=6, nt_samples_batch_size=4, stdevs=0.01, target=0,
            return_convergence_delta=True,
        )  # fmt: skip
        assert got.shape == x.shape and delta.shape == (12,)
        assert float(delta.abs().max()) < 1e-5
    drawn = pi.NoiseTunnel(pi.IntegratedGradients(model)).attribute(
        x, nt_samples=50, stdevs=0.0, baselines=torch.randn(7, 2), draw_baseline_from_distrib=True,
        target=0,
    )  # fmt: skip
    assert drawn.shape == x.shape


def test_gradient_shap_of_a_linear_model_is_exact_in_expectation() -> None:
    """w (x - mean of the baselines), also from a function that draws the baselines."""
    model = nn.Linear(3, 2)
    x, b = torch.randn(4, 3), torch.randn(20, 3)
    want = model.weight.detach()[1] * (x - b.mean(0))
    shap = pi.GradientShap(model, stratified=True, seed=0)
    for baselines in (b, lambda inputs: b):
        got = shap.attribute(x, baselines, n_samples=200, target=1)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    pair = pi.GradientShap(lambda a, b: (a + 2 * b).sum(1), seed=0)
    got, delta = pair.attribute(
        (x, x), (torch.zeros(1, 3), torch.ones(1, 3)), 10, (0.1, 0.2), return_convergence_delta=True
    )
    assert got[1].shape == (4, 3) and float(delta.abs().max()) < 1e-5


def test_expected_gradients_class_and_smooth_grad_class() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    got, delta = pi.ExpectedGradients(model, seed=0).attribute(
        x, x.flip(0), 300, 1, return_convergence_delta=True
    )
    assert got.shape == x.shape and float(delta.abs().max()) < 0.02
    smooth = pi.SmoothGrad(model, seed=4).attribute(x, 1, stdevs=0.0)
    torch.testing.assert_close(smooth, pi.Saliency(model).attribute(x, 1, abs=False))


def test_layer_values_that_are_tuples() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.sin(), x.square()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.pair(x)
            return (a * b).sum(1)

    model, x = Whole(), torch.randn(3, 4, dtype=F64)
    got, delta = pi.LayerIntegratedGradients(model, model.pair).attribute(
        x, return_convergence_delta=True
    )
    assert isinstance(got, tuple) and len(got) == 2 and float(delta.abs().max()) < 1e-12
    torch.testing.assert_close((got[0] + got[1]).sum(1), model(x))
