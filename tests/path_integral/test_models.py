"""Kinds of models and numbers: 16 bits, complex, normalisation, embeddings, compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.path_cases import cnn, mlp
from sublimate import path_integral as pi
from torch import Tensor, nn


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_16_bit_models_have_a_float32_path_and_sums(dtype: torch.dtype, limit: float) -> None:
    exact = mlp(torch.float32)
    narrow = copy.deepcopy(exact).to(dtype)
    seen = []
    narrow[0].register_forward_hook(lambda m, given, out: seen.append(given[0].dtype))
    x = torch.randn(6, 5)
    want = pi.integrated_gradients(exact, x, target=1)
    for given in (x, x.to(dtype)):
        got = pi.integrated_gradients(narrow, given, target=1)
        assert got.dtype == torch.float32
        assert float((got - want).norm() / want.norm()) < limit
    for run in (
        pi.expected_gradients(narrow, x, torch.zeros(2, 5), 1, n_samples=4),
        pi.smooth_grad(narrow, x, 1, n_samples=4),
    ):
        assert run.dtype == torch.float32 and bool(run.isfinite().all())
    assert set(seen) == {dtype}


def test_every_estimator_takes_float32_inputs_to_a_bf16_model() -> None:
    """And gives float32 attributions near those of the model in float32."""
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.Flatten(),
                           nn.Linear(108, 3)).bfloat16()  # fmt: skip
    exact = copy.deepcopy(narrow).float()
    x, references = torch.rand(2, 2, 6, 6), torch.rand(3, 2, 6, 6)
    pair = (torch.fft.fft, lambda z: torch.fft.ifft(z).real)
    fft = pi.cross_domain_integrated_gradients
    for name, run in {
        "frequencies": lambda m: fft(m, x, None, 1, n_steps=4),
        "pair": lambda m: fft(m, x, None, 1, n_steps=4, transform=pair),
        "shap": lambda m: pi.gradient_shap(m, x, references, 1, seed=0),
        "moreau": lambda m: pi.moreau_grad(m, x, 1, lam=0.01, tol=1e-2),
        "full": lambda m: pi.full_grad(m, x, 1).input_part,
        "norm": lambda m: pi.norm_grad(m, x, 1, layer=m[0]),
        "hessian": lambda m: pi.integrated_hessian(m, x, None, 1, n_steps=2),
        "layer": lambda m: pi.LayerIntegratedGradients(m, m[0]).attribute(x, target=1, n_steps=4),
        "tunnel": lambda m: pi.NoiseTunnel(pi.IntegratedGradients(m), seed=1).attribute(
            x, target=1, n_steps=4),
    }.items():  # fmt: skip
        got, want = run(narrow), run(exact)
        assert got.dtype == torch.float32, name
        assert float((got - want).norm() / want.norm()) < 2e-2, name


def test_norm_maps_of_16_bits_keep_their_range() -> None:
    """Squares of 1e-4 and of 300 are no float16 numbers."""
    a, g = torch.full((1, 4, 3, 3), 300.0), torch.full((1, 4, 3, 3), 1e-4)
    got = pi.norm_grad_maps(a.half(), g.half(), "conv1x1")
    torch.testing.assert_close(got, pi.norm_grad_maps(a, g, "conv1x1"), rtol=1e-3, atol=0)


def test_sums_over_many_points_do_not_drown_in_16_bits() -> None:
    """4,096 equal gradients: a bf16 sum would stop growing at 256 of them."""
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    got = pi.integrated_gradients(lambda z: z.sum(1), x, n_steps=4096, method="riemann_middle")
    torch.testing.assert_close(got, torch.ones(1, 8), atol=1e-5, rtol=0)


def test_complex_inputs() -> None:
    """Real attributions that are complete, and those of real and imaginary parts together."""
    model = mlp()
    z = torch.randn(4, 5, dtype=torch.complex128)
    base = torch.randn(1, 5, dtype=torch.complex128)

    def f(z: Tensor) -> Tensor:
        return model(z.abs() + z.imag**2)

    got, delta = pi.integrated_gradients(f, z, base, 1, n_steps=300, return_convergence_delta=True)
    assert got.dtype == torch.float64 and float(delta.abs().max()) < 1e-4

    def parts(re: Tensor, im: Tensor) -> Tensor:
        return f(torch.complex(re, im))

    both = pi.integrated_gradients(parts, (z.real, z.imag), (base.real, base.imag), 1, n_steps=300)
    torch.testing.assert_close(got, both[0] + both[1], atol=1e-12, rtol=0)
    smooth = pi.smooth_grad(f, z, 1, stdev=0.0)
    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(smooth, grad, atol=1e-12, rtol=0)


def test_compiled_model() -> None:
    torch._dynamo.reset()
    model = cnn(nn.GELU)
    x = torch.randn(2, 3, 12, 12)
    compiled = torch.compile(model, backend="aot_eager")
    for run in (
        lambda m: pi.integrated_gradients(m, x, target=1, n_steps=5),
        lambda m: pi.smooth_grad(m, x, 1, n_samples=3),
        lambda m: pi.LayerIntegratedGradients(m, model[0]).attribute(x, target=1, n_steps=5),
        lambda m: pi.full_grad(m, x, 1).input_part,
    ):
        torch.testing.assert_close(run(compiled), run(model), atol=1e-6, rtol=1e-4)


def test_eval_normalisation_and_training_dropout() -> None:
    model = cnn(nn.ReLU).double()
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    statistics = model[1].running_mean.clone()
    _, delta = pi.integrated_gradients(model, x, target=1, n_steps=400,
                                       return_convergence_delta=True)  # fmt: skip
    assert float(delta.abs().max()) < 1e-2
    alone = torch.cat([pi.integrated_gradients(model, x[i : i + 1], target=1) for i in range(3)])
    together = pi.integrated_gradients(model, x, target=1)
    torch.testing.assert_close(alone, together, atol=1e-12, rtol=0)
    assert torch.equal(model[1].running_mean, statistics)


class Tagger(nn.Module):
    """Token ids [B, T] -> scores [B, 3], with positions that have no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(11, 6), nn.Embedding(7, 6)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, scale: Tensor | None = None) -> Tensor:
        t = torch.arange(ids.shape[1], device=ids.device)[None]
        h = self.norm(self.token(ids) + self.place(t)).tanh().mean(1)
        y: Tensor = self.out(h)
        return y if scale is None else y * scale[:, None]


