"""Linear and Conv2d: torch.nn's behaviour, seeds, checkpoints, resuming, convert and restore."""

from __future__ import annotations

import copy

import pytest
import torch
from sublimate import memory, randomized_linear
from sublimate.randomized_linear import Conv2d, Linear, seeds
from torch import nn
from torch.utils.checkpoint import checkpoint


def grads(module, x, loss=lambda y: y.square().sum()):
    module.zero_grad()
    loss(module(x)).backward()
    return [p.grad.clone() for p in module.parameters()]


def test_is_torchs_linear():
    torch.manual_seed(1)
    ours, plain = Linear(6, 4, layer=0), nn.Linear(6, 4)
    ours.load_state_dict(plain.state_dict())  # a checkpoint of the plain layer, strictly
    x = torch.randn(3, 5, 6)
    assert torch.equal(ours(x), plain(x))
    assert isinstance(ours, nn.Linear)
    assert set(ours.state_dict()) == {"weight", "bias", "sketch_key", "sketch_count"}
    assert torch.equal(grads(ours, x)[1], grads(plain, x)[1])
    assert "ratio=0.2, sketch='srht'" in repr(ours)
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({"bias": plain.bias})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution(layout):
    plain = nn.Conv2d(5, 7, 1, stride=2)
    ours = Conv2d.of(plain, ratio=1.0, sketch="rows", layer=0)
    x = torch.randn(2, 5, 6, 8).to(memory_format=layout).requires_grad_()
    y, due = ours(x), plain(x)
    torch.testing.assert_close(y, due)
    assert y.stride() == due.stride() or layout == torch.channels_last
    dy = torch.randn_like(due)
    for got, want in zip(
        torch.autograd.grad(y, (x, *ours.parameters()), dy),
        torch.autograd.grad(due, (x, *plain.parameters()), dy),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x[0]), plain(x[0]))
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
    saved = memory.saved_bytes(Conv2d.of(plain, ratio=0.5), x.detach())
    assert saved == (2 * 3 * 4 // 2) * 5 * 4 + 8


def test_every_forward_draws_afresh():
    """Steps, layers and ranks differ; equal (seed, layer, count, rank) agree."""
    layers = [Linear(3, 3, seed=s, layer=n, rank=r) for s in (0, 1) for n in (0, 1) for r in (0, 1)]
    drawn = [int(layer.next_seed()) for layer in layers for _ in range(50)]
    assert len(set(drawn)) == len(drawn) and all(0 <= s < 2**63 for s in drawn)
    twin = Linear(3, 3, seed=1, layer=1, rank=1)
    assert [int(twin.next_seed()) for _ in range(50)] == drawn[-50:]
    unnumbered = [Linear(3, 3), Linear(3, 3)]
    assert unnumbered[0].sketch_key != unnumbered[1].sketch_key


def test_gradient_accumulation_draws_afresh():
    layer, x = Linear(6, 4, layer=0), torch.randn(40, 6)
    first, second = grads(layer, x)[0], grads(layer, x)[0]
    assert not torch.allclose(first, second)


def test_explicit_step():
    layer, x = Linear(6, 4, layer=0), torch.randn(40, 6)

    def at(step, micro_batch):
        with randomized_linear.step(step, micro_batch):
            return grads(layer, x)[0]

    a = at(3, 0)
    grads(layer, x)
    assert torch.equal(at(3, 0), a)
    assert not torch.allclose(at(3, 1), a) and not torch.allclose(at(4, 0), a)
    with randomized_linear.step(3):
        assert layer.next_seed() != layer.next_seed()  # two calls of one layer
    assert int(layer.sketch_count) == 1


def test_resumed_run_is_bit_exact():
    def run(model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in steps:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    def fresh():
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        randomized_linear.convert(model, 0.3, seed=9)
        return model

    data = torch.randn(6, 20, 6)
    whole = fresh()
    run(whole, data)
    half = fresh()
    run(half, data[:3])
    resumed = fresh()
    resumed.load_state_dict(half.state_dict())
    run(resumed, data[3:])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


class Twice(nn.Module):
    """A block whose layer runs twice, the second time on another input."""

    def __init__(self):
        super().__init__()
        self.first = Linear(6, 6, ratio=0.3, layer=0)
        self.second = Linear(6, 6, ratio=0.3, layer=1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("order", ["one", "stacked", "pipeline"])
def test_checkpoint_replays(order):
    """Non-reentrant: exactly, with repeated layers and backwards in any order."""
    plain, recomputed = Twice(), Twice()
    recomputed.load_state_dict(plain.state_dict())
    data = torch.randn(4, 30, 6)

    def train(model, wrap):
        for xs in data.split(1 if order == "one" else 2):
            losses = [wrap(model, x).square().sum() for x in xs]
            for loss in losses if order == "pipeline" else losses[::-1]:
                loss.backward()
        return [p.grad for p in model.parameters()]

    due = train(plain, lambda m, x: m(x))
    got = train(recomputed, lambda m, x: checkpoint(m, x, use_reentrant=False))
    for g, d in zip(got, due, strict=True):
        assert torch.equal(g, d)
    assert int(recomputed.first.sketch_count) == int(plain.first.sketch_count) == 8


def test_reentrant_checkpoint_replays():
    plain = nn.Sequential(Linear(6, 6, layer=0), nn.Tanh(), Linear(6, 6, layer=1))
    recomputed = copy.deepcopy(plain)
    for x in torch.randn(3, 30, 6):
        due = grads(plain, x.clone().requires_grad_())
        wrapped = lambda t: checkpoint(recomputed, t, use_reentrant=True)  # noqa: E731
        recomputed.zero_grad()
        wrapped(x.clone().requires_grad_()).square().sum().backward()
        for p, d in zip(recomputed.parameters(), due, strict=True):
            assert torch.equal(p.grad, d)
    # In eval mode nothing is known of the first forward: another draw, never an old one.
    recomputed.eval()
    found = []
    for _ in range(2):
        recomputed.zero_grad()
        wrapped(x.clone().requires_grad_()).square().sum().backward()
        found.append(recomputed[0].weight.grad.clone())
    assert not torch.allclose(found[0], found[1])


def test_frozen_and_no_grad_keep_nothing():
    layer = Linear(6, 4, layer=0)
    x = torch.randn(20, 6)
    layer.weight.requires_grad_(False)
    assert memory.saved_bytes(layer, x.requires_grad_()) == 0
    assert int(layer.sketch_count) == 0
    layer.weight.requires_grad_(True)
    layer.eval()
    with torch.no_grad():
        layer(x)
    assert int(layer.sketch_count) == 0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, other=None):
        other = x if other is None else other
        return self.query(x).tanh() + self.key(other).tanh() * self.value(other).tanh()


def test_shared_input_is_kept_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(8), Attention())
    report = randomized_linear.convert(model, 0.25)
    assert report.shared == [("1.query", "1.key", "1.value")]
    assert "shared inputs 1" in str(report)
    x = torch.randn(40, 8)
    attention = model[1]
    outputs = 5 * 40 * 8 * 4  # of tanh, and of the product
    base = memory.saved_bytes(attention, x)
    assert base.per_module["query"] == 10 * 8 * 4 + 8
    assert "key" not in base.per_module and "value" not in base.per_module
    assert base <= outputs + 10 * 8 * 4 + 8
    cross = memory.saved_bytes(attention, x, torch.randn(40, 8))
    assert cross.per_module["key"] == 10 * 8 * 4 + 8 and "value" not in cross.per_module
    assert attention.query.group.handles is None  # nothing outlives the forward
    twin = copy.deepcopy(model)
    assert twin[1].query.group is not attention.query.group
    for got, due in zip(grads(twin, x), grads(model, x), strict=True):
        assert torch.equal(got, due)
    assert randomized_linear.restore(model) == 3
    assert not model[1]._forward_hooks and type(model[1].key) is nn.Linear


def test_shared_input_in_checkpoints():
    model = Attention()
    randomized_linear.convert(model, 0.25)
    twin = copy.deepcopy(model)
    for x in torch.randn(2, 40, 8):
        due = grads(model, x)
        twin.zero_grad()
        checkpoint(twin, x, use_reentrant=False).square().sum().backward()
        for p, d in zip(twin.parameters(), due, strict=True):
            assert torch.equal(p.grad, d)


def test_convert_and_restore():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.Conv2d(3, 3, 1)),
        nn.Conv2d(3, 3, 3), nn.MultiheadAttention(4, 1),
    )  # fmt: skip
    before = dict(model.named_modules())
    state = model.state_dict()
    parameters = dict(model.named_parameters())
    report = randomized_linear.convert(model, include=["0", "2.*", "3", "4*"], exclude="2.0")
    assert [r.name for r in report.replaced] == ["0", "2.1"]
    assert dict(report.skipped).keys() == {"3", "4", "4.out_proj"}
    assert "kernel_size (3, 3)" in dict(report.skipped)["3"]
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[n] for n, p in model.named_parameters())
    model.load_state_dict(state)
    assert randomized_linear.restore(model) == 2
    assert dict(model.named_modules()) == before


