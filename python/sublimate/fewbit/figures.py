"""Pictures of the few-bit section of the demo's report, as inline SVG."""

from __future__ import annotations

import torch

from .._figures import FAINT, axes_of, style, svg
from .._report import Figure
from .codebook import default_codebook
from .reference import FUNCTIONS

#: Exact in grey; more bits, deeper blue.
COLOURS = {
    "exact": "#8a8f98",
    "1 bit": "#f0a35e",
    "2 bits": "#7cc4b8",
    "3 bits": "#3d8fd1",
    "4 bits": "#1d4e89",
}


def draw(
    epochs: int,
    curves: dict[str, tuple[list[float], list[float]]],
    kept: dict[str, tuple[int, int]],
    bits: tuple[int, ...],
) -> list[Figure]:
    """The three pictures.

    Args:
        curves: mode -> (training loss, test accuracy) of each epoch.
        kept: mode -> bytes kept for backward (by GELU layers, by the rest of the model).
        bits: widths whose codes are drawn.
    """
    with style():
        return [_training(epochs, curves), _memory(kept), _codes(bits)]


def _training(epochs: int, curves: dict[str, tuple[list[float], list[float]]]) -> Figure:
    figure, (left, right) = axes_of(1, 2, 9.5, 3.4)
    x = range(1, epochs + 1)
    for name, (losses, accuracies) in curves.items():
        look = {"color": COLOURS[name], "lw": 4 if name == "exact" else 1.8}
        look["alpha"] = 0.6 if name == "exact" else 1.0
        left.plot(x, losses, label=name, **look)
        right.plot(x, [100 * a for a in accuracies], label=name, **look)
    left.set(title="Training loss", xlabel="epoch", yscale="log")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.yaxis.set_minor_formatter("")
    right.set(title="Accuracy on unseen digits (%)", xlabel="epoch")
    best = 100 * max(max(a) for _, a in curves.values())
    if best > 50:  # the end matters, not the climb
        right.set_ylim(best - 18, best + 1)
    right.axhline(best, color=FAINT, lw=1, zorder=0)
    right.annotate(f"best {best:.1f}", (1, best), (0, 3), textcoords="offset points", fontsize=9)
    for axes in (left, right):
        axes.grid(axis="y", color=FAINT, lw=0.6, alpha=0.7)
        axes.margins(x=0.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right")
    return Figure(
        "Learning",
        "Each line is one copy of the model; the thick grey one keeps everything. "
        "Where the lines lie on top of one another, the few bits lose nothing.",
        svg(figure, "training"),
    )


def _memory(kept: dict[str, tuple[int, int]]) -> Figure:
    figure, axes = axes_of(1, 1, 9.5, 3.2)
    names = list(kept)[::-1]
    gelu = [kept[n][0] / 2**20 for n in names]
    rest = [kept[n][1] / 2**20 for n in names]
    axes.barh(names, rest, color=FAINT, label="rest of the model", height=0.62)
    axes.barh(
        names, gelu, left=rest, color=[COLOURS[n] for n in names], height=0.62, label="GELU layers"
    )
    exact = kept["exact"][0] / 2**20
    for name, part, other in zip(names, gelu, rest, strict=True):
        factor = "" if name == "exact" else f"  ({exact / part:.0f} times less)"
        shown = f"GELU {part:.2f} MiB{factor}"
        axes.annotate(
            shown, (part + other, name), (6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set(xlabel="MiB kept from forward to backward, one batch")
    axes.set_xlim(0, 1.32 * max(g + r for g, r in zip(gelu, rest, strict=True)))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, lw=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    return Figure(
        "Memory kept for backward",
        "Grey: what the other layers keep. Coloured: what the GELU layers keep, 32 bits per "
        "number when exact, 1 to 4 bits with ours.",
        svg(figure, "memory"),
    )


def _codes(bits: tuple[int, ...]) -> Figure:
    figure, grid = axes_of(1, len(bits), 9.5, 3.1, sharey=True)
    x = torch.linspace(-3.5, 3.5, 1401, dtype=torch.float64)
    true = FUNCTIONS["gelu"].derivative(x)
    for axes, b in zip(grid, bits, strict=True):
        codebook = default_codebook("gelu", b, mode="auto")
        name = f"{b} bit{'s' if b > 1 else ''}"
        step = codebook.decode(x)
        axes.fill_between(x, true, step, color=COLOURS[name], alpha=0.22, lw=0)
        axes.plot(x, true, color=COLOURS["exact"], lw=2.4, label="slope f'(x) of GELU")
        axes.plot(x, step, color=COLOURS[name], lw=1.6, label="its code")
        error = (codebook.mse or 0.0) ** 0.5
        axes.set(title=f"{name}: {2**b} levels", xlabel="input")
        axes.annotate(
            f"error {error:.3f}", (0.97, 0.06), xycoords="axes fraction", ha="right", fontsize=9
        )
        axes.grid(axis="y", color=FAINT, lw=0.6, alpha=0.7)
    grid[0].set_ylabel("slope")
    handles, labels = grid[-2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return Figure(
        "The slope and its code",
        "Backward needs only the slope of GELU at each input (grey). We keep the number of a step "
        "near it (coloured). The shaded gap is the error; its typical size, for inputs around "
        "zero with spread one, is printed below.",
        svg(figure, "codes"),
    )
