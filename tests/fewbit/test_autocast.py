"""Under autocast: the dtype that reaches an activation is the one it works in, both ways."""

from __future__ import annotations

import pytest
import torch
from helpers.fewbit_cases import EAGER, SMOOTH, packed_of, public, samples
from helpers.parity import assert_same_bits
from sublimate import fewbit
from sublimate.fewbit import modules
from torch import nn


@pytest.mark.parametrize("name", EAGER)
def test_keeps_the_dtype_of_its_input(lane, name):
    params = (0.1, -0.2) if name == "threshold" else ()
    f = public(name)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = lane.put(samples(200, dtype, odd=False)).requires_grad_()
        plain = f(x, *params, backend=lane.backend)
        with torch.autocast(lane.device, torch.bfloat16):
            y = f(x, *params, backend=lane.backend)
        assert y.dtype == dtype
        assert_same_bits(y.detach(), plain.detach())
        assert_same_bits(packed_of(y), packed_of(plain))
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.dtype == dtype and dx.count_nonzero() > 0


def test_between_linear_layers(lane):
    """Linear gives bf16, so codes are those of bf16 inputs; weights keep fp32 gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), fewbit.GELU(bits=4, backend=lane.backend), nn.Linear(64, 8)
    )
    plain = nn.Sequential(model[0], nn.GELU(), model[2])
    model, plain = model.to(lane.device), plain.to(lane.device)
    x = lane.put(samples((40, 16), torch.float32, odd=False))
    seen = []
    handle = model[1].register_forward_hook(lambda m, a, y: seen.append((a[0].dtype, y.dtype)))
    grads = []
    for m in (model, plain):
        m.zero_grad()
        with torch.autocast(lane.device, torch.bfloat16):
            y = m(x)
        y.float().square().mean().backward()
        grads.append(model[0].weight.grad.clone())
    handle.remove()
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert grads[0].dtype == torch.float32
    error = (grads[0] - grads[1]).norm() / grads[1].norm()
    assert 0 < error < 0.1


@pytest.mark.parametrize("keep", ["up", "gate"])
def test_gated(lane, keep):
    gate, up = (lane.put(samples((8, 40), torch.bfloat16, seed=s, odd=False)) for s in (1, 2))
    plain = fewbit.swiglu(gate, up, keep=keep, backend=lane.backend)
    with torch.autocast(lane.device, torch.bfloat16):
        y = fewbit.swiglu(gate, up, keep=keep, backend=lane.backend)
    assert_same_bits(y, plain)
    with (
        torch.autocast(lane.device, torch.bfloat16),
        pytest.raises(TypeError, match="dtype of gate"),
    ):
        fewbit.swiglu(gate, up.float(), keep=keep, backend=lane.backend)


def test_modules_of_every_kind(lane):
    for name in SMOOTH[2:]:
        module = modules.FewBitActivation(
            name, fewbit.reference.FUNCTIONS[name].defaults, backend=lane.backend
        )
        module = module.to(lane.device)
        x = lane.put(samples(64, torch.bfloat16, odd=False)).requires_grad_()
        with torch.autocast(lane.device, torch.bfloat16):
            y = module(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == torch.bfloat16 and module.levels.dtype == torch.float32