def test_convert_with_a_ratio_for_each_layer():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    randomized_linear.convert(model, {"0": 0.1, "2": 0.5}, sketch="rows")
    assert [getattr(m, "ratio", None) for m in model] == [0.1, None, 0.5]
    with pytest.raises(ValueError, match="ratio: expected names of modules"):
        randomized_linear.convert(model, {"3": 0.1})


def test_meta_and_to():
    layer = Linear(6, 4, layer=2, device="meta")
    due = Linear(6, 4, layer=2)
    layer = layer.to_empty(device="cpu")
    assert torch.equal(layer.sketch_key, due.sketch_key) and int(layer.sketch_count) == 0
    half = due.half()
    assert half.sketch_key.dtype == torch.int64


def test_mix_and_rank():
    assert len({seeds.mix(a, b) for a in range(10) for b in range(10)}) == 100
    assert seeds.rank_term(0) == 0 and seeds.rank_term(1) != seeds.rank_term(2)
    for bad in (1.5, True, "0"):
        with pytest.raises(TypeError, match="rank: expected"):
            Linear(2, 2, rank=bad)
    with pytest.raises(ValueError, match="rank: expected an int >= 0, got -1"):
        Linear(2, 2, rank=-1)


def test_bad_modules():
    with pytest.raises(ValueError, match=r"ratio: expected a number in \(0, 1\], got 0"):
        Linear(2, 2, ratio=0)
    with pytest.raises(ValueError, match=r"sketch: expected one of 'gaussian', .*, got 'fft'"):
        randomized_linear.convert(nn.Sequential(), sketch="fft")
    with pytest.raises(ValueError, match=r"kernel_size: expected 1, got \(3, 3\)"):
        Conv2d(2, 2, 3)
    with pytest.raises(ValueError, match="groups: expected 1, got 2"):
        Conv2d(2, 2, 1, groups=2)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn.Module"):
        randomized_linear.convert(3)
