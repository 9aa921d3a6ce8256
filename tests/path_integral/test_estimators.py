"""Identities, chunks, tolerance, seeds: what holds for any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.path_cases import REFERENCES, B, X, cnn, mlp
from hypothesis import given
from hypothesis import strategies as st
from sublimate import path_integral as pi
from sublimate.path_integral import chunks
from torch import Tensor, nn

BATCH = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ------------------------------------------------------------------------------------ identities


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_gauss_legendre_is_complete_for_polynomials_of_degree_below_2n(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(2 * n, 3, generator=generator, dtype=torch.float64)
    x, b = torch.rand(2, 4, 3, generator=generator, dtype=torch.float64).unbind()

    def f(z: Tensor) -> Tensor:
        return sum((z @ w[k]) ** k / (k + 1) for k in range(2 * n))  # type: ignore[return-value]

    _, delta = pi.integrated_gradients(f, x, b, n_steps=n, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-9 * (1 + float(f(x).abs().max() + f(b).abs().max()))


def test_attributions_pull_back_through_a_linear_map() -> None:
    """IG of f(P x) is P' applied to gradients: sums over groups of columns agree."""
    model = mlp()
    p = torch.randn(5, 7, dtype=torch.float64)
    y = torch.randn(3, 7, dtype=torch.float64)
    outer = pi.integrated_gradients(lambda z: model(z @ p.t()), y, target=1,
                                    multiply_by_inputs=False)  # fmt: skip
    inner = pi.integrated_gradients(model, y @ p.t(), target=1, multiply_by_inputs=False)
    torch.testing.assert_close(outer, inner @ p, atol=1e-13, rtol=0)


def test_rows_of_the_integrated_hessian_are_integrated_gradients() -> None:
    model = mlp(act=nn.Tanh)
    got = pi.integrated_hessian(model, X, B, 1, n_steps=40)
    want = pi.integrated_gradients(model, X, B, 1, n_steps=60)
    torch.testing.assert_close(got.sum(2), want, atol=1e-11, rtol=0)
    torch.testing.assert_close(got, got.transpose(1, 2), atol=1e-11, rtol=0)


def test_full_grad_is_complete_for_modules_of_any_kind() -> None:
    model = cnn(nn.GELU).double()
    found = pi.full_grad(model, torch.randn(2, 3, 12, 12, dtype=torch.float64), 1)
    assert float(found.delta.abs().max()) < 1e-12
    assert {"0", "1", "2", "9", "10"} <= set(found.bias_parts)
    assert found.map((12, 12)).shape == (2, 12, 12)


def test_cross_domain_sums_are_those_over_time() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    b = torch.randn(1, 2, 7, dtype=torch.float64)
    over_time = pi.integrated_gradients(model, x, b, 1).sum((1, 2))
    for transform in ("fft", "rfft", "dct"):
        got = pi.cross_domain_integrated_gradients(model, x, b, 1, transform=transform)
        torch.testing.assert_close(got.sum((1, 2)), over_time, atol=1e-12, rtol=0)
    pair = (torch.fft.fft, lambda z: torch.fft.ifft(z).real)
    wanted = pi.cross_domain_integrated_gradients(model, x, b, 1)
    paired = pi.cross_domain_integrated_gradients(model, x, b, 1, transform=pair)
    torch.testing.assert_close(paired, wanted, atol=1e-12, rtol=0)


# ------------------------------------------------------------------- chunks, batches and targets


