"""GradientShap: expected gradients with noise on the input, drawn as Captum draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._checks import integer_between
from . import autograd
from .arguments import Forward
from .chunks import Limits, Problem, frozen, pieces, run_halving
from .expected import flat_references
from .path import report_nan, setup, shaped, with_extras
from .sampling import (
    Draws,
    random_alphas,
    random_references,
    sample_numbers,
)
from .sampling import (
    stdevs as checked_stdevs,
)
from .shards import seed_tensor


def gradient_shap(
    forward: Forward,
    inputs: Any,
    baselines: Any,
    target: Any = None,
    *,
    n_samples: int = 5,
    stdevs: Any = 0.0,
    stratified: bool = False,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    additional_forward_args: Any = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
    multiply_by_inputs: bool = True,
    backend: str | None = None,
) -> Any:
    """Mean of (x' - r) g(r + a (x' - r)) over noisy inputs x', references r and places a.

    Args:
        baselines: references [R, ...], a tuple, or a function of inputs.
        stdevs: of the noise on each input.
        What is not named here: as in ``expected_gradients``.

    Returns:
        Attributions; then delta of every draw (B * n_samples,), sample by sample, if asked for.
    """
    problem, tensors, single, chosen = setup(
        forward, inputs, target, False, additional_forward_args, create_graph, backend
    )
    _checks.flags(
        stratified=stratified, return_convergence_delta=return_convergence_delta,
        multiply_by_inputs=multiply_by_inputs,
    )  # fmt: skip
    integer_between("n_samples", n_samples, 1, 2**31)
    _checks.seed("seed", seed)
    limits = Limits.of(memory_budget, internal_batch_size)
    with torch.set_grad_enabled(create_graph):
        base = flat_references(baselines, problem, tensors[0] if single else tensors)
    device = problem.x[0].device
    start = seed_tensor(seed, device)
    sample = sample_numbers(sample_ids, problem.batch, device)
    n = n_samples
    draws = Draws(
        random_alphas(start, sample, n, stratified),
        random_references(start, sample, n, base[0].shape[0], stratified),
        torch.full((n,), 1 / n, dtype=torch.float64, device=device),
        sample,
        checked_stdevs(stdevs, problem),
        start,
        n,
    )
    with frozen(forward, not create_graph), torch.set_grad_enabled(create_graph):
        rows = limits.choose(problem, n)
        (sums, deltas), rows = run_halving(
            rows,
            lambda r: _sums(problem, base, draws, r, chosen, multiply_by_inputs,
                            return_convergence_delta),
        )  # fmt: skip
    result = shaped([sums], problem.layout, problem.target, single, not multiply_by_inputs)
    delta = deltas.t().reshape(-1) if return_convergence_delta else None
    return with_extras(result, delta, return_convergence_delta, None, False)


def _sums(
    problem: Problem,
    base: tuple[Tensor, ...],
    draws: Draws,
    rows: int,
    backend: str,
    multiply: bool,
    want_delta: bool,
) -> tuple[list[Tensor], Tensor]:
    """Sums [B, E] of each input, and deltas [n, B] (empty if not wanted)."""
    blocks = []
    for part in pieces(problem.batch, min(problem.batch, rows)):
        whole = part.stop - part.start == problem.batch
        sub, own = (problem, draws) if whole else (problem.select(part), draws.samples(part))
        blocks.append(_block(sub, base, own, rows, backend, multiply, want_delta))
    sums = [torch.cat(parts) for parts in zip(*(b[0] for b in blocks), strict=True)]
    return sums, torch.cat([b[1] for b in blocks], 1)


def _block(
    problem: Problem,
    base: tuple[Tensor, ...],
    draws: Draws,
    rows: int,
    backend: str,
    multiply: bool,
    want_delta: bool,
) -> tuple[list[Tensor], Tensor]:
    layout, batch = problem.layout, problem.batch
    sizes = [s.size for s in layout]
    acc: list[Any] = [None] * len(layout)
    deltas: list[Tensor] = []
    for piece in pieces(draws.count, max(1, rows // batch)):
        own = draws.points(piece)
        count = own.count
        one = own.index.reshape(1, -1) if own.index is not None else None
        # Every draw is a sample of its own: [1, K * B, E], row k * B + b.
        noisy, z = [], []
        for i, (x, b, s) in enumerate(zip(problem.x, base, layout, strict=True)):
            alpha = own.alpha.to(s.acc)
            if own.stdev is None:
                noisy.append(
                    x if multiply is False else x.expand(count, *x.shape).reshape(-1, s.size)
                )
                z.append(autograd.points(x, b, own.index, alpha, dtype=s.points, backend=backend))
                continue
            ones = torch.ones(count, dtype=s.acc, device=x.device)
            moved = autograd.points(x, x, None, ones, backend=backend, **own.noise(sizes, i)).view(
                -1, s.size
            )
            noisy.append(moved)
            line = autograd.points(
                moved, b, one, alpha.reshape(1, -1), dtype=s.points, backend=backend
            )
            z.append(line.view(count, batch, s.size))
        values, grads = next(problem.gradients(z))
        report_nan(values, own.alpha, batch, own.first)
        totals: Any = 0
        for i, (g, s) in enumerate(zip(grads, layout, strict=True)):
            weight = own.weight.to(s.acc)
            if multiply:
                unit = torch.ones(1, dtype=s.acc, device=g.device)
                terms = autograd.accumulate_difference(
                    g.reshape(1, -1, s.size), unit, noisy[i], base[i], one, backend=backend
                )[0].view(count, batch, s.size)
            else:
                terms = g
            acc[i] = autograd.accumulate(terms, weight, acc[i], backend=backend)[0]
            totals = totals + terms.detach().to(s.acc).sum(2)
        if want_delta:
            deltas.append(totals - _change(problem, own, noisy, base))
    empty = problem.x[0].new_empty((0, batch))
    return acc, torch.cat(deltas) if deltas else empty


def _change(
    problem: Problem, draws: Draws, noisy: list[Tensor], base: tuple[Tensor, ...]
) -> Tensor:
    """F(x') - F(r) of each draw, [K, B]."""
    with torch.no_grad():
        shape = (draws.count, problem.batch, -1)
        assert draws.index is not None
        ends = []
        for x, s in zip(noisy, problem.layout, strict=True):
            x = x if x.shape[0] == draws.count * problem.batch else x.repeat(draws.count, 1)
            ends.append(x.detach().to(s.points).view(shape))
        (top,) = problem.outputs(ends)
        starts = [
            b.detach()[draws.index].to(s.points) for b, s in zip(base, problem.layout, strict=True)
        ]
        (bottom,) = problem.outputs(starts)
        return (top - bottom).view(draws.count, problem.batch)
