"""What README.md shows of the results: a table, a sentence of losses and a chart, of one CSV."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from . import plots, record, report
from .report import CsvRow

RESULTS = record.RESULTS / "amd-epyc.csv"
README = record.ROOT / "README.md"
CHART = record.ROOT / "bench" / "plots" / "overview.png"
BEGIN, END = "<!-- measured: written by `sublimate bench --refresh` -->", "<!-- end of measured -->"

_LINEAR = "randomized_linear/linear"
#: (what the chart calls it, case, provider, mode, peer). Losses are among them.
SHOWN = (
    ("GELU, 3 bits, fp32", "fewbit/gelu/3bit/float32/2^24/cpu", "cpu", "both", "eager"),
    ("GELU, 3 bits, bf16", "fewbit/gelu/3bit/bfloat16/2^24/cpu", "cpu", "both", "eager"),
    ("SiLU, 3 bits, fp32", "fewbit/silu/3bit/float32/2^24/cpu", "cpu", "both", "eager"),
    ("SwiGLU, 3 bits, bf16", "fewbit/swiglu/3bit/bfloat16/1024x14336/cpu", "cpu", "both", "eager"),
    ("GELU of 8 elements", "fewbit/gelu/3bit/float32/8/cpu", "cpu", "both", "eager"),
    ("SRHT at 0.2, fp32", f"{_LINEAR}/ratio0.2/float32/4096x768-3072/cpu", "cpu-srht", "both",
     "eager"),
    ("SRHT at 0.1, bf16", f"{_LINEAR}/ratio0.1/bfloat16/16384x768-3072/cpu", "cpu-srht", "both",
     "eager"),
    ("Gaussian at 0.2, fp32", f"{_LINEAR}/ratio0.2/float32/4096x768-3072/cpu", "cpu-gaussian",
     "both", "eager"),
    ("integrated gradients, 20 features", "path_integral/integrated/plain/float32/tabular-1/cpu",
     "cpu", "fwd", "captum"),
    ("integrated gradients, MLP", "path_integral/integrated/plain/float32/mlp-64/cpu", "cpu", "fwd",
     "captum"),
    ("integrated gradients, transformer",
     "path_integral/integrated/plain/float32/transformer-8/cpu", "cpu", "fwd", "captum"),
    ("attention over pairs, n = 512", "kronecker_attention/exact/float32/512x32/cpu", "cpu", "both",
     "eager"),
    ("multicut of 2000 nodes", "multicut/default/easy/float32/2000x32/cpu", "cpu", "fwd",
     "sklearn-average"),
    ("multicut of 1000 noisy nodes", "multicut/default/hard/float32/1000x32/cpu", "cpu", "fwd",
     "sklearn-average"),
)  # fmt: skip
_COLOURS = {
    "fewbit": "#3d8fd1",
    "randomized_linear": "#7cc4b8",
    "path_integral": "#b07aa1",
    "kronecker_attention": "#e0915b",
    "multicut": "#5f8f4e",
}
_RIGHT = 2.2  # times the peer, the end of the axis

Key = tuple[str, str, str, str]


def _rows(path: Path) -> dict[Key, CsvRow]:
    return {(r["case"], r["provider"], r["mode"], r["allocator"]): r for r in plots.latest(path)}


def _fewbit(rows: dict[Key, CsvRow], op: str, dtype: str) -> tuple[list[CsvRow], CsvRow]:
    """Our rows of forward, backward and both, and eager's of the forward, warm."""
    case = f"fewbit/{op}/3bit/{dtype}/2^24/cpu"
    ours = [rows[case, "sublimate-cpu", mode, "warm"] for mode in ("fwd", "bwd", "both")]
    return ours, rows[case, "eager", "fwd", "warm"]