ESTIMATORS: dict[str, Any] = {
    "integrated": lambda x, **k: pi.integrated_gradients(mlp(), x, B, 1, n_steps=13, **k),
    "tolerance": lambda x, **k: pi.integrated_gradients(mlp(), x, B, 1, tol=1e-8, **k),
    "expected": lambda x, **k: pi.expected_gradients(mlp(), x, REFERENCES, 1, n_samples=9, **k),
    "smooth": lambda x, **k: pi.smooth_grad(mlp(), x, 1, n_samples=9, stdev=0.3, **k),
    "squared": lambda x, **k: pi.smooth_grad(mlp(), x, 1, kind="squared", n_samples=9, **k),
    "cross domain": lambda x, **k: pi.cross_domain_integrated_gradients(mlp(), x, B, 1, **k),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_answer_does_not_depend_on_chunks(name: str) -> None:
    run = ESTIMATORS[name]
    whole = run(BATCH)
    for options in ({"internal_batch_size": 1}, {"internal_batch_size": 4},
                    {"internal_batch_size": 17}, {"memory_budget": 2000}):  # fmt: skip
        torch.testing.assert_close(run(BATCH, **options), whole, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("name", ["expected", "smooth"])
def test_draws_belong_to_samples(name: str) -> None:
    run = ESTIMATORS[name]
    whole = run(BATCH)
    ids = torch.tensor([4, 0, 3])
    torch.testing.assert_close(run(BATCH[ids], sample_ids=ids), whole[ids], atol=1e-14, rtol=1e-12)
    assert not torch.allclose(run(BATCH[ids]), whole[ids])


def test_noise_is_the_same_bit_for_bit_in_any_chunks() -> None:
    seen: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return z.square().sum(1)

    clouds = []
    for rows in (None, 1, 5, 12):
        seen.clear()
        pi.smooth_grad(f, BATCH, n_samples=7, internal_batch_size=rows)
        flat = torch.cat(seen)
        clouds.append(flat[flat[:, 0].argsort()])
    for cloud in clouds[1:]:
        assert torch.equal(cloud, clouds[0])


def test_two_inputs_and_additional_arguments() -> None:
    model = mlp()

    def f(a: Tensor, b: Tensor, scale: Tensor, power: int) -> Tensor:
        return model(torch.cat((a, b), 1)) * scale[:, None] ** power

    a, b, scale = BATCH[:, :2], BATCH[:, 2:], torch.rand(6, dtype=torch.float64)
    got = pi.integrated_gradients(
        f, (a, b), (0.1, B[:, 2:]), 2, additional_forward_args=(scale, 2), internal_batch_size=5
    )
    start = torch.cat((torch.full((1, 2), 0.1, dtype=torch.float64), B[:, 2:]), 1)
    want = pi.integrated_gradients(model, BATCH, start, 2) * scale[:, None] ** 2
    torch.testing.assert_close(torch.cat(got, 1), want, atol=1e-13, rtol=0)


def test_all_target_forms_agree() -> None:
    model = mlp()
    each = [0, 2, 1, 1, 0, 2]
    every = pi.integrated_gradients(model, BATCH, B, "all")
    assert every.shape == (3, 6, 5)
    listed, delta = pi.integrated_gradients(
        model, BATCH, B, [0, 1, 2], multi_target=True, return_convergence_delta=True
    )
    assert torch.equal(listed, every) and delta.shape == (3, 6)
    for t in range(3):
        torch.testing.assert_close(pi.integrated_gradients(model, BATCH, B, t), every[t])
    want = every[each, torch.arange(6)]
    as_tuples = [(t,) for t in each]
    for target in (each, torch.tensor(each), as_tuples):
        torch.testing.assert_close(pi.integrated_gradients(model, BATCH, B, target), want)
    deep = pi.integrated_gradients(lambda z: model(z)[:, None, :], BATCH, B, (0, 2))
    torch.testing.assert_close(deep, every[2])


def test_one_forward_for_all_targets() -> None:
    calls = []
    model = mlp()

    def f(z: Tensor) -> Tensor:
        calls.append(len(z))
        return model(z)

    pi.integrated_gradients(f, BATCH, B, "all", n_steps=10, internal_batch_size=60)
    assert calls == [60]


def test_empty_batch() -> None:
    got, delta = pi.integrated_gradients(mlp(), BATCH[:0], target=1, return_convergence_delta=True)
    assert got.shape == (0, 5) and delta.shape == (0,)


# ------------------------------------------------------------------------------------- tolerance


def test_tolerance_stops_each_sample_on_its_own() -> None:
    def f(z: Tensor) -> Tensor:
        return torch.sin(z[:, 0] * z[:, 1])

    x = torch.tensor([[1.0, 0.1], [1.0, 9.0]], dtype=torch.float64)
    got, info = pi.integrated_gradients(f, x, tol=1e-6, return_info=True)
    assert info.steps[0] < info.steps[1] and bool(info.converged.all())
    assert info.evaluations == int(info.steps.sum())
    true = pi.integrated_gradients(f, x, n_steps=200)
    error = (got - true).abs().sum(1)
    assert bool((error <= info.error).all())
    assert bool((info.error <= 1e-6 * got.abs().sum(1)).all())


def test_the_error_estimate_is_above_the_error_on_smooth_models() -> None:
    """Held-out random networks, tolerances and inputs: at least 95 % of the estimates hold."""
    held = total = 0
    for seed in range(12):
        torch.manual_seed(seed)
        act = (nn.Tanh, nn.GELU, nn.Softplus, nn.SiLU)[seed % 4]
        model = nn.Sequential(nn.Linear(6, 16), act(), nn.Linear(16, 16), act(), nn.Linear(16, 3))
        model = model.double()
        for p in model.parameters():
            p.data *= 1 + seed % 3
        x = 2 * torch.randn(24, 6, dtype=torch.float64)
        true = pi.integrated_gradients(model, x, target=1, n_steps=300)
        for tol in (0.1, 1e-2, 1e-4):
            got, info = pi.integrated_gradients(model, x, target=1, tol=tol, return_info=True)
            error = (got - true).abs().sum(1)
            held += int((error <= info.error).sum())
            total += len(x)
    assert held >= 0.95 * total, f"{held} of {total}"


def test_not_converged_is_said_of_a_relu_cnn() -> None:
    model = cnn(nn.ReLU)
    x = 3 * torch.randn(8, 3, 12, 12)
    _, info = pi.integrated_gradients(model, x, target=1, tol=1e-3, max_steps=65, return_info=True)
    assert not bool(info.converged.any())
    assert bool((info.error > 1e-3 * info.size).all()) and bool((info.steps == 65).all())


# ------------------------------------------------------------------------------------ stratified


def test_stratified_points_scatter_at_least_five_times_less() -> None:
    """On smooth models with one baseline, at equal evaluations."""
    for act in (nn.Tanh, nn.GELU, nn.Softplus):
        model = mlp(act=act)
        x = BATCH[:1].repeat(200, 1)
        true = pi.integrated_gradients(model, BATCH[:1], B, 1, n_steps=100)
        error = [
            (pi.expected_gradients(model, x, B, 1, n_samples=64, stratified=s) - true)
            .square().mean().sqrt()
            for s in (True, False)
        ]  # fmt: skip
        assert float(error[1] / error[0]) > 5


def test_stratified_expected_gradients_are_unbiased() -> None:
    model = mlp()
    true = pi.expected_gradients(model, X, REFERENCES, 1, n_samples=400, method="gausslegendre")
    many = pi.expected_gradients(model, X.repeat(4000, 1), REFERENCES, 1, n_samples=3)
    error = (many.mean(0) - true[0]).abs()
    assert bool((error < 4.5 * many.std(0) / 4000**0.5).all())


def test_references_are_used_equally_often() -> None:
    from sublimate.path_integral.sampling import random_references

    index = random_references(torch.tensor(3), torch.arange(5), 12, 4, True)
    counts = torch.stack([(index == r).sum(0) for r in range(4)])
    assert bool((counts == 3).all())


# --------------------------------------------------------------------------------- model's state


def test_memory_that_runs_out_halves_the_chunk() -> None:
    model, tried = mlp(), []

    def f(z: Tensor) -> Tensor:
        tried.append(len(z))
        if len(z) > 7:
            raise torch.OutOfMemoryError("planted")
        return model(z)

    want = pi.integrated_gradients(model, BATCH, B, 1, n_steps=10)
    got, info = pi.integrated_gradients(
        f, BATCH, B, 1, n_steps=10, internal_batch_size=60, return_info=True
    )
    torch.testing.assert_close(got, want, atol=1e-14, rtol=1e-12)
    assert tried[:4] == [60, 30, 12, 6] and info.rows <= 8


def test_other_errors_are_not_retried() -> None:
    def f(z: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        pi.integrated_gradients(f, BATCH, B)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = mlp().train()
    model[0].bias.requires_grad_(False)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    before = {n: (p.requires_grad, p.clone()) for n, p in model.named_parameters()}
    seen = []

    def broken(module: nn.Module, given: Any, out: Tensor) -> None:
        seen.append([p.requires_grad for p in model.parameters()])
        if fails:
            raise KeyError("in the model")

    handle = model[1].register_forward_hook(broken)
    for run in (
        lambda: pi.integrated_gradients(model, BATCH, B, 1),
        lambda: pi.smooth_grad(model, BATCH, 1),
        lambda: pi.expected_gradients(model, BATCH, REFERENCES, 1),
        lambda: pi.full_grad(model, BATCH, 1),
        lambda: pi.LayerIntegratedGradients(model, model[0]).attribute(BATCH, BATCH, 1),
        lambda: pi.moreau_grad(model, BATCH, 1, max_iter=3),
    ):
        if fails:
            with pytest.raises(KeyError):
                run()
        else:
            run()
    handle.remove()
    assert seen and not any(flag for flags in seen for flag in flags)
    for name, p in model.named_parameters():
        assert p.requires_grad == before[name][0] and torch.equal(p, before[name][1])
    assert model.training and torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight))
    assert model[0].weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_modules_behind_callables_are_found() -> None:
    import functools

    model = mlp()
    bound = nn.Sequential(model)
    for f in (model, model.forward, lambda z: model(z), functools.partial(model), bound.forward):
        assert any(p is model[0].weight for m in chunks.modules_of(f) for p in m.parameters())


@pytest.mark.parametrize("n", [65, 66, 1001])
def test_long_gauss_legendre_rules_are_exact(n):
    """Those made by Newton's method, against numpy's where that is quick, and by what is exact."""
    nodes, weights = pi.quadrature.rule("gausslegendre", n)
    assert (np.diff(nodes) > 0).all() and np.abs(nodes + nodes[::-1] - 1).max() < 1e-15
    for degree in (0, 1, 7, n, 2 * n - 1):
        assert abs((weights * nodes**degree).sum() * (degree + 1) - 1) < 1e-12
    if n < 100:
        theirs, w = np.polynomial.legendre.leggauss(n)
        np.testing.assert_allclose(nodes, (1 + theirs) / 2, atol=4e-16, rtol=0)
        np.testing.assert_allclose(weights, w / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lazy", ["inputs", "baselines", "both"])
def test_lazy_negations_are_resolved(lazy: str) -> None:
    """The way past the dispatcher must not read the storage under a lazily negated tensor."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, base = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    due = pi.integrated_gradients(model, x, base, n_steps=9, backend="cpu")
    x_lazy, base_lazy = torch._neg_view(-x), torch._neg_view(-base)
    assert x_lazy.is_neg() and torch.equal(x_lazy, x)
    got = pi.integrated_gradients(
        model,
        x if lazy == "baselines" else x_lazy,
        base if lazy == "inputs" else base_lazy,
        n_steps=9,
        backend="cpu",
    )
    torch.testing.assert_close(got, due, rtol=1e-12, atol=1e-14)
