"""Networks that say how they are made: the answer is that of the same network as a function."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from sublimate import path_integral as pi
from sublimate.path_integral import sequential
from sublimate.path_integral.arguments import spaces
from torch import Tensor, nn

_WIDE = torch.float64


def _draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=_WIDE)


def _perceptron(*functions):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 9), *functions, nn.Linear(9, 8, bias=False), nn.Tanh(), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), nn.Sequential(*layers), nn.Linear(8, 4)).double()


def _convolutions(dims, *functions):
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[dims - 1]
    return nn.Sequential(
        conv(2, 4, 3, padding=1), *functions, conv(4, 4, 3, stride=2, groups=2), *functions,
        pool(1), nn.Flatten(), nn.Linear(4, 4),
    ).double()  # fmt: skip


def _normed():
    """Only the front is known: what follows goes through autograd."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3), nn.Flatten(),
        nn.Linear(12, 4),
    ).double()  # fmt: skip
    for m in net:
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return net.eval()


NETWORKS = {
    "relu": (_perceptron(nn.ReLU()), (2, 3)),
    "leaky, two in a row": (_perceptron(nn.LeakyReLU(0.2), nn.ReLU(inplace=True)), (6,)),
    "gelu": (_perceptron(nn.GELU(), nn.Dropout(0.5)).eval(), (6,)),
    "gelu tanh": (_perceptron(nn.GELU("tanh"), nn.Identity()), (6,)),
    "silu": (_perceptron(nn.SiLU(), nn.Sigmoid()), (6,)),
    "softmax": (nn.Sequential(*_perceptron(nn.Tanh())[1:], nn.Softmax(-1)), (6,)),
    "conv1d": (_convolutions(1, nn.GELU()), (2, 9)),
    "conv2d": (_convolutions(2, nn.ReLU(inplace=True)), (2, 6, 5)),
    "normed": (_normed(), (2, 6)),
}


def _close(found, expected):
    assert (found - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", [2, "all", [0, 1, 2, 3, -1]], ids=["one", "all", "each"])
def test_the_answer_is_that_of_the_function(name, target):
    net, shape = NETWORKS[name]
    x = _draw(5, *shape).requires_grad_()
    layout = spaces(net, (x,))
    network = sequential.network_of(net, x.detach(), layout)
    assert network is not None
    assert sequential.Front.of(network, layout[0]) is not None
    assert (network.direct > 0) == (name != "normed")
    kept = x.detach().clone()
    for options in ({}, {"internal_batch_size": 7}, {"tol": 1e-2}):
        found, expected = (
            pi.integrated_gradients(f, x, 0.3, target, return_convergence_delta=True, **options)
            for f in (net, lambda z: net(z))
        )
        _close(found[0], expected[0])
        _close(found[1], expected[1])
    _close(*(pi.smooth_grad(f, x, target, n_samples=3, seed=1) for f in (net, lambda z: net(z))))
    assert torch.equal(x, kept) and x.grad is None
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", [nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU()], ids=str)
@pytest.mark.parametrize("multiply", [True, False])
def test_the_prior_of_a_perceptron_has_the_gradients_of_the_function(kind, multiply):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), kind, nn.Linear(9, 8), kind, nn.Linear(8, 4)).double()
    x, r = _draw(5, 6).requires_grad_(), _draw(3, 6, seed=2).requires_grad_()
    y, leaves = torch.tensor([0, 1, 2, 3, 0]), [x, r, *net.parameters()]

    def derivatives(f):
        a = pi.expected_gradients(
            f, x, r, y, n_samples=6, create_graph=True, multiply_by_inputs=multiply
        )
        first = torch.autograd.grad(a.square().sum(), leaves, create_graph=True, allow_unused=True)
        total = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(total, leaves, allow_unused=True)
        return [a, *(torch.zeros(()) if g is None else g for g in (*first, *second))]

    for found, expected in zip(derivatives(net), derivatives(lambda z: net(z)), strict=True):
        _close(found, expected)