def block(path: Path = RESULTS) -> str:
    """The lines between ``BEGIN`` and ``END``.

    Raises:
        KeyError: a row that README.md shows is not in the file.
    """
    rows = _rows(path)
    table, used = [], []
    for name, op in (("GELU", "gelu"), ("SiLU", "silu")):
        for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            ours, eager = _fewbit(rows, op, dtype)
            used += ours
            size = int(eager["elements"])
            kept, whole = (int(r["saved_bytes"]) / size for r in (ours[0], eager))
            times = " | ".join(report.shown(float(r["ratio_eager"])) for r in ours)
            table.append(f"| {name} {short} | {times} | {kept:.3f} against {whole:g} |")
    commits = ", ".join(sorted({r["commit"] for r in used}))
    first = used[0]
    cold = max(
        (float(r["ratio_eager"]), r["op"])
        for r in rows.values()
        if (r["family"], r["provider"], r["mode"], r["allocator"], r["dtype"], r["bits"])
        == ("fewbit", "sublimate-cpu", "fwd", "cold", "float32", "3")
        and int(r["elements"]) > 2**20
    )
    tiny = [
        1e3 * float(rows["fewbit/gelu/3bit/float32/8/cpu", p, "fwd", "warm"]["p50_ms"])
        for p in ("sublimate-cpu", "eager")
    ]
    four = float(
        rows["fewbit/gelu/4bit/float32/2^24/cpu", "sublimate-cpu", "fwd", "warm"]["ratio_eager"]
    )
    name = path.relative_to(record.ROOT).as_posix() if path.is_relative_to(record.ROOT) else path
    return f"""\
Few-bit activations of 2^24 elements, 3 bits, {first["device"]}, {first["threads"]} threads, warm allocator: median time as a multiple
of eager PyTorch's in the same run, less is better, **bold** where we lose ([`{name}`]({name}), {commits}):

| | forward | backward | both | kept, bytes per element |
|---|---|---|---|---|
{chr(10).join(table)}

Where we lose: with a cold allocator (every result freshly mapped) page faults decide, and the fp32 forward takes up to
{cold[0]:.2f} times eager's ({cold[1]}); a forward on 8 elements costs {tiny[0]:.0f} us against {tiny[1]:.0f} us; 4 bits in fp32 take {four:.2f} times
eager's forward. All families, all losses: [docs/performance.md](docs/performance.md).
"""  # noqa: E501


def bars(path: Path = RESULTS) -> list[tuple[str, str, float, str]]:
    """(family, label, our time over the peer's, peer) of each bar whose case is in the file."""
    rows = _rows(path)
    found = []
    for label, case, provider, mode, peer in SHOWN:
        row = rows.get((case, f"sublimate-{provider}", mode, "warm"))
        ratio = report.ratios(row).get(peer) if row else None
        if row and ratio is not None:
            found.append((row["family"], label, ratio, peer))
    return found


def digest(found: list[tuple[str, str, float, str]]) -> str:
    """Tells whether a chart was drawn from these bars; stands in the picture's metadata."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def chart(path: Path = RESULTS, target: Path = CHART) -> Path:
    """Draws the bars, all families, longest at the end of the axis cut."""
    from matplotlib.figure import Figure

    found = bars(path)
    row = plots.latest(path)[-1]
    figure = Figure(figsize=(8.4, 0.29 * len(found) + 1.3), layout="constrained")
    axes = figure.subplots()
    seen: set[str] = set()
    for at, (family, _, ratio, peer) in enumerate(found):
        label = None if family in seen else family
        seen.add(family)
        axes.barh(at, min(ratio, _RIGHT), 0.72, color=_COLOURS[family], label=label)
        text = axes.text(min(ratio, _RIGHT) + 0.02, at, f"{ratio:.2f} of {peer}", fontsize=8)
        text.set(va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axes.axvline(1, color="#2b2f36", lw=0.9)
    axes.set_yticks(range(len(found)), [label for _, label, _, _ in found], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, _RIGHT + 0.45)
    axes.set_xlabel("our time over the peer's: shorter is better, the line is equal", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title(f"{row['device']}, {row['threads']} threads", loc="left", fontsize=10)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120, metadata={"Description": digest(found), "Software": None})
    return target


def replaced(text: str, path: Path = RESULTS) -> str:
    """README.md's text with the block written anew."""
    before, _, rest = text.partition(BEGIN + "\n")
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block(path)}{END}{after}"


def write() -> list[Path]:
    """Rewrites README.md and its chart; returns their paths."""
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
    return [README, chart()]
