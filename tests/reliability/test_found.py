"""Faults that the campaign found, each with the call that showed it."""

from __future__ import annotations

import math

import pytest
import torch
from sublimate import fewbit, memory, multicut
from sublimate import kronecker_attention as ka
from sublimate import path_integral as pi
from sublimate import randomized_linear as rl
from torch import nn

X = torch.ones(2, 3)
SEVERAL = torch.zeros(2)
NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
QUANTIZED = torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)
HUGE = 10**400


def scores(x):
    return x.reshape(x.shape[0], -1).sin().sum(1)


def attention(*lengths, **options):
    q, *keys = (torch.ones(1, 1, n, 4) for n in (5, *lengths))
    return ka.estimated_error(q, keys, keys, **options)


REFUSED = {
    # A flag that is a tensor has no truth value: RuntimeError from Python's `if`.
    "multi_target": (lambda: pi.integrated_gradients(scores, X, multi_target=SEVERAL), TypeError),
    "return_info": (lambda: pi.smooth_grad(scores, X, return_info=SEVERAL), TypeError),
    "create_graph": (lambda: pi.full_grad(nn.Linear(3, 1), X, create_graph=SEVERAL), TypeError),
    "stratified": (lambda: pi.expected_gradients(scores, X, X, stratified=SEVERAL), TypeError),
    "colorbar": (lambda: pi.plot(X, colorbar=SEVERAL), TypeError),
    "measure": (lambda: memory.plan(nn.Linear(3, 1), X, measure=SEVERAL), TypeError),
    "bias": (lambda: rl.Linear(3, 2, bias=SEVERAL), TypeError),
    "need_weights": (lambda: ka.KroneckerAttention(4, 2)(X[None], need_weights=SEVERAL), (TypeError,
                                                                                     ValueError)),
    "max_batches": (lambda: rl.noise_report(nn.Linear(3, 1), [X], max_batches=SEVERAL), TypeError),
    "alpha": (lambda: fewbit.celu(X, SEVERAL), TypeError),
    "beta": (lambda: fewbit.Softplus(SEVERAL), TypeError),
    # Numbers that no float64 holds: OverflowError.
    "large int": (lambda: fewbit.elu(X, HUGE), ValueError),
    "parameter beyond float32": (
        lambda: fewbit.celu(torch.ones(3), 1e300, backend="reference"), ValueError
    ),
    "parameter beyond float32, module": (
        lambda: fewbit.CELU(1e300, backend="reference")(torch.ones(3)), ValueError
    ),
    "perturbed of another shape": (
        lambda: pi.IGRegularizer(scores)(X, None, torch.ones(3, 3)), ValueError
    ),
    "integer pixels": (lambda: rl.Conv2d(1, 2)(torch.ones(1, 2, 2).long()), TypeError),
    "large alpha": (lambda: multicut.alpha_path(X).labels(HUGE), ValueError),
    # Not one block of numbers, or none at all: RuntimeError from inside torch.
    "nested": (lambda: fewbit.gelu(NESTED), TypeError),
    "nested inputs": (lambda: pi.smooth_grad(scores, NESTED), TypeError),
    "nested borders": (lambda: fewbit.Codebook(NESTED, [0, 1], [0.0, 1.0], 1), TypeError),
    "sparse inputs": (lambda: pi.integrated_gradients(scores, torch.eye(3).to_sparse()), TypeError),
    "meta features": (lambda: multicut.dense_multicut(X.to("meta")), ValueError),
    "meta inputs": (lambda: pi.integrated_gradients(scores, X.to("meta")), ValueError),
    # Batches of nothing: ZeroDivisionError, or an ambiguous reshape.
    "no samples": (lambda: pi.smooth_grad(scores, X[:0]), ValueError),
    "no samples, igos": (lambda: pi.igos(scores, torch.ones(0, 1, 4, 4)), ValueError),
    "empty samples": (lambda: pi.integrated_gradients(scores, X[:, :0]), ValueError),
    # AttributeError, IndexError, NameError, RuntimeError.
    "baselines of igos": (lambda: pi.igos(scores, torch.ones(1, 1, 4, 4), 3), TypeError),
    "x to decode": (lambda: fewbit.fit_codebook("relu", 1).decode("x"), TypeError),
    "model of a report": (lambda: rl.noise_report((), [X]), TypeError),
    "ax": (lambda: pi.plot(X, ax=X), TypeError),
    "labels": (lambda: pi.plot_series(X[0], labels={}), TypeError),
    "group": (lambda: pi.smooth_grad(scores, X, group=1), TypeError),
    "no attributions": (lambda: pi.attribution_prior(()), TypeError),
    "values of a certificate": (
        lambda: ka.certificate(torch.ones(1, 1, 2, 3), 2 * [torch.ones(1, 1, 2, 3)]).output(3),
        TypeError,
    ),
    "size": (lambda: pi.full_grad(nn.Linear(3, 1), X).map("all"), TypeError),
    "gradient of another shape": (
        lambda: pi.norm_grad_maps(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4), "conv1x1"),
        ValueError,
    ),
    "method": (lambda: pi.NoiseTunnel(3), TypeError),
    "sigma": (lambda: pi.blurred(torch.ones(1, 1, 4, 4), math.inf), ValueError),
    "image": (lambda: pi.blurred(NESTED), TypeError),
    "l2": (lambda: pi.igos(scores, torch.ones(1, 1, 4, 4), l2=1e300), ValueError),
    "tol": (lambda: pi.integrated_gradients(scores, X, tol=SEVERAL), TypeError),
    "alpha of a plot": (lambda: pi.plot(X, image=X, alpha=torch.ones(())), TypeError),
    "nothing to plot": (lambda: pi.plot_series(None), TypeError),
    "no layer": (lambda: pi.norm_grad(scores, X, layer=()), ValueError),
    "nested argument": (
        lambda: pi.smooth_grad(scores, X, additional_forward_args=NESTED), TypeError
    ),
    "abs": (lambda: pi.Saliency(scores).attribute(X, abs=SEVERAL), TypeError),
    "baseline beyond 64 bits": (
        lambda: pi.integrated_gradients(scores, X, -(2**63) - 1), ValueError
    ),
    "quantized stdev": (lambda: pi.smooth_grad(scores, X, stdev=QUANTIZED), TypeError),
    "nested alpha": (lambda: multicut.objective(X, torch.zeros(2).long(), NESTED), TypeError),
    "groups": (lambda: rl.Conv2d(1, 2, groups=SEVERAL), TypeError),
    "kernel_size": (lambda: rl.Conv2d(1, 2, 2**62), ValueError),
    "include": (lambda: rl.convert(nn.Linear(3, 2), include=NESTED), TypeError),
    "sparse batches": (
        lambda: rl.noise_report(nn.Linear(3, 1), 2 * [torch.eye(3).to_sparse_csr()],
                                loss=lambda m, x: m(x).sum()), TypeError
    ),
    "decode without values": (
        lambda: fewbit.fit_codebook("relu", 1).decode(X.to("meta")), ValueError
    ),
    "lambd": (lambda: fewbit.softshrink(X, math.inf), ValueError),
    "mean": (lambda: fewbit.fit_codebook("gelu", 2, mean=HUGE), ValueError),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, expected = REFUSED[name]
    with pytest.raises(expected, match=": expected "):
        call()


