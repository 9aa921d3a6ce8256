"""Pictures of the path-integral section of the demo's report, as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._figures import FAINT, axes_of, style, svg
from .._report import Figure
from .plot import plot, plot_series

_COLOURS = {
    "riemann_left": "#8a8f98", "riemann_middle": "#7cc4b8", "riemann_trapezoid": "#c9a227",
    "clenshawcurtis": "#3d8fd1", "gausslegendre": "#1d4e89", "random places": "#f0a35e",
    "stratified places": "#c2553d",
}  # fmt: skip
_WITHOUT, _WITH = "#f0a35e", "#3d8fd1"


@dataclass
class Photograph:
    """An image (3, H, W), its attributions before and after training, the mask's saliency (H, W);
    accuracy on crops, relative error and evaluations of the second, score before and behind the
    mask."""

    image: Tensor
    before: Tensor
    after: Tensor
    mask: Tensor
    accuracy: float
    error: float
    steps: int
    score: tuple[float, float]


@dataclass
class Priors:
    """Of networks trained without and with a prior: accuracy at each noise, variation of the
    attributions, and some of them (n, 8, 8) with their images."""

    noise: list[float]
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    variation: dict[str, float] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    images: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Frequencies:
    """One series (T,), the mean attributions (T/2 + 1,) of each class, the periods that tell the
    classes apart, and the share of attributions within one bin of them."""

    series: Tensor
    mean: list[Tensor]
    informative: tuple[int, int]
    near: float
    accuracy: float
    delta: float


@dataclass
class Blocks:
    """Images (n, 16, 8), maps of each attribution, the network's accuracy."""

    images: Tensor
    maps: dict[str, Tensor]
    accuracy: float


class _Judged(Protocol):
    name: str
    share: float
    kept: tuple[float, float]


def draw(
    digits: dict[str, Tensor],
    photo: Photograph,
    points: tuple[int, ...],
    curves: dict[str, list[float]],
    priors: Priors,
    series: Frequencies,
    judged: Any,
    shown: Blocks,
) -> list[Figure]:
    """The six pictures."""
    with style():
        return [
            _digits(digits), _photograph(photo), _convergence(points, curves), _priors(priors),
            _frequencies(series), _blocks(judged, shown),
        ]  # fmt: skip


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _digits(maps: dict[str, Tensor]) -> Figure:
    figure, grid = axes_of(len(maps), 10, 9.5, 0.95 * len(maps) + 0.1, squeeze=False)
    for row, (name, images) in zip(grid, maps.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            if name == "image":
                axes.imshow(image.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
            else:
                plot(image, ax=axes, colorbar=False,
                     sign="absolute" if name == "FullGrad" else "all")  # fmt: skip
            _bare(axes)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return Figure(
        "What a digit network looks at",
        "Red speaks for the true digit, blue against it: integrated gradients (to black paper), "
        "expected gradients (to 200 training images), gradients smoothed over noise times the "
        "image, and FullGrad, which has no sign.",
        svg(figure, "path-digits"),
    )


def _photograph(found: Photograph) -> Figure:
    figure, grid = axes_of(1, 4, 9.5, 2.7)
    picture = found.image.permute(1, 2, 0).clamp(0, 1).numpy()
    grid[0].imshow(picture)
    plot(found.before, found.image, ax=grid[1], colorbar=False)
    plot(found.after, found.image, ax=grid[2], colorbar=False)
    plot(found.mask, found.image, ax=grid[3], colorbar=False, sign="positive")
    titles = ("photograph", "random weights", "trained network", "what to delete (I-GOS)")
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title)
        _bare(axes)
    return Figure(
        "A photograph",
        "Integrated gradients of the class of this photograph among three, before and after "
        f"{100 * found.accuracy:.0f} % of unseen crops were told right; after, with an estimated "
        f"error of {100 * found.error:.2g} % at {found.steps} evaluations. Right: the mask that "
        f"takes the probability from {found.score[0]:.2f} to {found.score[1]:.2f}.",
        svg(figure, "path-photograph"),
    )


def _convergence(points: tuple[int, ...], curves: dict[str, list[float]]) -> Figure:
    figure, axes = axes_of(1, 1, 9.5, 3.6)
    for name, errors in curves.items():
        dashed = "--" if name.endswith("places") else "-"
        axes.plot(points, errors, "o" + dashed, color=_COLOURS[name], label=name, ms=4)
    axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="error of attributions")
    axes.set_xticks(points, [str(p) for p in points])
    axes.minorticks_off()
    axes.grid(color=FAINT, lw=0.6, alpha=0.7)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Figure(
        "Error of each rule",
        "L1 error over L1 norm of the attributions to a probability, median of 24 digits, against "
        "400 Gauss-Legendre points. Networks with GELU are smooth, so that high order pays.",
        svg(figure, "path-convergence"),
    )


