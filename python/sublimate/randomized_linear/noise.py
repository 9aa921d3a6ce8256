"""How loud a sketch is beside what training bears anyway: the noise of the mini-batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from . import arguments, reference
from .convert import SHARED
from .modules import Sketched
from .moments import Moments

#: What ``choose_ratio`` tries, smallest first.
RATIOS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class LayerNoise:
    """One layer's figures.

    Attributes:
        name: dotted name of the layer.
        sketch, ratio: what was asked.
        rows: N of a batch, on average.
        gradient: norm of the mean gradient over all batches.
        sketch_noise: E |estimate - gradient|^2 of one batch, by the exact formula.
        batch_noise: E |gradient of a batch - mean gradient|^2, measured over the batches.
        share: sketch_noise / batch_noise.
        cosine: of one batch's exact gradient and an estimate: sqrt(E|g|^2 / (E|g|^2 + noise)).
    """

    name: str
    sketch: str
    ratio: float
    rows: float
    gradient: float
    sketch_noise: float
    batch_noise: float
    share: float
    cosine: float


class NoiseReport(list[LayerNoise]):
    """``LayerNoise`` of every linear layer, in model order; prints as a table."""

    def __str__(self) -> str:
        names = ("sketch", 11), ("ratio", 6), ("share of batch noise", 21), ("cosine", 7)
        head = f"{'layer':44s} " + " ".join(f"{name:>{width}s}" for name, width in names)
        lines = [
            f"{n.name:44s} {n.sketch:>11s} {n.ratio:6.2f} {n.share:21.4f} {n.cosine:7.3f}"
            for n in self
        ]
        return "\n".join([head, *lines])


@dataclass
class _Batch:
    """Sums over one layer's calls in one batch: gradient, and variance for each ratio."""

    gradient: Tensor | float = 0.0
    rows: int = 0
    variances: list[float] | None = None


def _loss(model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, Tensor):
        out = model(batch)
    elif isinstance(batch, dict):
        out = model(**batch)
    elif isinstance(batch, (list, tuple)):
        out = model(*batch)
    else:
        raise _checks.fail_type("loader", "batches that are tensors, tuples or dicts", batch)
    found = getattr(out, "loss", out)
    if not isinstance(found, Tensor) or found.dim() != 0:
        raise _checks.fail_value(
            "loss", "a callable, as the model's output is no scalar loss and has none", type(out)
        )
    return found


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.requires_grad:
        raise _checks.fail_type("loss", "a callable that returns a loss to differentiate", value)
    return value


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Sketched)) and module.weight.requires_grad
    }


def _measure(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None,
    sketch: Callable[[nn.Module], str],
    ratios: Callable[[nn.Module], Sequence[float]],
    max_batches: int,
) -> dict[str, list[_Batch]]:
    """Gradient and variances of each layer in each batch; parameters' .grad stay as they are."""
    _checks.module("model", model)
    _checks.integer_between("max_batches", max_batches, 1, 2**31 - 1)
    if loss is not None and not callable(loss):
        raise _checks.fail_type("loss", "a callable or None", loss)
    layers = _layers(model)
    if not layers:
        raise _checks.fail_value("model", "one with a linear layer in training", "none")
    found: dict[str, list[_Batch]] = defaultdict(list)
    handles = []
    for name, module in layers.items():

        def watch(
            module: nn.Module, args: Any, y: Tensor, name: str = name, weight: Any = module.weight
        ) -> None:
            x = args[0].detach()
            _checks.dense(f"input of {name}", x)

            def arrive(dy: Tensor) -> None:
                rows, grads = _as_rows(module, x, dy)
                moments = Moments(rows, grads, sketch(module))
                batch = found[name][-1]
                batch.gradient = batch.gradient + moments.gradient
                batch.rows += len(rows)
                new = [
                    float(moments.variance(reference.rows_kept(len(rows), r)))
                    for r in ratios(module)
                ]
                old = batch.variances or [0.0] * len(new)
                batch.variances = [a + b for a, b in zip(old, new, strict=True)]

            if y.requires_grad:
                y.register_hook(arrive)

        handles.append(module.register_forward_hook(watch))
    try:
        count = 0
        for batch in loader:
            for name in layers:
                found[name].append(_Batch())
            with torch.enable_grad():
                value = _scalar((loss or _loss)(model, batch))
                weights = [layer.get_parameter("weight") for layer in layers.values()]
                torch.autograd.grad(value, weights, allow_unused=True)
            count += 1
            if count == max_batches:
                break
    finally:
        for handle in handles:
            handle.remove()
    if count < 2:
        raise _checks.fail_value("loader", "at least 2 batches, whose gradients differ", count)
    return {n: b for n, b in found.items() if all(one.variances is not None for one in b)}


