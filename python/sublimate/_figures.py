"""Pictures of the demo's report: one look, as inline SVG. Needs matplotlib, imported on use."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import Any

INK, FAINT = "#2b2f36", "#d9dde3"


def style() -> AbstractContextManager[None]:
    """The look of all pictures, while it is active."""
    import matplotlib

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "legend.frameon": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "sublimate",
    }
    return matplotlib.rc_context(settings)


def axes_of(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Any, Any]:
    """A figure of width x height inches and its axes."""
    # The object interface, so that no window system and no global figure is touched.
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def svg(figure: Any, prefix: str) -> str:
    """The <svg> element alone, its ids made unique in the page by the prefix."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    # The page decides the width; the view box keeps the shape.
    return re.sub(r'<svg ([^>]*?)width="[^"]*" ?', r"<svg \1", text, count=1).replace(
        re.search(r'height="[^"]*pt" ?', text).group(0),  # type: ignore[union-attr]
        "",
        1,
    )
