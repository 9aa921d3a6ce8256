"""Benchmarks of whole calls: integrated gradients of four models, ten targets, a training step with
a prior, frequencies.

The peers are Captum as it is; Captum with its two cheapest faults repaired from outside (one root
for a batch of outputs, Gauss nodes made once); and the bare loop that no library can beat: forward
and backward of a batch that exists already, parameters frozen, in the chunks that are fastest here.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sublimate import _backends
from sublimate import path_integral as pi
from sublimate._parity import Measurement
from torch import Tensor, nn

from bench.harness.case import Case, Forward, Provider, Unavailable

STEPS = 50


class _Block(nn.Module):
    """A basic residual block."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        same = width_in == width and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.relu(self.norms[0](self.one(x)))
        return torch.relu(self.norms[1](self.two(inside)) + self.short(x))


class _Transformer(nn.Module):
    """Two pre-norm layers on embeddings [B, 64, 128]."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            128, 4, 512, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean(1))
        return logits


def _tabular() -> nn.Module:
    return _perceptron((20, 64, 64, 2))


def _perceptron(sizes: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class _Opaque(nn.Module):
    """A network behind a ``forward`` of its own, which says nothing of how it is made."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


def _mlp() -> nn.Module:
    return _perceptron((784, 512, 512, 10))


