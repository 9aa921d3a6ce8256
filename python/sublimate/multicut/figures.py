"""Pictures of the dense multicut section of the demo's report, as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._figures import FAINT, axes_of, style, svg
from .._report import Figure

_OURS, _PEER = "#3d8fd1", "#f0a35e"
_SHOWN = 14  # clusters drawn, the largest
_EXAMPLES = 6


@dataclass
class Segments:
    """A picture (h, w, 3) in [0, 1], the segment of each pixel (h, w), and the time it took."""

    picture: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    seconds: float


@dataclass
class Point:
    """Seconds and cost at one size: ours and, where it ran, the peer's."""

    n: int
    ours: float
    cost: float
    peer: float | None
    peer_cost: float | None


def draw(
    images: Tensor, digits: Tensor, labels: Tensor, segments: Segments, points: list[Point]
) -> list[Figure]:
    """The four pictures.

    Args:
        images, digits, labels: (n, 8, 8), true digit and cluster of each.
    """
    with style():
        return [
            _contingency(digits, labels),
            _clusters(images, labels),
            _segments(segments),
            _scaling(points),
        ]


def _by_size(labels: Tensor) -> list[int]:
    counts = torch.bincount(labels)
    return [int(c) for c in counts.argsort(descending=True, stable=True)]


def _contingency(digits: Tensor, labels: Tensor) -> Figure:
    table = torch.zeros(10, int(labels.max()) + 1, dtype=torch.int64)
    table.index_put_((digits, labels), torch.ones_like(digits), accumulate=True)
    # Clusters in the order of the digit that most of them are, small ones last.
    main = table.argmax(0)
    order = sorted(_by_size(labels)[:_SHOWN], key=lambda c: (int(main[c]), -int(table[:, c].sum())))
    table = table[:, order]
    figure, axes = axes_of(1, 1, 9.5, 4.2)
    shade = table.double() / table.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shade.numpy(), cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
    for i in range(10):
        for j in range(table.shape[1]):
            count = int(table[i, j])
            if count:
                colour = "white" if shade[i, j] > 0.55 else "#2b2f36"
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(table.shape[1]), [str(c) for c in order])
    axes.set_yticks(range(10), [str(d) for d in range(10)])
    axes.set(xlabel="cluster found", ylabel="true digit")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    hidden = int(labels.max()) + 1 - table.shape[1]
    more = f" ({hidden} smaller clusters are not drawn.)" if hidden else ""
    return Figure(
        "True digits and clusters found",
        "How many images of each digit (row) went to each cluster (column). One dark cell in every "
        f"row and column is perfect agreement.{more}",
        svg(figure, "contingency"),
    )


def _clusters(images: Tensor, labels: Tensor) -> Figure:
    shown = _by_size(labels)[:_SHOWN]
    rows = 1 + _EXAMPLES
    figure, grid = axes_of(rows, len(shown), 9.5, 0.72 * rows + 0.4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for j, cluster in enumerate(shown):
        members = images[labels == cluster]
        grid[0, j].set_title(f"{cluster}\n{len(members)}", fontsize=9)
        grid[0, j].imshow(members.mean(0).numpy(), cmap="Blues", vmin=-1, vmax=1)
        for i, image in enumerate(members[:_EXAMPLES], 1):
            grid[i, j].imshow(image.numpy(), cmap="gray_r", vmin=-1, vmax=1)
    return Figure(
        "Each cluster",
        "A column is a cluster, its number and size above it: in blue the mean of its images, "
        "below some of them.",
        svg(figure, "clusters"),
    )


def _segments(found: Segments) -> Figure:
    picture, labels = found.picture, found.labels
    count = int(labels.max()) + 1
    flat = labels.reshape(-1)
    colours = np.stack(
        [np.bincount(flat, picture[..., c].reshape(-1), count) for c in range(3)], 1
    ) / np.bincount(flat, minlength=count).reshape(-1, 1)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    outlined = np.where(edge[..., None], (1.0, 0.92, 0.2), picture)
    figure, grid = axes_of(1, 3, 9.5, 2.6)
    titles = ("picture", f"{count} segments", "each in its mean colour")
    for axes, image, title in zip(grid, (picture, outlined, colours[labels]), titles, strict=True):
        axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    return Figure(
        "Superpixels",
        f"{labels.size:,} pixels, each a node with all others as neighbours "
        f"({labels.size * (labels.size - 1) // 2:,} pairs, none stored), clustered by colour and "
        f"place in {found.seconds:.1f} s. Nobody says how many segments there are.",
        svg(figure, "segments"),
    )


def _scaling(points: list[Point]) -> Figure:
    figure, (left, right) = axes_of(1, 2, 9.5, 3.3)
    both = [p for p in points if p.peer is not None and p.peer_cost is not None]
    left.plot([p.n for p in points], [p.ours for p in points], "o-", color=_OURS, label="ours")
    left.plot(
        [p.n for p in both],
        [p.peer for p in both],
        "s-",
        color=_PEER,
        label="scikit-learn, average linkage",
    )
    left.set(title="Seconds", xlabel="nodes", xscale="log", yscale="log")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.legend(loc="lower right")
    more = [
        100 * (p.peer_cost - p.cost) / abs(p.cost) if p.cost and p.peer_cost is not None else 0.0
        for p in both
    ]
    right.bar([f"{p.n:,}" for p in both], more, color=_PEER, width=0.6)
    right.set(title="Cost of average linkage above ours (%)", xlabel="nodes")
    right.axhline(0, color=FAINT, lw=1)
    for axes in (left, right):
        axes.grid(axis="y", color=FAINT, lw=0.6, alpha=0.7)
        axes.set_axisbelow(True)
    return Figure(
        "Time and cost by size",
        "Left: both axes are logarithmic; average linkage stores all n x n distances and is not "
        "run beyond 10,000 nodes. Right: how much worse its clustering is by the objective.",
        svg(figure, "scaling"),
    )
