"""The module: its parameters, masks, orders, and its place in a Transformer block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sublimate.kronecker_attention import KroneckerAttention, certificate, kronecker_attention
from torch import nn


def x(batch=2, length=9, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, generator=generator)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_by_hand(backend):
    """Projections, heads, attention and output, written out."""
    module = KroneckerAttention(16, 4, kv_heads=2, backend=backend)
    out, weights = module(x())
    assert weights is None and out.shape == (2, 9, 16)

    def heads(projection, count):
        return projection(x()).reshape(2, 9, count, 4).transpose(1, 2)

    q = heads(module.q_proj, 4)
    k1, k2 = (heads(p, 2) for p in module.k_projs)
    v1, v2 = (heads(p, 2) for p in module.v_projs)
    due = kronecker_attention(q, k1, k2, v1, v2, backend="reference")
    due = module.out_proj(due.transpose(1, 2).reshape(2, 9, 16))
    torch.testing.assert_close(out, due)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["q_proj.weight"] == shapes["out_proj.weight"] == (16, 16)
    assert shapes["k_projs.1.weight"] == shapes["v_projs.0.weight"] == (8, 16)


def test_cross_attention_and_padding():
    module = KroneckerAttention(16, 2)
    memory = x(length=13, seed=1)
    mask = torch.zeros(2, 13, dtype=torch.bool)
    mask[0, 7:] = True
    out, _ = module(x(), memory, key_padding_mask=mask)
    short, _ = module(x()[:1], memory[:1, :7])
    torch.testing.assert_close(out[:1], short)
    floats, _ = module(
        x(), memory, key_padding_mask=torch.zeros(2, 13).masked_fill(mask, -torch.inf)
    )
    assert torch.equal(floats, out)
    values, _ = module(x(), memory, memory * 2)
    assert not torch.allclose(values, module(x(), memory)[0])


def test_causal_and_window():
    module = KroneckerAttention(16, 2, causal=True)
    full, _ = module(x())
    start, _ = module(x()[:, :5])
    torch.testing.assert_close(full[:, :5], start)
    by_call, _ = KroneckerAttention(16, 2).to(x().dtype)(x(), is_causal=True)
    assert by_call.shape == full.shape
    module.window = (2, 2)
    changed = x()
    changed[:, 0] += 5
    a, b = module(x())[0], module(changed)[0]
    torch.testing.assert_close(a[:, 2:], b[:, 2:])
    assert not torch.allclose(a[:, 1], b[:, 1])


@pytest.mark.parametrize("order", [3, 4])
def test_qk_norm_bounds_the_logits(order):
    """Unit k-norms: the learnt factor is the radius, so that a low degree stays within bounds."""
    module = KroneckerAttention(
        16, 2, order=order, qk_norm=True, method="polynomial", degree=4, backend="reference"
    )
    with torch.no_grad():
        module.log_radius.copy_(torch.tensor([0.0, 0.5]))
    q = module._unit(module._heads(module.q_proj(30 * x()), 2))
    q = q * module.log_radius.exp()[:, None, None]
    keys = [module._unit(module._heads(p(30 * x()), 2)) for p in module.k_projs]
    radius = certificate(q, keys, 1.0, 4).radius
    due = torch.tensor([1.0, 1.6487])[None, :, None].expand(2, 2, 9).double()
    torch.testing.assert_close(radius, due, rtol=1e-4, atol=1e-4)
    out, _ = module(30 * x())
    out.square().sum().backward()
    assert module.log_radius.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_in_a_transformer_layer():
    """In place of self_attn, trained and in inference mode, with a padding mask."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    layer.self_attn = KroneckerAttention(16, 4)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 6:] = True
    y = layer(x(), src_key_padding_mask=mask)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x(), src_key_padding_mask=mask), y)
        h = layer.norm1(x() + layer.self_attn(x(), key_padding_mask=mask)[0])
        due = layer.norm2(h + layer.linear2(F.relu(layer.linear1(h))))
        torch.testing.assert_close(layer(x(), src_key_padding_mask=mask), due)
    causal = nn.Transformer.generate_square_subsequent_mask(9)
    out = layer(x(), src_mask=causal, is_causal=True)
    torch.testing.assert_close(out[:, :4], layer(x()[:, :4], causal[:4, :4], is_causal=True))


def test_method_and_tolerance_reach_the_function(monkeypatch):
    from sublimate.kronecker_attention import modules

    seen = {}
    original = modules.functional.kronecker_attention

    def spy(*tensors, **options):
        seen.update(options)
        return original(*tensors, **options)

    monkeypatch.setattr(modules.functional, "kronecker_attention", spy)
    KroneckerAttention(16, 4, tol=0.5, coefficients="hermite", window=(3, 4))(x())
    assert (seen["tol"], seen["method"], seen["coefficients"]) == (0.5, "auto", "hermite")
    assert seen["window"] == (3, 4)


def test_state_and_compile():
    module = KroneckerAttention(16, 4, qk_norm=True, causal=True, backend="cpu")
    other = KroneckerAttention(16, 4, qk_norm=True, causal=True, backend="cpu")
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x())[0], module(x())[0])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x())[0], module(x())[0])
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 5:] = True
    torch.testing.assert_close(
        compiled(x(), key_padding_mask=mask)[0], module(x(), key_padding_mask=mask)[0]
    )
    assert "num_heads=4, kv_heads=4, order=3" in repr(module)
    assert (
        KroneckerAttention(16, 4, dtype=torch.bfloat16)(x().bfloat16())[0].dtype == torch.bfloat16
    )


def test_training_lowers_a_loss():
    torch.manual_seed(1)
    module = KroneckerAttention(16, 4)
    target = torch.randn(2, 9, 16)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = (module(x())[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