def _cnn() -> nn.Module:
    blocks = [(3, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    return nn.Sequential(
        *(_Block(*b) for b in blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


def _series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, padding=4), nn.GELU(), nn.Conv1d(16, 16, 9, padding=4), nn.GELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


#: name -> model, shape of one sample, multiply-adds of one forward of one sample.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "tabular": (_tabular, (20,), 20 * 64 + 64 * 64 + 64 * 2),
    "opaque_tabular": (lambda: _Opaque(_tabular()), (20,), 20 * 64 + 64 * 64 + 64 * 2),
    "opaque_mlp": (lambda: _Opaque(_mlp()), (784,), 784 * 512 + 512 * 512 + 512 * 10),
    "mlp": (_mlp, (784,), 784 * 512 + 512 * 512 + 512 * 10),
    # 64 tokens: four projections and two layers of 4x, and attention, twice.
    "transformer": (_Transformer, (64, 128), 2 * 64 * (12 * 128**2 + 2 * 64 * 128)),
    "cnn": (_cnn, (3, 64, 64), 9 * 32**2 * (3 * 16 + 3 * 16**2)
            + 9 * 16**2 * (16 * 32 + 3 * 32**2) + 9 * 8**2 * (32 * 64 + 3 * 64**2)),
    "series": (_series, (1, 512), 512 * 9 * (16 + 16 * 16)),
}  # fmt: skip


@functools.cache
def model_of(name: str) -> nn.Module:
    """The model, in eval mode, with random weights: speed does not depend on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name][0]().eval()


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise Unavailable(f"captum is not installed ({error})") from None
    return captum.attr


def _one_root(
    forward_fn: Any, inputs: Any, target_ind: Any = None, additional_forward_args: Any = None,
    grad_kwargs: Any = None,
) -> Any:  # fmt: skip
    """Captum's gradients, of the sum of the outputs instead of each."""
    from captum._utils.common import _run_forward

    with torch.enable_grad():
        output = _run_forward(forward_fn, inputs, target_ind, additional_forward_args)
        return torch.autograd.grad(output.sum(), inputs)


@contextmanager
def _cached_nodes() -> Iterator[None]:
    original = np.polynomial.legendre.leggauss
    np.polynomial.legendre.leggauss = _leggauss
    try:
        yield
    finally:
        np.polynomial.legendre.leggauss = original


_leggauss = functools.cache(np.polynomial.legendre.leggauss)


def captum(model: nn.Module, x: Tensor, target: int = 1, steps: int = STEPS) -> Tensor:
    """Captum 0.9 as it is."""
    found: Tensor = _captum().IntegratedGradients(model).attribute(x, target=target, n_steps=steps)
    return found


def captum_patched(model: nn.Module, x: Tensor, target: int = 1, steps: int = STEPS) -> Tensor:
    """Captum with one root and kept nodes."""
    method = _captum().IntegratedGradients(model)
    method.gradient_func = _one_root
    with _cached_nodes():
        found: Tensor = method.attribute(x, target=target, n_steps=steps)
    return found


def ours(model: nn.Module, x: Tensor, target: Any = 1, steps: int = STEPS) -> Tensor:
    found: Tensor = pi.integrated_gradients(model, x, target=target, n_steps=steps, backend="cpu")
    return found


def _bare(model: nn.Module, rows: Tensor, chunk: int, target: int = 1) -> Callable[[], Tensor]:
    """Forward and backward of all rows in chunks; the result is not an attribution."""

    def run() -> Tensor:
        asking = [p for p in model.parameters() if p.requires_grad]
        for p in asking:
            p.requires_grad_(False)
        try:
            for part in rows.split(chunk):
                leaf = part.detach().requires_grad_()
                kept = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)[0]
        finally:
            for p in asking:
                p.requires_grad_(True)
        return kept

    return run


def _fastest(model: nn.Module, rows: Tensor) -> Callable[[], Tensor]:
    """``_bare`` in the best of some chunks, found by three runs of each."""
    total = len(rows)
    times = {}
    for chunk in sorted({min(total, c) for c in (40, 80, 200, 400, 800, 3200, total)}):
        if total // chunk > 50:
            continue
        run = _bare(model, rows, chunk)
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        times[chunk] = min(taken)
    return _bare(model, rows, min(times, key=lambda c: times[c]))


def _floor(model: nn.Module) -> Forward:
    """The batch exists before; what is timed is the loop alone."""
    chosen: dict[torch.Size, Callable[[], Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        if x.shape not in chosen:
            rows = x.expand(STEPS, *x.shape).reshape(-1, *x.shape[1:])
            chosen[x.shape] = _fastest(model, rows)
        return chosen[x.shape]()

    return run


def _verify(truth: Forward) -> Any:
    """Against the same in float64."""

    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        (x,) = inputs
        found, expected = forward(x).double(), truth(x.double())
        error = float((found - expected).abs().sum() / expected.abs().sum())
        # A rectifier within rounding of its kink takes the other side at one of 50 points.
        return [Measurement("call", "L1 error over L1 norm", error, 1e-3)]

    return verify


def _wide(name: str) -> nn.Module:
    import copy

    return copy.deepcopy(model_of(name)).double()


def _case(
    op: str, name: str, batch: int, rows: int, backwards: float, providers: tuple[Provider, ...],
    bar: float, verify: Any, **more: Any,
) -> Case:  # fmt: skip
    shape = (batch, *MODELS[name][1])
    passes = 2 * MODELS[name][2] * rows * (1 + backwards)
    size = torch.Size(shape).numel()
    return Case(
        id=f"path_integral/{op}/plain/float32/{name}-{batch}/cpu",
        family="path_integral",
        op=op,
        device="cpu",
        dtype=torch.float32,
        shapes=(shape,),
        bits=0,
        bytes_moved={"fwd": 4 * (2 * size // max(1, batch) * rows + 2 * size)},
        flops={"fwd": int(passes)},
        providers=providers,
        verify=verify,
        gradient_error=lambda forward, inputs, dy: 0.0,
        bars={"fwd": bar},
        modes=("fwd",),
        differentiable=False,
        **more,
    )


def _provider(name: str, run: Callable[[Tensor], Tensor], peer: bool = True) -> Provider:
    def make() -> Forward:
        if name.startswith("captum"):
            _captum()
        why = [] if peer else _backends.reasons("path_integral", "cpu", "cpu", torch.float32)
        if why:
            raise Unavailable("; ".join(why))
        return run

    return Provider(name, make, peer=peer)


def integrated(name: str, batch: int, calls: int = 1) -> Case:
    """Integrated gradients, 50 Gauss-Legendre points. The bar of the small model is a tenth of
    Captum's time, that of the others the bare loop and 5 %."""
    model = model_of(name)
    stock = _provider("captum", lambda x: captum(model, x))
    patched = _provider("captum-patched", lambda x: captum_patched(model, x))
    floor = _provider("bare", _floor(model))
    mine = _provider("sublimate-cpu", lambda x: ours(model, x), peer=False)
    small = name.endswith("tabular")
    order = (stock, patched, floor, mine) if small else (floor, stock, patched, mine)
    rows = STEPS * batch
    wide = _wide(name)
    return _case(
        "integrated", name, batch, rows, 1, order, 0.1 if small else 1.05,
        _verify(lambda x: ours(wide, x)), calls=calls,
    )  # fmt: skip


def ten_targets(name: str, batch: int, steps: int) -> Case:
    """All ten classes: one forward and ten backwards against ten calls."""
    model, wide = model_of(name), _wide(name)

    def loop(call: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.stack([call(model, x, t, steps) for t in range(10)])

    providers = (
        _provider("captum", loop(captum)),
        _provider("captum-patched", loop(captum_patched)),
        _provider("sublimate-cpu", lambda x: ours(model, x, "all", steps), peer=False),
    )
    verify = _verify(lambda x: ours(wide, x, "all", steps))
    return _case("ten_targets", name, batch, steps * batch, 10, providers, 1 / 1.5, verify)


REFERENCES = 16


def prior(batch: int = 64, references: int = REFERENCES) -> Case:
    """A training step of the MLP with the total variation of its expected gradients: gradients of
    the parameters. The peer's loop is that of the method's published code: one reference at a time,
    each with a graph of its own."""
    model, wide = model_of("mlp"), _wide("mlp")
    labels = torch.arange(batch) % 10

    def penalty(a: Tensor) -> Tensor:
        return a.view(-1, 28, 28).diff(dim=1).abs().mean()

    def step(net: nn.Module, x: Tensor, expected: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(net(x), labels) + penalty(expected(net, x))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    def data(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn((references, *x.shape[1:]), generator=generator).to(x.dtype)

    def loop(net: nn.Module, x: Tensor) -> Tensor:
        total: Any = 0
        for r in data(x):
            z = (r + 0.5 * (x - r)).requires_grad_()
            score = net(z).gather(1, labels[:, None]).sum()
            (g,) = torch.autograd.grad(score, z, create_graph=True)
            total = total + g * (x - r) / references
        return total

    def batched(net: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = pi.expected_gradients(
            net, x, data(x), labels, n_samples=references, method="riemann_middle",
            create_graph=True, backend="cpu",
        )  # fmt: skip
        return found

    providers = (
        _provider("loop", lambda x: step(model, x, loop)),
        _provider("sublimate-cpu", lambda x: step(model, x, batched), peer=False),
    )
    verify = _verify(lambda x: step(wide, x, batched))
    return _case("prior_step", "mlp", batch, references * batch, 4, providers, 0.5, verify)


def cross_domain(steps: int = 100) -> Case:
    """Attributions to the frequencies of one series of 512 samples. The peer's loop is that of the
    method's published description: one point at a time, through an inverse transform each."""
    model, wide = model_of("series"), _wide("series")

    def loop(x: Tensor) -> Tensor:
        spectrum = torch.fft.fft(x)
        total: Any = 0
        for k in range(1, steps + 1):
            z = (spectrum * (k / steps)).requires_grad_()
            (g,) = torch.autograd.grad(model(torch.fft.ifft(z).real)[:, 1].sum(), z)
            total = total + g / steps
        return (spectrum * total.conj()).real

    def mine(net: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = pi.cross_domain_integrated_gradients(
            net, x, target=1, transform="fft", n_steps=steps, method="riemann_right", backend="cpu"
        )
        return found

    def bare(x: Tensor) -> Tensor:
        return _bare(model, x.expand(steps, *x.shape[1:]), steps)()

    providers = (
        _provider("loop", loop),
        _provider("bare", bare),
        _provider("sublimate-cpu", lambda x: mine(model, x), peer=False),
    )
    verify = _verify(lambda x: mine(wide, x))
    return _case("cross_domain", "series", 1, steps, 1, providers, 0.1, verify)


def cases(quick: bool = False) -> list[Case]:
    """Whole calls on the CPU. ``quick``: small ones only."""
    if quick:
        return [integrated("tabular", 2), ten_targets("mlp", 2, 3), prior(2, 2), cross_domain(3)]
    return [
        integrated("tabular", 1, calls=20),
        integrated("tabular", 16, calls=10),
        integrated("tabular", 256),
        integrated("opaque_tabular", 1, calls=20),
        integrated("opaque_tabular", 16, calls=10),
        integrated("opaque_tabular", 256),
        integrated("mlp", 64),
        integrated("opaque_mlp", 64),
        integrated("transformer", 8),
        integrated("cnn", 8),
        ten_targets("mlp", 16, 50),
        ten_targets("cnn", 2, 20),
        prior(),
        cross_domain(),
    ]
