"""Pictures of attributions. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._checks import fail_kind, fail_type, flags, number, one_of, readable
from .arguments import fail_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNS = ("all", "positive", "negative", "absolute")
_MAPS = {"all": "RdBu_r", "positive": "Reds", "negative": "Blues", "absolute": "magma"}


def _check_numbers(name: str, t: Tensor) -> None:
    readable(name, t)
    if t.is_complex() or t.is_quantized:
        raise fail_kind(name, "a tensor of real numbers", str(t.dtype))


def _plane(a: Tensor, name: str) -> Tensor:
    """One image [H, W] of [H, W], [C, H, W] or [1, C, H, W]: channels are added up."""
    if not isinstance(a, Tensor):
        raise fail_type(name, "a torch.Tensor", a)
    _check_numbers(name, a)
    a = a.detach().float().cpu()
    if a.dim() == 4 and a.shape[0] == 1:
        a = a[0]
    if a.dim() == 3:
        a = a.sum(0)
    if a.dim() != 2:
        raise fail_value(name, "[H, W], [C, H, W] or [1, C, H, W]", tuple(a.shape))
    return a


def _check_axes(ax: Any) -> None:
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        raise fail_type("ax", "a matplotlib.axes.Axes or None", ax)


def scale_of(values: Tensor, percentile: float = 99.0) -> float:
    """The size that is drawn at full colour: a percentile of |values|, so that a few spikes do not
    leave the rest blank."""
    flat = values.abs().flatten()
    if not flat.numel():
        return 1.0
    return float(torch.quantile(flat[:: max(1, flat.numel() // 2**20)], percentile / 100)) or 1.0


def plot(
    attributions: Tensor,
    image: Tensor | None = None,
    *,
    sign: str = "all",
    percentile: float = 99.0,
    alpha: float = 0.75,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws attributions of an image as colours, over the image in grey if it is given.

    Args:
        attributions: [H, W], [C, H, W] or [1, C, H, W]; channels are added up.
        image: the same forms; any range.
        sign: which are shown: "all" (red for, blue against), "positive", "negative", "absolute".
        percentile: of |attributions| that gets the full colour.
        alpha: opacity of the colours over an image.
        title, colorbar: above and beside the picture.
        ax: where to draw; default a new figure.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: bad arguments.
    """
    import matplotlib.pyplot as plt

    one_of("sign", sign, SIGNS)
    flags(colorbar=colorbar)
    _check_axes(ax)
    number("alpha", alpha)
    number("percentile", percentile)
    if not 0 < percentile <= 100:
        raise fail_value("percentile", "a number in (0, 100]", percentile)
    values = _plane(attributions, "attributions")
    grey = None if image is None else _plane(image, "image")
    if grey is not None and grey.shape != values.shape:
        raise fail_value("image", f"the size of the attributions, {tuple(values.shape)}",
                         tuple(grey.shape))  # fmt: skip
    if sign == "positive":
        values = values.clamp_min(0)
    elif sign == "negative":
        values = (-values).clamp_min(0)
    elif sign == "absolute":
        values = values.abs()
    if ax is None:
        height, width = values.shape
        _, ax = plt.subplots(figsize=(4.2, 3.6 * max(0.5, min(2.0, height / width))))
    top = scale_of(values, percentile)
    low = -top if sign == "all" else 0.0
    if grey is not None:
        ax.imshow(grey, cmap="gray", interpolation="nearest")
    # Where nothing is attributed, the image shows.
    opacity: Any = None if grey is None else alpha * (values.abs() / top).clamp(0, 1).numpy()
    shown = ax.imshow(
        values, cmap=_MAPS[sign], vmin=low, vmax=top, alpha=opacity, interpolation="nearest"
    )
    ax.set_xticks([])
    ax.set_yticks([])
    if title is not None:
        ax.set_title(title, fontsize=10)
    if colorbar:
        bar = plt.colorbar(
            plt.cm.ScalarMappable(shown.norm, shown.cmap), ax=ax, fraction=0.046, pad=0.03
        )
        bar.ax.tick_params(labelsize=8)
    return ax


def plot_series(
    attributions: Tensor,
    series: Tensor | None = None,
    *,
    x: Tensor | None = None,
    labels: tuple[str, str] = ("time", "attribution"),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws attributions of a series as bars above and below zero, with the series as a line.

    Args:
        attributions: [T], or [C, T] with channels added up.
        series: the same, drawn on a scale of its own.
        x: positions [T], for instance frequencies; default 0 .. T - 1.
        labels: of the two axes. title: above them. ax: to draw on; None makes a figure.

    Returns:
        The axes of the bars.

    Raises:
        TypeError, ValueError: bad arguments.
    """
    import matplotlib.pyplot as plt

    _check_axes(ax)
    if not isinstance(labels, (tuple, list)) or len(labels) != 2:
        raise fail_type("labels", "two strings", labels)
    rows = []
    for name, t in (("attributions", attributions), ("series", series)):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise fail_type(name, "a torch.Tensor", t)
        _check_numbers(name, t)
        t = t.detach().float().cpu()
        t = t.sum(0) if t.dim() == 2 else t
        if t.dim() != 1:
            raise fail_value(name, "[T] or [C, T]", tuple(t.shape))
        rows.append(t)
    if not rows:
        raise fail_type("attributions", "a torch.Tensor", attributions)
    if len(rows) == 2 and rows[0].shape != rows[1].shape:
        raise fail_value("series", f"{len(rows[0])} values", len(rows[1]))
    if x is None:
        places = torch.arange(len(rows[0]))
    else:
        if not isinstance(x, Tensor):
            raise fail_type("x", "a torch.Tensor or None", x)
        _check_numbers("x", x)
        places = x.detach().cpu()
    if places.shape != rows[0].shape:
        raise fail_value("x", f"{len(rows[0])} positions", tuple(places.shape))
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
    width = float(places.diff().min()) if len(places) > 1 else 1.0
    colors = ["#b2182b" if v > 0 else "#2166ac" for v in rows[0].tolist()]
    ax.bar(places, rows[0], width=0.9 * width, color=colors)
    ax.axhline(0, color="#888888", linewidth=0.6)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if len(rows) == 2:
        line = ax.twinx()
        line.plot(places, rows[1], color="#444444", linewidth=0.9)
        line.set_yticks([])
        for side in ("top", "right"):
            line.spines[side].set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=10)
    return ax