def test_what_a_perceptron_does_not_depend_on_gets_zeros():
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1)).double()
    a = pi.expected_gradients(net, _draw(2, 6), _draw(3, 6), n_samples=3, create_graph=True)
    a.sum().backward()
    assert torch.equal(net[0].bias.grad, torch.zeros(9, dtype=_WIDE))
    assert net[0].weight.grad.abs().sum() > 0


class _Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _hooked(place):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    module = net if place is None else net[place]
    module.register_forward_hook(lambda m, i, out: 2 * out)
    return net


def _patched():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    net[2].forward = lambda x: 2 * nn.Linear.forward(net[2], x)
    return net


def _weighted():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    nn.utils.parametrizations.weight_norm(net[0])
    with torch.no_grad():
        net[0].parametrizations.weight.original0.mul_(2)
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: _hooked(None),
        lambda: _hooked(0),
        lambda: _hooked(1),
        lambda: _hooked(2),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), _Doubling(4, 1)).double(),
        lambda: nn.Sequential(_Doubling(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(),
        _patched,
        _weighted,
    ],
    ids=["hook", "first", "inner", "last", "subclass", "front", "patched", "parametrized"],
)
def test_whatever_changes_the_calls_is_seen(make):
    torch.manual_seed(0)
    net, x = make(), _draw(4, 3)
    a, delta = pi.integrated_gradients(net, x, return_convergence_delta=True, n_steps=40)
    _close(a, pi.integrated_gradients(lambda z: net(z), x, n_steps=40))
    change = net(x) - net(torch.zeros_like(x))
    assert (a.sum(1) - change[:, 0]).abs().max() < 1e-8 and delta.abs().max() < 1e-8


def test_global_hooks_autocast_and_training_are_seen():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)), torch.randn(4, 3)
    assert sequential.network_of(net.eval(), x, spaces(net, (x,))).direct
    assert not sequential.network_of(net.train(), x, spaces(net, (x,))).direct
    net.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sequential.network_of(net, x, spaces(net, (x,))) is None
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.append(m))
    try:
        pi.integrated_gradients(net, x)
    finally:
        handle.remove()
    assert calls


def test_errors_of_the_model_are_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pi.integrated_gradients(net, torch.randn(2, 5), target=0)
    with pytest.raises(ValueError, match="target: expected indices below 2"):
        pi.integrated_gradients(net, torch.randn(2, 3), target=2)
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN at path point 0 .* of sample 0"):
        pi.integrated_gradients(net, torch.randn(2, 3), target=0)


def series(first: int, *widths: int, groups: int = 1) -> nn.Sequential:
    """1-D convolutions with a stride and a dilation, functions between, and a head."""
    torch.manual_seed(5)
    layers: list[nn.Module] = [nn.Conv1d(first, widths[0], 5, padding=2), nn.GELU()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv1d(a, b, 3, 2, 2, 2, groups), nn.Tanh()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], 3))


@pytest.mark.parametrize(("model", "last"), [
    (series(2, 16, 32), True), (series(2, 16, 16, 48), True), (series(2, 16, 24), False),
    (series(2, 8, 16), False), (series(2, 16, 16, groups=2), False), (series(2, 16), False),
])  # fmt: skip
@pytest.mark.parametrize("rows", [None, 7, 1])
def test_channels_last_are_the_same_numbers(
    model: nn.Sequential, last: bool, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a front of 1-D convolutions, in blocks of 16 channels alone."""
    seen = []
    convolve = sequential._convolve

    def watched(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(sequential._lies_last(x))
        return convolve(m, x)

    for kind, (dims, _, back) in list(sequential._LAYERS.items()):
        if kind is nn.Conv1d:
            monkeypatch.setitem(sequential._LAYERS, kind, (dims, watched, back))
    x, b = torch.randn(3, 2, 40), torch.randn(3, 2, 40)
    wide = copy.deepcopy(model).double()
    for target in (1, "all", [0, 2, 1]):
        got = pi.integrated_gradients(model, x, b, target, n_steps=9, internal_batch_size=rows)
        assert all(seen) if last else not any(seen)
        assert bool(seen) is (len(model) > 5)
        want = pi.integrated_gradients(wide, x.double(), b.double(), target, n_steps=9)
        seen.clear()
        error = float((got - want).abs().max() / want.abs().max())
        assert error < 1e-5, error
