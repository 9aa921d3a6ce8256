"""The sketching section of ``sublimate demo``: fine-tuning a digits transformer with less kept.

A small transformer learns upright digits exactly. From there every mode fine-tunes it to the same
digits lying on their side, with the same batches, five times with other batches and other sketches.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backends, memory
from .._parity import Measurement
from .._report import Figure, Progress, Result, Settings
from . import checks, noise
from .convert import convert
from .reference import SKETCHES

RATIOS = (0.5, 0.2, 0.1)
_WIDTH, _DEPTH, _HEADS = 32, 2, 4
_BATCH, _STEPS, _RATE, _SEEDS = 64, 40, 2e-3, 5
_PRETRAIN, _QUICK_STEPS = 240, 6


class Block(nn.Module):
    """Pre-norm block, projections apart: (B, T, D) -> (B, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.up, self.act, self.down = (
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self._mixed(x))
        y: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return y

    def _mixed(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (
            layer(h).reshape(b, t, _HEADS, d // _HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)


class SmallTransformer(nn.Module):
    """(B, 8, 8) images as 16 patches of 2 x 2 pixels -> (B, 10) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, _WIDTH)
        self.position = nn.Parameter(torch.randn(16, _WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(_DEPTH)))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        patches = image.reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        tokens = self.blocks(self.embed(patches) + self.position)
        scores: Tensor = self.head(self.norm(tokens).mean(1))
        return scores


@dataclass
class Mode:
    """One way to fine-tune. ``sketch`` None: exact linear layers; ``bits`` None: torch's GELU."""

    sketch: str | None = None
    ratio: float = 1.0
    bits: int | None = None
    scores: list[float] = field(default_factory=list)  # test accuracy, one for each seed
    seconds: list[float] = field(default_factory=list)  # of each step
    kept: int = 0
    share: float = 0.0  # median over layers of sketch noise / mini-batch noise
    cosine: float = 1.0
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def name(self) -> str:
        parts = [] if self.sketch is None else [f"{self.sketch} {self.ratio:g}"]
        parts += [] if self.bits is None else [f"{self.bits}-bit GELU"]
        return " + ".join(parts) or "exact"

    @property
    def passed(self) -> bool:
        return all(m.passed for m in self.measurements)

    def prepared(self, model: nn.Module, seed: int, settings: Settings) -> nn.Module:
        model = copy.deepcopy(model)
        if self.sketch is not None:
            convert(model, self.ratio, self.sketch, include="blocks.*", seed=seed)
        if self.bits is not None:
            settings.few_bit(model, self.bits)
        return model


def _digits(seed: int, device: str) -> tuple[Tensor, ...]:
    """Training and test images (N, 8, 8) in [-1, 1] and labels, of scikit-learn's digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    a, b, c, d = (torch.from_numpy(part) for part in parts)
    images = [(t.float() / 8 - 1).reshape(-1, 8, 8) for t in (a, b)]
    return tuple(t.to(device) for t in (images[0], c.long(), images[1], d.long()))


def _train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, seed: int) -> list[float]:
    """Trains in place; seconds of each step."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    took: list[float] = []
    while len(took) < steps:
        for batch in torch.randperm(len(labels), generator=order).split(_BATCH):
            if len(batch) < _BATCH or len(took) == steps:
                break
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            if images.is_cuda:
                torch.cuda.synchronize()
            took.append(time.perf_counter() - start)
    return took


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def _modes(quick: bool) -> list[Mode]:
    if quick:
        return [Mode(), Mode("srht", 0.2), Mode("rows", 0.2), Mode("srht", 0.2, 3)]
    found = [Mode(), Mode(bits=3)]
    for sketch in SKETCHES:
        found += [Mode(sketch, ratio) for ratio in RATIOS]
    return [*found, *(Mode("srht", ratio, 3) for ratio in RATIOS)]


def _loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class SketchSection:
    """See the module's docstring; ``run`` takes about a minute on two cores."""

    name = "randomized linear layers"

    def run(self, settings: Settings, progress: Progress) -> Result:
        """Trains, measures and draws; torch's thread count is what it was afterwards."""
        before = torch.get_num_threads()
        if settings.device == "cpu":
            torch.set_num_threads(1)  # the model is too small to be shared out
        try:
            return self._run(settings, progress)
        finally:
            torch.set_num_threads(before)

    def _run(self, settings: Settings, progress: Progress) -> Result:
        images, labels, test, test_labels = _digits(settings.seed, settings.device)
        steps = _QUICK_STEPS if settings.quick else _STEPS
        repeats = 2 if settings.quick else _SEEDS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            start = SmallTransformer().to(settings.device)
        progress(0, 1, "learning upright digits")
        _train(start, images, labels, _QUICK_STEPS if settings.quick else _PRETRAIN, settings.seed)
        turned, turned_test = images.transpose(1, 2).flip(1), test.transpose(1, 2).flip(1)
        modes = _modes(settings.quick)
        total = len(modes) * (repeats + 1)
        done = 0
        for repeat in range(repeats):
            # In turn, in rotating order, so that all meet the same machine.
            turn = repeat * (len(modes) // repeats)
            for mode in modes[turn:] + modes[:turn]:
                seed = settings.seed + 1000 * (repeat + 1)
                model = mode.prepared(start, seed, settings)
                mode.seconds += _train(model, turned, labels, steps, seed)
                mode.scores.append(_accuracy(model, turned_test, test_labels))
                done += 1
                progress(done, total, f"fine-tuning, run {repeat + 1} of {repeats}")
        batches = list(zip(turned.split(_BATCH)[:6], labels.split(_BATCH)[:6], strict=True))
        verdicts: dict[str, list[Measurement]] = {}
        for mode in modes:
            model = mode.prepared(start, settings.seed, settings)
            mode.kept = int(memory.saved_bytes(model, batches[0][0]))
            if mode.sketch is not None:
                report = noise.noise_report(model, batches, loss=_loss)
                inside = [n for n in report if n.name.startswith("blocks.")]
                mode.share = statistics.median(n.share for n in inside)
                mode.cosine = statistics.median(n.cosine for n in inside)
                if mode.sketch not in verdicts:
                    probe = torch.zeros(1, device=settings.device)
                    backend = _backends.resolve("randomized_linear", None, probe)
                    verdicts[mode.sketch] = checks._linear(
                        mode.sketch, torch.float32, backend, settings.device
                    )
                mode.measurements = verdicts[mode.sketch]
            done += 1
            progress(done, total, "measuring memory, noise and parity")
        return _result(modes, _accuracy(start, turned_test, test_labels), steps, settings)


section = SketchSection()


# ------------------------------------------------------------------------------------- results


def _score(mode: Mode) -> tuple[float, float]:
    return statistics.mean(mode.scores), statistics.stdev(mode.scores)


def _step(mode: Mode) -> float:
    return statistics.median(mode.seconds)


def _result(modes: list[Mode], before: float, steps: int, settings: Settings) -> Result:
    exact = modes[0]
    both = next(m for m in modes if m.bits and m.sketch and m.ratio == 0.2)
    rows, data = [], []
    for m in modes:
        mean, spread = _score(m)
        sketched = m.sketch is not None
        rows.append(
            [
                m.name,
                f"{100 * mean:.1f} ± {100 * spread:.1f} %",
                f"{m.kept / 2**10:.0f} KiB",
                f"{100 * (m.kept / exact.kept - 1):+.0f} %",
                f"{1e3 * _step(m):.1f} ms",
                f"{_step(m) / _step(exact):.2f}x",
                f"{m.share:.2f}" if sketched else "0",
                f"{m.cosine:.2f}" if sketched else "1",
                "—" if not sketched else "pass" if m.passed else "FAIL",
            ]
        )
        data.append(
            {
                "mode": m.name,
                "sketch": m.sketch,
                "ratio": m.ratio,
                "bits": m.bits,
                "accuracies": m.scores,
                "kept_bytes": m.kept,
                "step_seconds": _step(m),
                "noise_share": m.share,
                "cosine": m.cosine,
                "parity": m.passed if sketched else None,
            }
        )
    repeats = len(exact.scores)
    return Result(
        title="Randomized linear layers",
        setting=(
            f"A transformer ({_DEPTH} blocks, width {_WIDTH}) that has learned upright digits "
            f"({100 * before:.0f} % right on digits lying on their side) is fine-tuned to those "
            "for "
            f"{steps} steps of {_BATCH} images, {16 * _BATCH} rows; {repeats} runs of each mode."
        ),
        finding=(
            f"{both.name} keeps {100 * (1 - both.kept / exact.kept):.0f} % less than exact, at "
            f"{100 * _score(both)[0]:.1f} ± {100 * _score(both)[1]:.1f} % accuracy against "
            f"{100 * _score(exact)[0]:.1f} ± {100 * _score(exact)[1]:.1f} %."
        ),
        columns=[
            "mode", "test accuracy", "kept, model", "against exact", "step", "step ratio",
            "noise share", "gradient cosine", "parity",
        ],
        rows=rows,
        notes=[
            f"test accuracy: mean and standard deviation of {repeats} runs with other batches and "
            "sketches",
            "kept: bytes held from forward to backward for one batch",
            "noise share: variance that the sketch adds to a layer's gradient over that between "
            "mini-batches, before fine-tuning; median of layers",
            "gradient cosine: of a layer's sketched and exact gradient, by the variance; median",
            "step: on one thread; a layer this small is mostly overhead, see bench for real sizes",
        ],
        figures=[_figure(modes)],
        data={"modes": data, "before": before, "seeds": repeats, "steps": steps},
        passed=all(m.passed for m in modes),
    )  # fmt: skip


def _figure(modes: list[Mode]) -> Figure:
    """Accuracy with its spread against the kept bytes."""
    import io

    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9.5, 4), layout="constrained")
    axes: Any = figure.subplots()
    palette = [
        "#f0a35e",
        "#d1603d",
        "#3d8fd1",
        "#7cc4b8",
        "#1d4e89",
        "#8f6bb3",
        "#5c9e4a",
        "#c2528b",
    ]
    names = list(dict.fromkeys((m.sketch or "exact", m.bits) for m in modes))
    for place, (sketch, bits) in enumerate(names):
        chosen = [m for m in modes if (m.sketch or "exact", m.bits) == (sketch, bits)]
        colour = "#8a8f98" if sketch == "exact" else palette[(place - 2) % len(palette)]
        axes.errorbar(
            [m.kept / 2**10 for m in chosen],
            [100 * _score(m)[0] for m in chosen],
            [100 * _score(m)[1] for m in chosen],
            marker="s" if bits else "o", ms=5, lw=1.2, capsize=2, color=colour,
            label=sketch + (f" + {bits}-bit GELU" if bits else ""),
        )  # fmt: skip
    axes.set_xlabel("kept for backward, KiB")
    axes.set_ylabel("test accuracy, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace('id="', 'id="sketch-').replace("url(#", "url(#sketch-")
    return Figure(
        "Accuracy against memory",
        "Each point is one mode, the bar its standard deviation over runs; left keeps less.",
        svg.replace('href="#', 'href="#sketch-'),
    )