def test_embeddings() -> None:
    model = Tagger().double()
    ids = torch.randint(0, 11, (4, 7))
    args = torch.rand(4, dtype=torch.float64)
    one = pi.LayerIntegratedGradients(model, model.token)
    got, delta = one.attribute(
        ids, torch.zeros_like(ids), [0, 1, 2, 0], args, n_steps=80, return_convergence_delta=True
    )
    assert got.shape == (4, 7, 6) and float(delta.abs().max()) < 1e-6
    chunked = one.attribute(ids, torch.zeros_like(ids), [0, 1, 2, 0], args, n_steps=80,
                            internal_batch_size=3)  # fmt: skip
    torch.testing.assert_close(chunked, got, atol=1e-13, rtol=0)
    several = pi.LayerIntegratedGradients(model, [model.token, model.place])
    tokens, places = several.attribute(ids, torch.zeros_like(ids), 1)
    assert tokens.shape == (4, 7, 6) and places.shape == (4, 7, 6)
    inner = pi.LayerIntegratedGradients(model, model.norm)
    values = inner.attribute(ids, torch.zeros_like(ids), 1, attribute_to_layer_input=True)
    torch.testing.assert_close(
        values, pi.LayerIntegratedGradients(model, model.token).attribute(
            ids, torch.zeros_like(ids), 1), atol=1e-12, rtol=0,
    )  # fmt: skip
    _, info = one.attribute(ids, torch.zeros_like(ids), 1, tol=1e-6, return_info=True)
    assert bool(info.converged.all())


def test_hugging_face_models() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed; pip install transformers"
    )
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 16}  # fmt: skip
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(**small, num_labels=3)
    ).eval()
    ids = torch.randint(1, 50, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 6:] = 0

    def scores(ids: Tensor, mask: Tensor) -> Tensor:
        return bert(ids, attention_mask=mask).logits

    one = pi.LayerIntegratedGradients(scores, bert.bert.embeddings)
    got, delta = one.attribute(
        ids, torch.zeros_like(ids), 2, mask, return_convergence_delta=True, internal_batch_size=40
    )
    assert got.shape == (3, 9, 16)
    change = (scores(ids, mask) - scores(torch.zeros_like(ids), mask))[:, 2].detach()
    assert float(delta.abs().max()) < 1e-2 * float(change.abs().max()) + 1e-4
    words = pi.LayerIntegratedGradients(scores, bert.bert.embeddings.word_embeddings)
    assert words.attribute(ids, torch.zeros_like(ids), 2, mask).shape == (3, 9, 16)

    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    ).eval()
    last = pi.LayerIntegratedGradients(lambda ids: gpt(ids).logits, gpt.transformer.wte)
    token = last.attribute(ids, torch.zeros_like(ids), (8, 7), n_steps=20)
    assert token.shape == (3, 9, 16) and bool(token.isfinite().all())
