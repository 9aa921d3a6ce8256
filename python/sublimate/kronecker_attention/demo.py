"""The Kronecker attention section of ``sublimate demo``: Match3, and a language-model step.

Match3: does a position i have j and k with x_i + x_j + x_k = 0 mod m? One layer of ordinary
attention sees pairs of positions, one of this family's sees triples. Both get the same input (the
numbers as points on circles), width, heads, batches and steps, and ordinary attention the wider
feed-forward part. Sequences are drawn so that numbers and pairs of numbers tell next to nothing
about the answer, and accuracy is the mean over the two answers: 50 % is chance. Then a causal
language model of characters with two windows is trained on text that ships with Python.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backends, _figures
from .._parity import Measurement
from .._report import Figure, Progress, Result, Settings
from . import checks
from .modules import KroneckerAttention

MODULUS, LENGTH, SEEDS = 41, 8, 3
#: Turns of the circles that numbers are put on: sums away from 0 are far from it on one of them.
FREQUENCIES, RADIUS = (1, 7, 11), 4 * 3**-0.5
#: Balanced accuracy of any answer that does not depend on the triples.
CHANCE = 0.5
_WIDTH, _HEADS, _BATCH, _STEPS, _RATE = 32, 4, 128, 300, 1e-2
_QUICK_STEPS, _EVERY, _HELD_OUT = 8, 20, 2000
_CONTEXT, _WINDOW, _TEXT_STEPS, _TEXT_BATCH = 64, (16, 48), 60, 8


class Ordinary(nn.Module):
    """Softmax attention in the module's form: (B, N, E) -> ((B, N, E), None)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.heads = heads

    def forward(self, x: Tensor, is_causal: bool = False) -> tuple[Tensor, None]:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _attention(kind: str, width: int, heads: int, **options: Any) -> nn.Module:
    if kind == "ordinary":
        return Ordinary(width, heads)
    return KroneckerAttention(width, heads, **options)


class Matcher(nn.Module):
    """One layer for Match3: (B, N) numbers -> (B, N) scores; a start token is attended to as well.

    The ordinary layer's feed-forward part is wider, so that it has no fewer parameters.
    """

    circles: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        angle = torch.tensor(FREQUENCIES)[:, None] * torch.arange(MODULUS) * 2 * math.pi / MODULUS
        points = RADIUS * torch.cat((angle.cos(), angle.sin())).T
        start = torch.zeros(1, points.shape[1])
        self.register_buffer("circles", torch.cat((points, start)))
        self.embed = nn.Linear(points.shape[1], _WIDTH)
        self.start = nn.Parameter(torch.randn(_WIDTH) * 0.1)
        self.attention = _attention(kind, _WIDTH, _HEADS)
        self.norm = nn.LayerNorm(_WIDTH)
        hidden = _WIDTH * (4 if kind == "ordinary" else 2)
        self.forward_part = nn.Sequential(
            nn.Linear(_WIDTH, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 0), value=MODULUS)
        h = self.embed(self.circles[x]) + (x == MODULUS).unsqueeze(-1) * self.start
        h = h + self.attention(h)[0]
        scores: Tensor = self.forward_part(self.norm(h))[:, 1:, 0]
        return scores


def match3(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, N) numbers below m, and for each whether it is part of a triple with sum 0 mod m.

    Pairs of positions would answer part of that: 2 x_i + x_j = 0 is a triple, and equal or opposite
    numbers leave no room for one. So 0 is not drawn, nor are two numbers with such a relation: then
    any pair that occurs has one third number that completes it, and that may occur. All numbers
    are alike (multiplication by a unit maps draws to draws), and so, nearly, are all pairs.
    """
    a, b = torch.arange(MODULUS)[:, None], torch.arange(MODULUS)
    apart = (a - b) * (a + b) * (2 * a + b) * (a + 2 * b) % MODULUS != 0
    free, drawn = torch.ones(count, MODULUS), []
    free[:, 0] = 0
    for _ in range(LENGTH):
        drawn.append(torch.multinomial(free, 1, generator=generator)[:, 0])
        free = free * apart[drawn[-1]]
    x = torch.stack(drawn, 1)
    total = x[:, :, None, None] + x[:, None, :, None] + x[:, None, None, :]
    return x, (total % MODULUS == 0).flatten(2).any(-1)


def balanced_accuracy(answers: Tensor, labels: Tensor) -> float:
    """Mean of the shares of right answers among the true and among the false labels."""
    right = (answers == labels).double()
    return float((right[labels].mean() + right[~labels].mean()) / 2)


def balanced_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Logistic loss in which both labels weigh the same."""
    share = labels.double().mean()
    weights = torch.where(labels, 0.5 / share, 0.5 / (1 - share)).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), weights)