def _as_rows(module: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, I) and dy (N, O) of a linear layer or a 1 x 1 convolution."""
    if isinstance(module, nn.Conv2d):
        down, across = module.stride
        x, dy = x[..., ::down, ::across].movedim(-3, -1), dy.movedim(-3, -1)
    return reference.as_rows(x), reference.as_rows(dy.detach())


def _summary(batches: list[_Batch], place: int) -> tuple[float, float, float, float]:
    """|mean gradient|, mean |gradient|^2, noise of a batch, mean noise of the sketch."""
    grads = [torch.as_tensor(b.gradient).to(torch.float64) for b in batches]
    mean = torch.stack(grads).mean(0)
    batch_noise = sum(float((g - mean).square().sum()) for g in grads) / (len(grads) - 1)
    power = sum(float(g.square().sum()) for g in grads) / len(grads)
    noise = sum(b.variances[place] for b in batches if b.variances) / len(batches)
    return float(mean.norm()), power, batch_noise, noise


def noise_report(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    sketch: str | None = None,
    ratio: float | None = None,
    max_batches: int = 16,
) -> NoiseReport:
    """Noise that sketching adds to each linear layer's gradient, beside that of the mini-batch.

    Runs forward and backward on the batches without touching ``.grad``. Inputs and output gradients
    are the exact ones also where a layer is sketched; noise is by ``variance``'s formulas.

    Args:
        model: with torch.nn.Linear or this family's layers.
        loader: batches (a tensor, tuple of arguments or dict of keywords each), at least two.
        loss: (model, batch) -> scalar; None: the model's output, or its attribute ``loss``.
        sketch, ratio: what to report on; None: each sketched layer's own, else "srht" and 0.2.
        max_batches: how many batches to take.

    Returns:
        One ``LayerNoise`` for each layer whose weight is trained and was used.

    Raises:
        TypeError, ValueError: a bad argument, or fewer than two batches.
    """
    arguments.check_options(0.2 if ratio is None else ratio, "srht" if sketch is None else sketch)

    def kind(m: nn.Module) -> str:
        return sketch or (m.sketch if isinstance(m, Sketched) else "srht")

    def share(m: nn.Module) -> float:
        return ratio or (m.ratio if isinstance(m, Sketched) else 0.2)

    found = _measure(model, loader, loss, kind, lambda m: (share(m),), max_batches)
    layers, report = _layers(model), NoiseReport()
    for name, batches in found.items():
        gradient, power, batch_noise, noise = _summary(batches, 0)
        layer = layers[name]
        report.append(
            LayerNoise(
                name,
                kind(layer),
                share(layer),
                sum(b.rows for b in batches) / len(batches),
                gradient,
                noise,
                batch_noise,
                noise / batch_noise if batch_noise else math.inf,
                math.sqrt(power / (power + noise)) if power + noise else 1.0,
            )
        )
    return report


def choose_ratio(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    sketch: str = "srht",
    noise_share: float = 0.1,
    ratios: Sequence[float] = RATIOS,
    max_batches: int = 16,
) -> dict[str, float]:
    """Smallest ratio of each layer whose sketch noise is below a share of the mini-batch noise.

    Args:
        noise_share: allowed sketch_noise / batch_noise.
        ratios: what to choose from.
        model, loader, loss, sketch, max_batches: as in ``noise_report``.

    Returns:
        {name: ratio} for ``convert``. Layers for which none suffices are left out, and so stay
        exact. Layers that may share an input (``convert``) get the largest of their ratios, and
        none if one of them has none.
    """
    for value in ratios:
        arguments.check_options(value, sketch)
    _checks.number("noise_share", noise_share)
    if not noise_share > 0:
        raise _checks.fail_value("noise_share", "a number > 0", noise_share)
    tried = sorted(ratios)
    found = _measure(model, loader, loss, lambda m: sketch, lambda m: tried, max_batches)
    chosen: dict[str, float] = {}
    for name, batches in found.items():
        for place, value in enumerate(tried):
            _, _, batch_noise, noise = _summary(batches, place)
            if noise <= noise_share * batch_noise:
                chosen[name] = value
                break
    for name in list(found):
        prefix, _, child = name.rpartition(".")
        for names in SHARED:
            group = [f"{prefix}.{n}" if prefix else n for n in names]
            group = [n for n in group if n in found]
            if child not in names or len(group) < 2:
                continue
            for member in group:
                if all(n in chosen for n in group):
                    chosen[member] = max(chosen[n] for n in group)
                else:
                    chosen.pop(member, None)
    return chosen
