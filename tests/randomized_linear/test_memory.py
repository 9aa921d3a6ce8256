"""What is kept, and what is needed meanwhile: saved-tensor hooks, and peaks by the profiler."""

from __future__ import annotations

import pytest
import torch
from sublimate import fewbit, memory, randomized_linear
from sublimate.randomized_linear import linear, reference
from torch import nn
from torch.profiler import ProfilerActivity, profile

N, I, O = 2048, 96, 160  # noqa: E741


@pytest.mark.parametrize("sketch", reference.SKETCHES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes(sketch, backend, dtype):
    x = torch.randn(4, N // 4, I).to(dtype).requires_grad_()
    layer = nn.Linear(I, O).to(dtype)
    for ratio in (0.1, 0.5):
        kept = memory.saved_bytes(
            lambda r=ratio: linear(
                x, layer.weight, layer.bias, ratio=r, sketch=sketch, seed=1, backend=backend
            )
        )
        k = int(ratio * N + 0.5)
        draws = 4 * k if sketch in reference.SAMPLERS else 8
        assert kept == k * I * x.element_size() + draws


def peak(function) -> int:
    """Most bytes that were allocated at once above the start, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = function()
    del result
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("sketch", reference.SKETCHES)
def test_peak_of_a_layer(sketch):
    """Forward and backward need no N x k: at most the exact layer's peak and a bounded scratch."""
    n, width = 4096, 128
    x = torch.randn(n, width, requires_grad=True)
    layer = nn.Linear(width, width)

    def ours():
        y = linear(x, layer.weight, layer.bias, ratio=0.2, sketch=sketch, seed=1, backend="cpu")
        return torch.autograd.grad(y, (x, layer.weight, layer.bias), torch.ones_like(y))

    def exact():
        y = layer(x)
        return torch.autograd.grad(y, (x, layer.weight, layer.bias), torch.ones_like(y))

    ours(), exact()
    whole = n * width * 4
    s = 4 * n * int(0.2 * n + 0.5)  # what the sketching matrix would take
    found, due = peak(ours), peak(exact)
    assert due >= 2 * whole, "the instrument sees nothing"
    scratch = 12 * 2**20 if sketch == "dct" else whole // 2  # dct: pieces of 2**18 elements
    assert found <= due + scratch
    assert found < s


def test_peak_of_a_deep_model():
    """Peak of a training step of many layers falls with what they keep."""

    def step(model, x):
        def run():
            model(x).square().mean().backward()
            model.zero_grad(set_to_none=True)

        run()
        return peak(run)

    torch.manual_seed(0)
    blocks = []
    for _ in range(8):
        blocks += [nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)]
    model = nn.Sequential(*blocks)
    x = torch.randn(4096, 64)
    exact, kept = step(model, x), int(memory.saved_bytes(model, x))
    randomized_linear.convert(model, 0.2)
    fewbit.convert(model, 3)
    ours, kept_now = step(model, x), int(memory.saved_bytes(model, x))
    assert kept_now < 0.25 * kept
    assert exact - ours > 0.8 * (kept - kept_now)


def test_a_block_keeps_neither_input_nor_activation():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    x = torch.randn(1000, 64)
    assert memory.saved_bytes(model, x) == 4 * 1000 * (64 + 256 + 256)
    randomized_linear.convert(model, 0.2)
    fewbit.convert(model, 3)
    codes = 3 * 256 * 1000 // 8
    assert memory.saved_bytes(model, x) == 4 * 200 * (64 + 256) + 16 + codes


# ----------------------------------------------------------------------------------------- plan


def test_plan_says_why_a_tensor_stays():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    found = memory.plan(model, torch.randn(64, 8))
    by_name = {p.name: p for p in found.layers}
    assert by_name["0"].neighbours == () and by_name["0"].sketch == 64 * 8 * 4 - 13 * 8 * 4 - 8
    # ReLU keeps its output, which the next layer keeps anyway: one change alone saves nothing.
    assert by_name["1"].neighbours == ("2",) and by_name["1"].few_bit == -64 * 16 // 8
    assert by_name["2"].neighbours == ("1",) and by_name["2"].sketch < 0
    assert found.total == 4 * 64 * (8 + 16)
    text = str(found)
    assert "also kept by" in text and "both: predicted" in text and "measured" in text


@pytest.mark.parametrize("sketch", ["srht", "crs"])
def test_plan_predicts_what_is_measured(sketch):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(16)
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
            self.up, self.act, self.down = nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)
            self.frozen = nn.Linear(16, 16).requires_grad_(False)

        def forward(self, x):
            h = self.norm(x)
            x = x + self.query(h).sigmoid() * self.key(h).tanh() + self.value(h)
            return self.frozen(x + self.down(self.act(self.up(x))))

    model = nn.Sequential(Block(), Block())
    before = {n: type(m) for n, m in model.named_modules()}
    x = torch.randn(3, 50, 16)
    found = memory.plan(model, x, bits=2, ratio=0.3, sketch=sketch)
    assert {n: type(m) for n, m in model.named_modules()} == before
    assert found.total == memory.saved_bytes(model, x)
    for choice, bytes_kept in found.predicted.items():
        assert abs(bytes_kept - found.measured[choice]) <= 64  # tables of levels
    assert found.measured["both"] < found.measured["sketch"] < found.total
    shared = next(p for p in found.layers if p.name == "0.key")
    assert shared.neighbours == ("0.query", "0.value") and shared.sketch > 0
    assert memory.plan(model, x, measure=False).measured == {}