def _priors(found: Priors) -> Figure:
    figure, grid = axes_of(1, 2, 9.5, 3.2, width_ratios=(1, 1.25))
    for (name, values), colour in zip(found.accuracy.items(), (_WITHOUT, _WITH), strict=True):
        grid[0].plot(found.noise, [100 * v for v in values], "o-", color=colour, label=name)
    grid[0].set(xlabel="noise on the image", title="Accuracy (%)")
    grid[0].grid(axis="y", color=FAINT, lw=0.6, alpha=0.7)
    grid[0].legend(loc="lower left")
    from matplotlib import colormaps

    paper = torch.cat([_framed(i) for i in found.images], 1)
    shown = [colormaps["gray_r"](paper.numpy())]
    for maps in found.maps.values():  # each row on a scale of its own
        row = torch.cat([_framed(m) for m in maps], 1)
        top = float(row.abs().max()) or 1.0
        shown.append(colormaps["RdBu_r"]((row / top / 2 + 0.5).numpy()))
    grid[1].imshow(np.concatenate(shown), interpolation="nearest")
    _bare(grid[1])
    names = ["image", *found.maps]
    grid[1].set_yticks([4.5 + 9 * i for i in range(len(names))], names)
    grid[1].tick_params(length=0)
    grid[1].set_title("Attributions to the true digit")
    less = found.variation["without"] / max(found.variation["with prior"], 1e-12)
    return Figure(
        "Training with a prior on attributions",
        "Two networks from the same 200 images; one is asked for expected gradients that vary "
        f"little between neighbours, which they then do {less:.1f} times less. Colours: red for, "
        "blue against the true digit, each row on a scale of its own.",
        svg(figure, "path-prior"),
    )


def _framed(image: Tensor) -> Tensor:
    return torch.nn.functional.pad(image, (0, 1, 0, 1))


def _frequencies(found: Frequencies) -> Figure:
    figure, grid = axes_of(3, 1, 9.5, 5.0, height_ratios=(1, 1.2, 1.2))
    grid[0].plot(found.series.numpy(), color="#444444", lw=0.9)
    grid[0].set(xlabel="time", title="a series")
    for i, (axes, mean) in enumerate(zip(grid[1:], found.mean, strict=True)):
        plot_series(mean, ax=axes, labels=("periods", "attribution"))
        for period in found.informative:
            axes.axvline(period, color=FAINT, lw=5, zorder=0)
        axes.set_title(f"class {i}: {found.informative[i]} periods")
    return Figure(
        "Attributions to frequencies",
        "Mean cross-domain integrated gradients, one bar a frequency; the classes differ in the "
        f"marked ones alone. Two more waves and noise say nothing. Within one bin of the marks lie "
        f"{100 * found.near:.0f} % of the attributions; accuracy {100 * found.accuracy:.0f} %.",
        svg(figure, "path-frequencies"),
    )


def _blocks(judged: Any, found: Blocks) -> Figure:
    count = len(found.images)
    columns = len(found.maps) + 1
    ratios = (1.0,) * columns + (2.2,)
    figure, grid = axes_of(1, columns + 1, 9.5, 3.3, width_ratios=ratios)
    named = {"image": found.images, **found.maps}
    for axes, (name, images) in zip(grid, named.items(), strict=False):
        if name == "image":
            shown = torch.cat([_row(images[i]) for i in range(min(2, count))], 1)
            axes.imshow(shown.numpy(), cmap="gray_r", vmin=0, vmax=1)
        else:
            pair = torch.cat([_row(images[i] / images[i].max()) for i in range(min(2, count))], 1)
            axes.imshow(pair.numpy(), cmap="magma", vmin=0, vmax=1)
        axes.set_title(name.replace(" ", "\n"), fontsize=9)
        _bare(axes)
    bars = grid[-1]
    y = range(len(judged))
    bars.barh([i - 0.2 for i in y], [100 * j.kept[0] for j in judged], 0.38, color=_WITH,
              label="most")  # fmt: skip
    bars.barh([i + 0.2 for i in y], [100 * j.kept[1] for j in judged], 0.38, color=_WITHOUT,
              label="least")  # fmt: skip
    bars.set_yticks(list(y), [j.name for j in judged], fontsize=9)
    bars.invert_yaxis()
    bars.set(title="Accuracy from a fifth (%)")
    bars.legend(loc="lower right", fontsize=8)
    return Figure(
        "A digit and a block that says nothing",
        "Which of the two attributions name, and how well a new network learns from the fifth of "
        "the pixels named most and from that named least. The farther apart the bars, the truer "
        f"the attribution. The network itself: {100 * found.accuracy:.0f} %.",
        svg(figure, "path-blocks"),
    )


def _row(image: Tensor) -> Tensor:
    return torch.nn.functional.pad(image, (0, 1))