class Characters(nn.Module):
    """One causal block over characters: (B, T) -> (B, T, vocabulary)."""

    def __init__(self, kind: str, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, _WIDTH)
        self.position = nn.Parameter(torch.randn(_CONTEXT, _WIDTH) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = _attention(kind, _WIDTH, _HEADS, window=_WINDOW)
        self.forward_part = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )
        self.head = nn.Linear(_WIDTH, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        h = h + self.attention(self.norm1(h), is_causal=True)[0]
        h = h + self.forward_part(self.norm2(h))
        scores: Tensor = self.head(h)
        return scores


def corpus() -> str:
    """Docstrings of standard library modules: text that every Python has."""
    import argparse
    import decimal
    import difflib
    import email
    import heapq
    import logging
    import pickle
    import statistics
    import typing
    import unittest

    modules = (
        argparse, decimal, difflib, email, heapq, logging, pickle, statistics, typing, unittest,
    )  # fmt: skip
    parts = []
    for module in modules:
        parts.append(module.__doc__ or "")
        for value in vars(module).values():
            text = getattr(value, "__doc__", None)
            if isinstance(value, type) and isinstance(text, str):
                parts.append(text)
    return "\n".join(parts).encode("ascii", "ignore").decode()


@dataclass
class Run:
    """The training of one kind of model; accuracy: of each seed, after each of ``steps``."""

    kind: str
    parameters: int = 0
    steps: list[int] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    text_loss: list[float] = field(default_factory=list)
    text_seconds: float = 0.0


def _train_match(run: Run, seed: int, settings: Settings, tell: Any) -> None:
    steps = _QUICK_STEPS if settings.quick else _STEPS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Matcher(run.kind).to(settings.device)
    draw = torch.Generator().manual_seed(seed + 1)
    held, labels = match3(_HELD_OUT, torch.Generator().manual_seed(seed + 2))
    held = held.to(settings.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps, pct_start=0.1)
    run.parameters = sum(p.numel() for p in model.parameters())
    run.steps, accuracy = [], []
    for step in range(steps):
        x, y = (t.to(settings.device) for t in match3(_BATCH, draw))
        start = time.perf_counter()
        loss = balanced_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        run.seconds += time.perf_counter() - start
        if step % _EVERY == _EVERY - 1 or step == steps - 1:
            with torch.no_grad():
                accuracy.append(balanced_accuracy((model(held) > 0).cpu(), labels))
            run.steps.append(step + 1)
        tell(step)
    run.accuracy.append(accuracy)


def _train_text(run: Run, settings: Settings, tell: Any) -> None:
    text = corpus()
    letters = sorted(set(text))
    at = {c: i for i, c in enumerate(letters)}
    codes = torch.tensor([at[c] for c in text])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Characters(run.kind, len(letters)).to(settings.device)
    draw = torch.Generator().manual_seed(settings.seed + 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(2 if settings.quick else _TEXT_STEPS):
        first = torch.randint(len(codes) - _CONTEXT - 1, (_TEXT_BATCH,), generator=draw)
        rows = torch.stack([codes[i : i + _CONTEXT + 1] for i in first.tolist()])
        rows = rows.to(settings.device)
        start = time.perf_counter()
        scores = model(rows[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.text_seconds += time.perf_counter() - start
        run.text_loss.append(float(loss.detach()) / math.log(2))
        tell(step)


class KroneckerSection:
    """See the module's docstring; ``run`` takes under a minute on two cores."""

    name = "Kronecker attention"

    def run(self, settings: Settings, progress: Progress) -> Result:
        """Trains, measures and draws; torch's thread count is what it was afterwards."""
        before = torch.get_num_threads()
        if settings.device == "cpu":
            torch.set_num_threads(1)  # the models are too small to be shared out
        try:
            return self._run(settings, progress)
        finally:
            torch.set_num_threads(before)

    def _run(self, settings: Settings, progress: Progress) -> Result:
        steps = _QUICK_STEPS if settings.quick else _STEPS
        runs = [Run("ordinary"), Run("kronecker")]
        total, done = len(runs) * SEEDS * steps, 0
        for seed in range(SEEDS):
            for run in runs:
                _train_match(
                    run, settings.seed + 10 * seed, settings,
                    lambda s, d=done, k=run.kind: progress(d + s, total, f"Match3, {k}"),
                )  # fmt: skip
                done += steps
        for run in runs:
            _train_text(
                run, settings, lambda s, r=run: progress(total - 1, total, f"text, {r.kind}")
            )
        progress(total, total, "parity")
        probe = torch.zeros(1, device=settings.device)
        backend = _backends.resolve("kronecker_attention", None, probe)
        measurements: list[Measurement] = []
        for shape in ("full", "windows"):
            measurements += checks.measure(shape, "exact", torch.float32, backend, settings.device)
        passed = all(m.passed for m in measurements)
        return _result(runs, steps, passed)


section = KroneckerSection()


# ------------------------------------------------------------------------------------- results


def _last(run: Run) -> str:
    """The accuracies at the end, lowest to highest of all seeds."""
    found = sorted({f"{100 * a[-1]:.1f}" for a in run.accuracy}, key=float)
    return f"{found[0]} to {found[-1]} %" if len(found) > 1 else f"{found[0]} %"


def _result(runs: list[Run], steps: int, passed: bool) -> Result:
    ordinary, ours = runs
    rows = [
        [
            run.kind,
            f"{run.parameters:,}",
            _last(run),
            f"{1e3 * run.seconds / (SEEDS * steps):.1f} ms",
            f"{run.text_loss[0]:.2f} -> {run.text_loss[-1]:.2f}",
            f"{1e3 * run.text_seconds / len(run.text_loss):.1f} ms",
            "—" if run is ordinary else "pass" if passed else "FAIL",
        ]
        for run in runs
    ]
    return Result(
        title="Kronecker attention",
        setting=(
            f"Match3: {LENGTH} numbers mod {MODULUS}; which are part of a triple with sum 0? One "
            f"layer, width {_WIDTH}, {_HEADS} heads, {steps} steps of {_BATCH} sequences, {SEEDS} "
            f"seeds. Accuracy is the mean over both answers: chance is {100 * CHANCE:.0f} %."
        ),
        finding=(
            f"Attention over pairs of keys is right in {_last(ours)} of cases, ordinary attention "
            f"with no fewer parameters in {_last(ordinary)}: chance is {100 * CHANCE:.0f} %."
        ),
        columns=[
            "attention", "parameters", "Match3 accuracy", "step", "text bits", "text step",
            "parity",
        ],
        rows=rows,
        notes=[
            f"Match3 accuracy: on {_HELD_OUT} sequences that were not trained on; numbers and "
            "pairs of numbers tell next to nothing about the answer",
            f"text bits: of a character before and after {len(ours.text_loss)} steps of a causal "
            f"model on docstrings of the standard library, context {_CONTEXT}, windows {_WINDOW}",
            "step: on one thread; ordinary attention reads fewer tuples and is cheaper",
        ],
        figures=[_figure(runs)],
        data={
            "chance": CHANCE,
            "runs": [
                {
                    "attention": run.kind, "parameters": run.parameters, "steps": run.steps,
                    "accuracy": run.accuracy, "text_bits": run.text_loss,
                }
                for run in runs
            ],
        },
        passed=passed,
    )  # fmt: skip


def _figure(runs: list[Run]) -> Figure:
    """Accuracy on Match3, and bits of a character, by steps."""
    with _figures.style():
        figure, (left, right) = _figures.axes_of(1, 2, 9.5, 3.6)
        for run, colour in zip(runs, ("#8a8f98", "#1d4e89"), strict=True):
            for at, accuracy in enumerate(run.accuracy):
                label = run.kind if at == 0 else None
                left.plot(run.steps, [100 * a for a in accuracy], color=colour, label=label)
            right.plot(run.text_loss, color=colour, label=run.kind)
        left.axhline(100 * CHANCE, color="#d1603d", lw=1, ls=":", label="chance")
        left.set_xlabel("steps")
        left.set_ylabel("Match3, % right")
        left.legend(fontsize=8)
        right.set_xlabel("steps")
        right.set_ylabel("bits of a character")
        text = _figures.svg(figure, "kronecker")
    return Figure(
        "A triple is what pairs of positions cannot see",
        "Left: held-out accuracy on Match3, every seed. Right: a causal character model with two "
        "windows.",
        text,
    )
