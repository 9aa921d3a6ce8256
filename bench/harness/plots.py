"""Pictures from the CSV: times against the peers; what bits cost in error, memory and time."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from . import record

_COLOURS = {"eager": "#8a8f98", "compile": "#c9b458"}
_OURS = ("#3d8fd1", "#1d4e89", "#7cc4b8", "#b07aa1", "#e0915b", "#5f8f4e", "#9c6b4a", "#d4788c")
_MODES = {"fwd": "forward", "bwd": "backward", "both": "both"}
_FAINT = "#d9dde3"


def latest(path: Path) -> list[dict[str, str]]:
    """The newest timed row of each case, mode, provider and allocator."""
    newest: dict[tuple[str, ...], dict[str, str]] = {}
    for row in record.read(path):
        if row["p50_ms"]:
            newest[row["case"], row["mode"], row["provider"], row["allocator"]] = row
    return list(newest.values())


def draw(path: Path, folder: Path) -> list[Path]:
    """Draws all pictures of one CSV into ``folder`` and returns their paths.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            f"plots need matplotlib ({error}); pip install 'sublimate[bench]'"
        ) from error
    rows = latest(path)
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["family"], row["device"], row["allocator"]].append(row)
    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _FAINT,
        "legend.frameon": False,
    }
    drawn = []
    with matplotlib.rc_context(style):
        for (family, device, allocator), part in groups.items():
            stem = f"{record.slug(device)}-{family}-{allocator}"
            drawn.append(_times(part, folder / f"{stem}-times.png"))
            error = _errors(part, folder / f"{stem}-bits.png")
            drawn += [error] if error else []
    return drawn


def _colours(providers: list[str]) -> dict[str, str]:
    ours = [p for p in providers if p not in _COLOURS]
    return {**_COLOURS, **{p: _OURS[k % len(_OURS)] for k, p in enumerate(ours)}}


def _axes(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _heading(rows: list[dict[str, str]]) -> str:
    row = rows[-1]
    return f"{row['device']}, {row['threads']} threads, {row['allocator']} allocator"


def _label(case: str) -> str:
    """The parts of a case's id between family and device, one a line."""
    return "\n".join(case.split("/")[1:-1])


_HIGHEST = 2.5  # times eager, the top of the axes


def _times(rows: list[dict[str, str]], path: Path) -> Path:
    """Bars of the median relative to eager, with p20 to p80; one row of axes a mode.

    A family without eager rows is shown relative to the first peer of each case.
    """
    modes = [m for m in _MODES if any(r["mode"] == m for r in rows)]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    providers = list(dict.fromkeys(r["provider"] for r in rows))
    colours = _colours(providers)
    each = max(1.1, 0.25 * len(providers))
    figure, grid = _axes(len(modes), 1, max(6.0, each * len(cases) + 2), 2.4 * len(modes) + 0.6)
    found = {(r["case"], r["mode"], r["provider"]): r for r in rows}
    peers: dict[tuple[str, str], dict[str, str]] = {}
    for row in sorted(rows, key=lambda r: r["provider"] != "eager"):
        if not row["provider"].startswith("sublimate-"):
            peers.setdefault((row["case"], row["mode"]), row)
    unit_name = "eager" if any(r["provider"] == "eager" for r in rows) else "first peer"
    width = 0.8 / len(providers)
    for axes, mode in zip(grid[:, 0], modes, strict=True):
        for k, provider in enumerate(providers):
            for at, case in enumerate(cases):
                row, base = found.get((case, mode, provider)), peers.get((case, mode))
                if row is None or base is None:
                    continue
                unit = float(base["p50_ms"])
                low, middle, high = (float(row[f"p{q}_ms"]) / unit for q in (20, 50, 80))
                x = at + (k - (len(providers) - 1) / 2) * width
                spread = [[middle - low], [high - middle]]
                label = provider if at == 0 else None
                axes.bar(x, middle, 0.92 * width, color=colours[provider], label=label)
                axes.errorbar(x, middle, spread, color="#2b2f36", lw=0.8)
                if (
                    middle > _HIGHEST
                ):  # cut, so that the others can be read; its value says how much
                    axes.text(x, _HIGHEST, f"{middle:.0f}", ha="center", va="top", fontsize=8)
                if row["bar"]:
                    ends = (x - width / 2, x + width / 2)
                    axes.plot(ends, [float(row["bar"])] * 2, color="#b3261e", lw=1.6)
        axes.axhline(1, color=_COLOURS["eager"], lw=0.8)
        axes.set_ylim(0, min(_HIGHEST, axes.get_ylim()[1]))
        axes.set_ylabel(f"{_MODES[mode]}\ntime / {unit_name}")
        axes.set_xticks(range(len(cases)), [_label(c) for c in cases])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    figure.suptitle(f"{_heading(rows)}; less is better, red line: goal", x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    return path


def _errors(rows: list[dict[str, str]], path: Path) -> Path | None:
    """Gradient error against bytes kept and against time, over the bits of one op and size."""
    both = [r for r in rows if r["mode"] == "both" and r["provider"] not in _COLOURS]
    lines: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in both:
        lines[row["op"], row["dtype"], row["elements"], row["provider"]].append(row)
    lines = {key: part for key, part in lines.items() if len({r["bits"] for r in part}) > 1}
    if not lines:
        return None
    figure, grid = _axes(1, 2, 9, 3.6, sharey=True)
    for colour, (key, part) in zip(_OURS * len(lines), lines.items(), strict=False):
        part = sorted(part, key=lambda r: int(r["bits"]))
        error = [100 * float(r["gradient_error"]) for r in part]
        kept = [8 * int(r["saved_bytes"]) / int(r["elements"]) for r in part]
        ratio = [float(r["ratio_eager"]) if r["ratio_eager"] else float("nan") for r in part]
        label = f"{key[0]} {key[1]}, {key[3]}"
        for axes, x in zip(grid[0], (kept, ratio), strict=True):
            axes.plot(x, error, "o-", color=colour, label=label)
            for a, b, r in zip(x, error, part, strict=True):
                text = f"{r['bits']} bit"
                axes.annotate(text, (a, b), (6, 3), textcoords="offset points", fontsize=8)
    grid[0, 0].set(xlabel="bits kept per element", ylabel="error of the gradient, %", yscale="log")
    grid[0, 1].set(xlabel="forward + backward time / eager")
    grid[0, 0].legend()
    for axes in grid[0]:
        axes.grid(color=_FAINT, lw=0.6)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    figure.suptitle(_heading(rows), x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    return path
