"""Expected gradients: integrated gradients averaged over a distribution of baselines."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._checks import fail_type, integer_between, one_of
from . import quadrature
from .arguments import Forward, as_tuple, fail_value
from .chunks import Limits, Problem, frozen, run_halving
from .path import Info, per_target, setup, shaped, with_extras
from .sampling import (
    Draws,
    random_alphas,
    random_references,
    sample_numbers,
    sample_sums,
)
from .shards import Shards


def _takes_nothing(f: Callable[..., Any]) -> bool:
    try:
        return not inspect.signature(f).parameters
    except (TypeError, ValueError):  # a builtin that does not say
        return False


def flat_references(references: Any, problem: Problem, inputs: Any) -> tuple[Tensor, ...]:
    """References [R, E] of each input, from tensors [R, ...] or a callable, of the inputs or of
    nothing, that gives them."""
    if callable(references) and not isinstance(references, Tensor):
        references = references() if _takes_nothing(references) else references(inputs)
    given = as_tuple(references)
    if len(given) != len(problem.x):
        raise fail_value("references", f"one for each of {len(problem.x)} inputs", len(given))
    found: list[Tensor] = []
    for r, s, x in zip(given, problem.layout, problem.x, strict=True):
        if not isinstance(r, Tensor):
            raise fail_type("references", "a tensor [R, ...] for each input, or a callable", r)
        _checks.readable("references", r)
        if r.dim() == 0 or r.shape[1:] != s.shape or r.shape[0] == 0:
            raise fail_value("references", f"shape (R, {', '.join(map(str, s.shape))}) with R >= 1",
                             tuple(r.shape))  # fmt: skip
        if found and r.shape[0] != found[0].shape[0]:
            raise fail_value("references", f"{found[0].shape[0]} rows for every input", r.shape[0])
        if s.complex:
            r = r.to(s.dtype)
        elif r.is_complex():
            raise fail_value("references", f"real numbers as inputs ({s.dtype})", r.dtype)
        r = r if problem.create_graph else r.detach()
        found.append(s.flat(r.to(x.device)))
    return tuple(found)


def _draws(
    problem: Problem,
    references: int,
    n: int,
    stratified: bool,
    method: str | None,
    seed: Tensor,
    sample: Tensor,
) -> Draws:
    if method is None:
        alpha = random_alphas(seed, sample, n, stratified)
        index = random_references(seed, sample, n, references, stratified)
        weight = torch.full((n,), 1 / n, dtype=torch.float64, device=sample.device)
    else:
        each = n // references
        nodes, weights = quadrature.tensors(method, each, torch.float64, sample.device)
        n = each * references
        alpha, weight = nodes.repeat(references), weights.repeat(references) / references
        which = torch.arange(references, device=sample.device).repeat_interleave(each)
        index = which[:, None].expand(n, problem.batch).contiguous()
    return Draws(alpha, index, weight, sample, None, seed, n)


def expected_gradients(
    forward: Forward,
    inputs: Any,
    references: Any,
    target: Any = None,
    *,
    n_samples: int = 50,
    stratified: bool = True,
    seed: int | Tensor | None = 0,
    method: str | None = None,
    sample_ids: Tensor | None = None,
    additional_forward_args: Any = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    return_info: bool = False,
    create_graph: bool = False,
    multi_target: bool = False,
    multiply_by_inputs: bool = True,
    group: Any = None,
    backend: str | None = None,
) -> Any:
    """Expected gradients: the mean of (x - r) g(r + a (x - r)) over references r and a in [0, 1].

    Args:
        forward, inputs, target, and what is not named here: as in ``integrated_gradients``.
        references: tensor [R, ...] or a tuple; or a function of inputs that returns it.
        n_samples: points for each sample, of one reference and one place each.
        stratified: one place in each of n_samples equal parts of the path, and references equally
            often, paired at random: still unbiased, and far less scattered than independent draws.
        seed: an int or 0-dim int64 tensor; None draws one from torch's generator.
        method: a rule of ``quadrature.METHODS`` instead of chance: each reference gets
            n_samples // R of its nodes, which is exact for polynomials.
        sample_ids: int64 (B,), numbers of the samples that their draws depend on; 0 .. B - 1.

    Returns:
        As ``integrated_gradients``. ``Info`` has ``variance``, that of one draw, and
        ``standard_error`` of the result (of independent draws: an upper bound if stratified).

    Raises:
        ValueError: references have another shape; else as ``integrated_gradients``.

    Cost: n_samples forward and backward passes of the batch; memory O(chunk). x - r is never
    stored.
    Source: Erion et al., "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients", 2021.
    """
    problem, tensors, single, chosen = setup(
        forward, inputs, target, multi_target, additional_forward_args, create_graph, backend
    )
    _checks.flags(
        stratified=stratified, return_convergence_delta=return_convergence_delta,
        return_info=return_info, multiply_by_inputs=multiply_by_inputs,
    )  # fmt: skip
    integer_between("n_samples", n_samples, 1, 2**31)
    _checks.seed("seed", seed)
    shards = Shards.of(group, "points", create_graph)
    limits = Limits.of(memory_budget, internal_batch_size)
    with torch.set_grad_enabled(create_graph):
        base = flat_references(references, problem, tensors[0] if single else tensors)
    count = base[0].shape[0]
    if method is not None:
        one_of("method", method, quadrature.METHODS)
        if n_samples < count:
            raise fail_value("n_samples", f"at least {count}, one for each reference", n_samples)
    device = problem.x[0].device
    sample = sample_numbers(sample_ids, problem.batch, device)
    draws = _draws(problem, count, n_samples, stratified, method, shards.seed(seed, device), sample)
    return _run(
        problem, base, draws, limits, chosen, shards, single,
        forward=forward, multiply=multiply_by_inputs, want_delta=return_convergence_delta,
        want_info=return_info, name=method or ("stratified" if stratified else "random"),
    )  # fmt: skip


def _run(
    problem: Problem,
    base: tuple[Tensor, ...],
    draws: Draws,
    limits: Limits,
    backend: str,
    shards: Shards,
    single: bool,
    *,
    forward: Forward,
    multiply: bool,
    want_delta: bool,
    want_info: bool,
    name: str,
) -> Any:
    own = draws.shared(shards)
    with frozen(forward, not problem.create_graph), torch.set_grad_enabled(problem.create_graph):
        rows = limits.choose(problem, own.count)
        run: Callable[[int], Any] = lambda r: sample_sums(  # noqa: E731
            problem, base, own, r, backend, second=want_info, differences=multiply
        )
        sums, rows = run_halving(rows, run)
        acc = shards.reduce(
            [[s for inputs in targets for s in inputs[: 1 + want_info]] for targets in sums.acc]
        )
        step = 1 + want_info
        first = [targets[::step] for targets in acc]
        delta = None
        if want_delta or want_info:
            values = _deltas(problem, base, first, rows) if multiply else None
            delta = None if values is None else per_target(values, problem.target)
    result = shaped(first, problem.layout, problem.target, single, not multiply)
    info = None
    if want_info:
        n = draws.total
        spread = [
            [(square - mean.square()).clamp_min(0) for mean, square in
             zip(targets[::2], targets[1::2], strict=True)]
            for targets in acc
        ]  # fmt: skip
        error = [[(v / n).sqrt() for v in targets] for targets in spread]
        steps = torch.full((problem.batch,), n, dtype=torch.int64)
        info = Info(name, steps, delta, rows=rows, evaluations=own.count * problem.batch)
        info.variance = shaped(spread, problem.layout, problem.target, single)
        info.standard_error = shaped(error, problem.layout, problem.target, single)
    return with_extras(result, delta, want_delta, info, want_info)


def _deltas(
    problem: Problem, base: tuple[Tensor, ...], first: list[list[Tensor]], rows: int
) -> list[Tensor]:
    """Sum of attributions less F(x) - mean of F(references), of each target (B,)."""
    totals = [torch.stack([r.detach().sum(1) for r in inputs]).sum(0) for inputs in first]
    with torch.no_grad():
        ends = zip(problem.x, problem.layout, strict=True)
        here = problem.outputs([x.detach()[None].to(s.points) for x, s in ends])
        means: list[Tensor] | None = None
        count = base[0].shape[0]
        for r in range(count):  # each reference with every sample's arguments and target
            z = [
                b.detach()[r].to(s.points).expand(1, problem.batch, -1).contiguous()
                for b, s in zip(base, problem.layout, strict=True)
            ]
            values = [v.double() / count for v in problem.outputs(z)]
            means = values if means is None else [a + b for a, b in zip(means, values, strict=True)]
        assert means is not None
    return [t - (f - m).to(t.dtype) for t, f, m in zip(totals, here, means, strict=True)]
