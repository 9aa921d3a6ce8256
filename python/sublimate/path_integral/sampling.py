"""Sums over random points: places on paths, references and noise, each a function of
(seed, sample, point), so that no answer depends on chunks, on the order of the batch or on the
number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _philox
from .._checks import fail_kind
from . import autograd, sequential
from .arguments import fail_value
from .chunks import Problem, pieces
from .path import Sums, report_nan
from .shards import Shards

ALPHA_STREAM, REFERENCE_STREAM = 7, 8
_ALIGN = 4  # random words of a Philox counter: rows start on whole counters
_ROTATION = 2**62  # index of a sample's rotation of the references, beyond those of its points


@dataclass(frozen=True)
class Draws:
    """n points of each of B samples.

    Attributes:
        alpha: (n,) or (n, B), place on the path.
        index: int64 (n, B), row of the references; None where the base is a row of its own.
        weight: (n,).
        sample: int64 (B,), the samples' global numbers.
        stdev: for each input (B,), or None for no noise.
        seed: 0-dim int64.
        total: n of all processes together; point j here is ``first + j * stride`` of them.
    """

    alpha: Tensor
    index: Tensor | None
    weight: Tensor
    sample: Tensor
    stdev: tuple[Tensor, ...] | None
    seed: Tensor
    total: int
    first: int = 0
    stride: int = 1

    @property
    def count(self) -> int:
        return self.alpha.shape[0]

    def points(self, part: slice) -> Draws:
        """Some consecutive ones of these points."""
        return replace(
            self,
            alpha=self.alpha[part],
            index=None if self.index is None else self.index[part],
            weight=self.weight[part],
            first=self.first + part.start * self.stride,
        )

    def samples(self, part: slice) -> Draws:
        """Points of some samples."""
        return replace(
            self,
            alpha=self.alpha if self.alpha.dim() == 1 else self.alpha[:, part].contiguous(),
            index=None if self.index is None else self.index[:, part].contiguous(),
            sample=self.sample[part],
            stdev=None if self.stdev is None else tuple(s[part] for s in self.stdev),
        )

    def shared(self, shards: Shards) -> Draws:
        """Every ``count``-th point: this process's."""
        if not shards.by_points:
            return self
        part = shards.own(self.total)
        if self.total < shards.count:
            raise fail_value("n_samples", f"at least {shards.count}, one a process", self.total)
        return replace(
            self,
            alpha=self.alpha[part].contiguous(),
            index=None if self.index is None else self.index[part].contiguous(),
            weight=self.weight[part].contiguous(),
            first=shards.rank,
            stride=shards.count,
        )

    def noise(self, sizes: list[int], which: int) -> dict[str, Any]:
        """Arguments of ``autograd.points`` for the noise of input ``which``."""
        if self.stdev is None:
            return {}
        padded = [-(-size // _ALIGN) * _ALIGN for size in sizes]
        words = sum(padded)
        row = (self.sample * self.total + self.first) * words + sum(padded[:which])
        return {
            "stdev": self.stdev[which], "seed": self.seed, "row": row, "step": self.stride * words,
        }  # fmt: skip


def sample_numbers(sample_ids: Any, batch: int, device: torch.device) -> Tensor:
    """Global numbers of the samples: 0 .. B - 1, or as given."""
    if sample_ids is None:
        return torch.arange(batch, device=device)
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
        got = str(sample_ids.dtype) if isinstance(sample_ids, Tensor) else type(sample_ids).__name__
        raise fail_kind("sample_ids", "an int64 tensor", got)
    _checks.readable("sample_ids", sample_ids)
    if sample_ids.shape != (batch,):
        raise fail_value("sample_ids", f"shape ({batch},)", tuple(sample_ids.shape))
    return sample_ids.to(device)


def stdevs(stdev: Any, problem: Problem) -> tuple[Tensor, ...] | None:
    """Standard deviation of the noise for each input and sample; None if it is zero."""
    given = tuple(stdev) if isinstance(stdev, (tuple, list)) else (stdev,) * len(problem.x)
    if len(given) != len(problem.x):
        raise fail_value("stdev", f"one for each of {len(problem.x)} inputs", len(given))
    found = []
    for s, x in zip(given, problem.x, strict=True):
        if isinstance(s, Tensor):
            _checks.readable("stdev", s)
            if s.is_complex() or s.is_quantized:
                raise fail_kind("stdev", "real numbers", str(s.dtype))
        else:
            _checks.number("stdev", s)
        value = torch.as_tensor(s, dtype=x.dtype, device=x.device)
        if value.dim() > 1 or value.numel() not in (1, problem.batch):
            raise fail_value("stdev", f"a number or shape ({problem.batch},)", tuple(value.shape))
        if bool((value < 0).any()) or bool(value.isnan().any()):
            raise fail_value("stdev", "numbers >= 0", s)
        found.append(value.reshape(-1).expand(problem.batch).contiguous())
    return None if all(not bool(s.any()) for s in found) else tuple(found)


def random_alphas(seed: Tensor, sample: Tensor, n: int, stratified: bool) -> Tensor:
    """Places (n, B) in [0, 1): one in each of n equal parts, or independent."""
    k = torch.arange(n, device=sample.device)[:, None]
    u = _philox.uniform(seed, sample * n + k, stream=ALPHA_STREAM)
    return (k + u.double()) / n if stratified else u.double()


def random_references(
    seed: Tensor, sample: Tensor, n: int, references: int, stratified: bool
) -> Tensor:
    """Rows of the references, int64 (n, B), each equally likely at every point.

    Stratified: a sample takes every reference equally often, or as nearly as n allows, and pairs
    them with the parts of the path at random.
    """
    k = torch.arange(n, device=sample.device)[:, None]
    key = _philox.words(seed, sample * n + k, stream=REFERENCE_STREAM)
    if not stratified:
        return (key * references) >> 32
    slot = key.argsort(dim=0, stable=True).argsort(dim=0, stable=True)
    turn = _philox.uniform(seed, sample + _ROTATION, stream=REFERENCE_STREAM).double()
    place = ((slot + turn) / n * references).floor().to(torch.int64)
    return place.clamp_(max=references - 1)


def sample_sums(
    problem: Problem,
    base: tuple[Tensor, ...] | None,
    draws: Draws,
    rows: int,
    backend: str,
    *,
    second: bool,
    differences: bool,
) -> Sums:
    """Weighted sums [sum of terms, sum of squared terms] over the draws, in pieces.

    Args:
        base: references [R, E] of each input; None: the samples themselves (noise alone).
        second: whether the squares are wanted.
        differences: terms g (x - reference) instead of gradients g.
    """
    blocks = []
    for part in pieces(problem.batch, min(problem.batch, rows)):
        whole = part.stop - part.start == problem.batch
        sub = problem if whole else problem.select(part)
        own = draws if whole else draws.samples(part)
        blocks.append(_block(sub, base, own, rows, backend, second, differences, part.start))
    if len(blocks) == 1:
        return blocks[0]
    acc = [
        [[torch.cat(parts) for parts in zip(*inputs, strict=True)]
         for inputs in zip(*targets, strict=True)]
        for targets in zip(*(b.acc for b in blocks), strict=True)
    ]  # fmt: skip
    return Sums(acc)


def _front(problem: Problem, draws: Draws) -> sequential.Front | None:
    """A linear layer that begins a perceptron: applied to samples and references instead of to
    every point between them."""
    if draws.stdev is not None or problem.network is None:
        return None
    space = problem.layout[0]
    front = sequential.Front.of(problem.network, space)
    if front is None or front.linear is None or not front.direct > problem.create_graph:
        return None
    return front


def _block(
    problem: Problem,
    base: tuple[Tensor, ...] | None,
    draws: Draws,
    rows: int,
    backend: str,
    second: bool,
    differences: bool,
    first_sample: int,
) -> Sums:
    layout, batch = problem.layout, problem.batch
    start = problem.x if base is None else base
    sizes = [s.size for s in layout]
    acc: list[list[list[Any]]] = []
    front = _front(problem, draws)
    ends = (problem.x, start)
    if front is not None:
        ends = tuple((front.enter(e.detach()),) for (e,) in ends)  # type: ignore[assignment]
    for piece in pieces(draws.count, max(1, rows // batch)):
        own = draws.points(piece)
        alphas = [own.alpha.to(s.acc) for s in layout]
        weights = [own.weight.to(s.acc) for s in layout]
        z = [
            autograd.points(
                x, b, own.index, a, dtype=s.points, backend=backend, **own.noise(sizes, i)
            )
            for i, (x, b, a, s) in enumerate(zip(*ends, alphas, layout, strict=True))
        ]
        for t, (values, grads) in enumerate(problem.gradients(z, front, start)):
            report_nan(values, own.alpha, batch, own.first, first_sample)
            if len(acc) == t:
                acc.append([[None, None] for _ in layout])
            for i, (sums, g, w) in enumerate(zip(acc[t], grads, weights, strict=True)):
                old, square = sums
                if differences:
                    sums[:] = autograd.accumulate_difference(
                        g, w, problem.x[i], start[i], own.index, old, square, second, backend
                    )
                else:
                    sums[:] = autograd.accumulate(g, w, old, square, second, backend)
    return Sums(acc)
