"""Every published check value, to 1e-10 in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.path_cases import (
    B1,
    EXAMPLES,
    REFERENCES,
    W1,
    A,
    B,
    V,
    W,
    X,
    linear,
    numbers,
    quadratic,
    softplus,
    tanh_mlp,
)
from sublimate import path_integral as pi
from torch import Tensor, nn


def near(got: Tensor, expected: object, tol: float = 1e-10) -> None:
    want = numbers(expected)
    assert got.dtype == torch.float64 and got.shape == want.shape
    assert float((got.detach() - want).abs().max()) < tol


@pytest.mark.parametrize(
    ("name", "f"), [("linear", linear), ("softplus", softplus), ("tanh_mlp_1hidden", tanh_mlp)]
)
def test_integrated_gradients(name: str, f: object) -> None:
    expected = EXAMPLES["IG"][name]
    got, delta = pi.integrated_gradients(f, X, B, return_convergence_delta=True)
    near(got[0], expected["ig"])
    assert abs(float(delta)) < 1e-12
    near(got.sum(), expected["delta_f"])
    exact, info = pi.integrated_gradients(f, X, B, tol=1e-11, return_info=True)
    near(exact[0], expected["ig"])
    assert bool(info.converged.all())


def test_captums_trapezoid_and_ours_on_a_linear_function() -> None:
    """Weights that sum to (n - 1) / n are off by 1/n on a linear function; ours are exact."""
    true = numbers(EXAMPLES["IG"]["linear"]["ig"])
    for n in (2, 8, 50):
        options = {"n_steps": n, "method": "riemann_trapezoid"}
        near(pi.integrated_gradients(linear, X, B, **options)[0], true.tolist())
        compat = pi.integrated_gradients(linear, X, B, compat_trapezoid=True, **options)[0]
        near(compat, (true * (n - 1) / n).tolist())


@pytest.mark.parametrize(
    "method", ["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]
)
def test_riemann_rules_are_the_sums_they_are_named_after(method: str) -> None:
    n, total = 8, torch.zeros(5, dtype=torch.float64)
    for k in range(n):
        a, w = {
            "riemann_left": (k / n, 1 / n),
            "riemann_right": ((k + 1) / n, 1 / n),
            "riemann_middle": ((k + 0.5) / n, 1 / n),
            "riemann_trapezoid": (k / (n - 1), (0.5 if k in (0, n - 1) else 1.0) / (n - 1)),
        }[method]
        z = (B + a * (X - B)).requires_grad_()
        total += w * torch.autograd.grad(tanh_mlp(z).sum(), z)[0][0]
    got = pi.integrated_gradients(tanh_mlp, X, B, n_steps=n, method=method)
    near(got[0], (total * (X - B)[0]).tolist(), 1e-14)


@pytest.mark.parametrize("n", [2, 3])
def test_gauss_legendre(n: int) -> None:
    nodes, weights = pi.quadrature.rule("gausslegendre", n)
    expected = EXAMPLES["Quadrature"][f"gauss_legendre_{n}"]
    near(torch.tensor(nodes), expected["nodes"], 1e-15)
    near(torch.tensor(weights), expected["weights"], 1e-15)


def test_expected_gradients() -> None:
    expected = EXAMPLES["EG"]["quadratic"]
    got, info = pi.expected_gradients(
        quadratic, X, REFERENCES, n_samples=8, method="gausslegendre", return_info=True
    )
    near(got[0], expected["eg"])
    near(info.variance[0], expected["var1"])
    assert abs(float(info.delta)) < 1e-12


def test_smooth_grad_by_chance() -> None:
    """4.5 standard errors around the expectation, for the mean and both second moments."""
    n = 40_000
    expected = EXAMPLES["SmoothGrad"]["quadratic"]
    options = {"stdev": 0.2, "n_samples": n, "seed": 5}
    mean, info = pi.smooth_grad(quadratic, X, return_info=True, **options)
    error = (mean[0] - numbers(expected["smoothgrad"])).abs()
    assert bool((error < 4.5 * info.standard_error[0]).all())
    variance = numbers(expected["vargrad"])
    near_variance = pi.smooth_grad(quadratic, X, kind="variance", **options)[0]
    assert bool(((near_variance - variance).abs() < 4.5 * variance * math.sqrt(2 / n)).all())
    squared = pi.smooth_grad(quadratic, X, kind="squared", **options)[0]
    assert float((squared - near_variance - mean[0].square()).abs().max()) < 1e-12

    got, info = pi.smooth_grad(lambda z: (z @ W).exp(), X, return_info=True, **options)
    error = (got[0] - numbers(EXAMPLES["SmoothGrad"]["exp"]["smoothgrad"])).abs()
    assert bool((error < 4.5 * info.standard_error[0]).all())


def test_moreau_grad() -> None:
    expected = EXAMPLES["MoreauGrad"]
    q = A.t() @ A
    cases = {
        "linear": lambda z: z @ W,
        "l1": lambda z: z.abs().sum(1),
        "quadratic_psd": lambda z: torch.einsum("bi,ij,bj->b", z, q, z) / 2,
    }
    for name, f in cases.items():
        got, info = pi.moreau_grad(f, X, lam=0.3, return_info=True)
        near(got[0], expected[name]["grad"])
        near(info.envelope[0], expected[name]["envelope"])
        assert bool(info.converged)


def test_sparse_and_group_sparse_moreau_grad() -> None:
    """Of a linear function: soft thresholding of its gradient, by entries or by groups."""
    eta = 0.6
    soft = W.sign() * (W.abs() - eta).clamp_min(0)
    near(pi.moreau_grad(lambda z: z @ W, X, lam=0.3, sparsity=eta)[0], soft.tolist())
    groups = torch.tensor([0, 0, 1, 1, 2])
    norms = torch.stack([W[groups == g].norm() for g in range(3)])
    shrunk = W * (1 - eta / norms).clamp_min(0)[groups]
    got = pi.moreau_grad(lambda z: z @ W, X, lam=0.3, sparsity=eta, groups=groups)
    near(got[0], shrunk.tolist())


def test_cross_domain() -> None:
    t = torch.arange(8, dtype=torch.float64)
    x = torch.sin(t + 1)[None]

    def f(z: Tensor) -> Tensor:
        return (torch.cos(t) * z**3).sum(1)

    expected = EXAMPLES["CrossDomainIG"]["cubic_fft_zero_baseline"]
    near(pi.cross_domain_integrated_gradients(f, x)[0], expected["full"])
    near(pi.cross_domain_integrated_gradients(f, x, transform="rfft")[0], expected["one_sided"])
    pair = (torch.fft.fft, lambda z: torch.fft.ifft(z).real)
    near(pi.cross_domain_integrated_gradients(f, x, transform=pair)[0], expected["full"])
    for transform in ("fft", "rfft", "dct"):
        got, delta = pi.cross_domain_integrated_gradients(
            f, x, 0.1, transform=transform, return_convergence_delta=True
        )
        near(got.sum(), float(f(x) - f(torch.full_like(x, 0.1))))
        assert abs(float(delta)) < 1e-12


def test_integrated_hessian() -> None:
    expected = EXAMPLES["IntegratedHessian"]["quadratic_zero_baseline"]
    got = pi.integrated_hessian(quadratic, X, n_steps=3)
    near(got[0], expected["ih"])
    near(got[0].sum(1), expected["ig"])


def relu_mlp() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1, bias=False)).double()
    model[0].weight.data, model[0].bias.data, model[2].weight.data = W1, B1, V[None]
    return model


def test_full_grad() -> None:
    expected = EXAMPLES["FullGrad"]["relu_mlp_1hidden"]
    found = pi.full_grad(relu_mlp(), X, 0)
    near(found.input_part[0], expected["input_part"])
    near(found.bias_parts["0"][0], expected["bias_part"])
    near(found.output[0], expected["f"])
    assert set(found.bias_parts) == {"0"} and abs(float(found.delta)) < 1e-12


@pytest.mark.parametrize("kind", ["conv1x1", "conv3x3", "bias", "scaling"])
def test_norm_grad(kind: str) -> None:
    c, h, w = (torch.arange(float(n), dtype=torch.float64) for n in (2, 3, 3))
    c, h = c[:, None, None], h[:, None]
    activation, gradient = torch.sin(1 + c + 2 * h + 3 * w)[None], torch.cos(2 * c + h - w)[None]
    got = pi.norm_grad_maps(activation, gradient, kind)
    near(got[0], EXAMPLES["NormGrad"]["maps_3x3"][kind])


def test_mask_path() -> None:
    expected = EXAMPLES["IGOS"]["mask_path"]
    r, q = torch.arange(5, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)
    image, base = torch.sin(r + q / 2)[None, None], (torch.cos(r - q) / 4)[None, None]
    weight = torch.cos(r + 2 * q)
    i, j = torch.arange(3, dtype=torch.float64)[:, None], torch.arange(3, dtype=torch.float64)
    mask = (0.5 + torch.sin(1 + i + 2 * j) / 3)[None, None]
    alpha = torch.arange(1, 5, dtype=torch.float64) / 4
    near(pi.reference.upsample(mask, 5, 5)[0, 0], expected["up"])
    z = pi.reference.mask_points(image, base, mask, alpha, None, None, None, 0, torch.float64)
    near((weight * z.square()).sum((1, 2, 3, 4)).mean(), expected["loss"])
    grad = pi.reference.mask_grad(2 * weight * z / 4, image, base, alpha, 3, 3)
    near(grad[0, 0], expected["grad_mask"])
    variation, area = pi.reference.mask_penalty(mask)
    near(variation[0], expected["tv2"])
    near(area[0], expected["area"])


def test_prior() -> None:
    expected = EXAMPLES["Prior"]["ig_l2_softplus"]
    w = W.clone().requires_grad_()
    got = pi.integrated_gradients(
        lambda z: nn.functional.softplus(z @ w + 0.25), X, B, create_graph=True
    )
    loss = pi.attribution_prior(got, kind=lambda a: a.square().sum(1))
    loss.backward()
    near(loss, expected["loss"])
    near(w.grad, expected["grad_w"])