ANSWERED = {
    "sparse Moreau gradient at a kink": lambda: pi.moreau_grad(
        lambda x: x.abs().sum(1), torch.tensor([[0.05, -0.02, 3.0]]), sparsity=0.1, max_iter=1
    ),
    "estimate over no keys": lambda: torch.tensor(attention(0, 3)),
    "samples of one number": lambda: pi.IGRegularizer(lambda x: x.square())(torch.ones(3)),
    "prior of samples of one number": lambda: pi.attribution_prior(torch.ones(3)),
    "no features": lambda: rl.linear(
        torch.ones(2, 0), torch.ones(3, 0, requires_grad=True), seed=0
    ),
    "no outputs": lambda: torch.autograd.grad(
        rl.linear(X, w := torch.ones(0, 3, requires_grad=True), seed=0).sum(), w
    )[0],
    "large scale": lambda: rl.hadamard_transform(X, 2**64, backend="reference"),
    "large int for alpha": lambda: multicut.objective(X, torch.zeros(2).long(), -(2**63) - 1),
    "bounds that fp16 does not hold": lambda: fewbit.hardtanh(
        X.half(), -1e6, 0.5, backend="reference"
    ),
    "conjugate inputs": lambda: pi.integrated_gradients(
        lambda x: x.abs().sum(1), (X * 1j).conj() + 1
    ),
    # One bit of relu's derivative loses nothing: chance has nothing to choose.
    "stochastic code of an exact function": lambda: torch.autograd.grad(
        fewbit.activation(
            x := torch.ones(3, requires_grad=True), fewbit.fit_codebook("relu", 1), stochastic=True
        ).sum(),
        x,
    )[0],
    "no batch, attention": lambda: ka.kronecker_attention(
        *(torch.ones(0, 2, 5, 4) for _ in range(5)), method="polynomial", backend="reference"
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_answered(name):
    assert bool(ANSWERED[name]().isfinite().all())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_path_points_of_strided_inputs(backend):
    """The reference's points followed the inputs' strides, and could not be viewed as samples."""
    for x in (torch.randn(3, 4).t(), torch.randn(1, 4, 2, 3).permute(3, 0, 1, 2)):
        for call in (
            lambda x: pi.integrated_gradients(scores, x, n_steps=3, backend=backend),
            lambda x: pi.smooth_grad(scores, x, n_samples=3, seed=1, backend=backend),
            lambda x: pi.integrated_hessian(scores, x, n_steps=2, backend=backend),
        ):
            torch.testing.assert_close(call(x), call(x.contiguous()))
    x = torch.randn(1, 5, 4, 2).permute(3, 0, 2, 1)
    of = [pi.igos(scores, t, size=3, iterations=1, n_steps=2, create_graph=True, backend=backend)
          for t in (x, x.contiguous())]  # fmt: skip
    torch.testing.assert_close(of[0].masks, of[1].masks)


def test_a_saved_builtin_without_its_name():
    data = fewbit.fit_codebook("relu", 1).to_dict()
    del data["name"]
    with pytest.raises(TypeError, match="name must be a str"):
        fewbit.Codebook.from_dict(data)


def test_gradient_without_a_batch():
    inputs = [torch.ones(0, 2, 5, 4, requires_grad=True) for _ in range(5)]
    y = ka.kronecker_attention(*inputs, backend="reference")
    for x, g in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
        assert g.shape == x.shape
