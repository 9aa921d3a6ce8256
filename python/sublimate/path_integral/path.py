"""Sums of gradients over straight paths, in pieces, and attributions made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks
from . import autograd, quadrature, sequential
from .arguments import (
    ArgumentError,
    Forward,
    Space,
    Target,
    arguments_of,
    check_inputs,
    fail_value,
    spaces,
)
from .chunks import Limits, Problem, pieces, run_halving
from .shards import Shards

#: dtype -> alpha (K,), weights (L, K): nodes of a rule, and L sums made of the same gradients.
Nodes = Callable[[torch.dtype], tuple[Tensor, Tensor]]


@dataclass
class Info:
    """What an attribution cost and how far it can be trusted.

    Attributes:
        method: name of the rule.
        steps: gradient evaluations of each sample, int64 (B,); None where not asked for.
        delta: sum of attributions less the change of the output, (B,) or (T, B); None likewise.
        error: estimated L1 error of the attributions, like ``delta``; None where nothing tells.
        size: L1 norm of the attributions, like ``delta``: error / size is relative.
        converged: bool (B,), whether error <= tol * size; None without tol.
        rows: largest number of rows that went through the model at once.
        evaluations: rows that went through the model in all, on this process.
        variance, standard_error: of estimates by chance: of one draw, and of the result (as
            independent draws would have it); in the shape of the attributions.
    """

    method: str
    steps: Tensor | None
    delta: Tensor | None
    error: Tensor | None = None
    size: Tensor | None = None
    converged: Tensor | None = None
    rows: int = 0
    evaluations: int = 0
    variance: Any = None
    standard_error: Any = None


@dataclass
class Sums:
    """Sums over path points, and the output at each of them.

    Attributes:
        acc: [target][input][sum] -> [B, E].
        values: [target] -> [K, B]; [K, 1] where the model returns one number for all samples.
    """

    acc: list[list[list[Tensor]]]
    values: list[Tensor] = field(default_factory=list)


def report_nan(values: Tensor, alpha: Tensor, batch: int, first: int = 0, sample: int = 0) -> None:
    """Raises ArgumentError naming the first path point at which an output is NaN."""
    total = float(values.sum())
    if total == total:  # a sum without NaN has no NaN in it, and is cheaper than a look at each
        return
    nan = values.isnan()
    if not bool(nan.any()):  # inf - inf
        return
    at = int(nan.nonzero()[0])
    point, row = divmod(at, batch) if values.numel() > 1 else (0, 0)
    a = alpha[point] if alpha.dim() == 1 else alpha[point, row]
    raise ArgumentError(
        f"forward: expected numbers, got NaN at path point {first + point} "
        f"(alpha = {float(a):.6g}) of sample {sample + row}"
    )


def integrate(
    problem: Problem,
    base: tuple[Tensor, ...],
    nodes: Nodes,
    rows: int,
    backend: str,
    differences: bool = False,
) -> Sums:
    """Weighted sums of gradients along straight paths, or of (x - base) times them.

    At most ``rows`` rows go through the model at once; the batch is split if it is larger. Memory
    is O(rows) beside the sums.
    """
    batch = problem.batch
    front = None
    if not problem.create_graph:
        front = sequential.Front.of(problem.network, problem.layout[0])
    if front is not None:
        return _integrate_behind(front, problem, base, nodes, rows, backend, differences)
    if batch <= rows:
        return _integrate_block(problem, base, nodes, rows, backend, None, differences)
    blocks = [_integrate_block(problem, base, nodes, rows, backend, part, differences)
              for part in pieces(batch, min(batch, rows))]  # fmt: skip
    acc = [
        [
            [torch.cat(parts) for parts in zip(*inputs, strict=True)]
            for inputs in zip(*targets, strict=True)
        ]
        for targets in zip(*(b.acc for b in blocks), strict=True)
    ]
    values = [torch.cat(parts, 1) for parts in zip(*(b.values for b in blocks), strict=True)]
    return Sums(acc, values)


def _integrate_behind(
    front: sequential.Front,
    problem: Problem,
    base: tuple[Tensor, ...],
    nodes: Nodes,
    rows: int,
    backend: str,
    differences: bool,
) -> Sums:
    """``integrate``, with the path laid through the values of leading affine layers, whose
    transpose is applied to the sums."""
    x, start = problem.x[0], base[0]
    alpha, weights = nodes(problem.layout[0].acc)
    moved = x - start if differences else None
    if front.direct and problem.batch * alpha.shape[0] <= rows:
        return _integrate_at_once(front, problem, start, alpha, weights, moved, backend)
    h, first = front.enter(x), front.enter(start)
    network = sequential.Network(front.rest, h.shape[1:], front.direct, front.last)
    space = Space(network.shape, *(problem.layout[0].points,) * 2, problem.layout[0].acc)
    inner = Problem(
        sequential.Rest(front.rest), (space,), (network.flat(h, len(h)),), (), problem.target,
        network=network,
    )  # fmt: skip
    sums = integrate(inner, (network.flat(first, len(first)),), nodes, rows, backend)
    count = len(sums.acc[0][0])
    left = [network.rows(s).flatten(1) for (target,) in sums.acc for s in target]
    left = front.leave(left, h.shape)
    if moved is not None:
        left = [s * moved for s in left]
    acc = [[left[i : i + count]] for i in range(0, len(left), count)]
    return Sums(acc, sums.values)


def _integrate_at_once(
    front: sequential.Front,
    problem: Problem,
    start: Tensor,
    alpha: Tensor,
    weights: Tensor,
    moved: Tensor | None,
    backend: str,
) -> Sums:
    """``_integrate_behind`` of a perceptron in one piece: what a small network needs and no more,
    since there Python takes longer than the network."""
    batch, points = problem.batch, alpha.shape[0]
    h, first = front.enter(problem.x[0]), front.enter(start)
    network = sequential.Network(front.rest, h.shape[1:], front.direct, front.last)
    ends = network.flat(h, len(h)), network.flat(first, len(first))
    z = autograd.points(*ends, None, alpha, dtype=problem.layout[0].points, backend=backend)
    result = Sums([], [])
    for values, grad in sequential.gradients(
        front.rest, network.rows(z.view(points * batch, -1)), problem.target, points, batch, False
    ):
        report_nan(values, alpha, batch)
        grad = network.flat(grad, points, batch)
        sums = [autograd.accumulate(grad, w, backend=backend)[0] for w in weights]
        left = front.leave([network.rows(s).flatten(1) for s in sums], h.shape)
        result.acc.append([left if moved is None else [s * moved for s in left]])
        result.values.append(values.view(points, batch))
    return result


def _integrate_block(
    problem: Problem,
    base: tuple[Tensor, ...],
    nodes: Nodes,
    rows: int,
    backend: str,
    part: slice | None,
    differences: bool,
) -> Sums:
    first = 0
    if part is not None:
        first = part.start
        problem = problem.select(part)
        base = tuple(b if b.shape[0] == 1 else b[part] for b in base)
    batch, layout = problem.batch, problem.layout
    rules = [nodes(s.acc) for s in layout]
    acc: list[list[list[Any]]] = []
    values: list[list[Tensor]] = []
    parts = pieces(rules[0][0].shape[0], max(1, rows // batch))
    for piece in parts:
        own = rules
        if len(parts) > 1:
            own = [(alpha[piece], weights[:, piece]) for alpha, weights in rules]
        z = [
            autograd.points(x, b, None, alpha, dtype=s.points, backend=backend)
            for x, b, s, (alpha, _) in zip(problem.x, base, layout, own, strict=True)
        ]
        for t, (found, grads) in enumerate(problem.gradients(z)):
            report_nan(found, own[0][0], batch, piece.start, first)
            if len(acc) == t:
                acc.append([[None] * len(w) for _, w in rules])
                values.append([])
            values[t].append(found.view(-1, batch) if found.numel() > 1 else found.view(1, 1))
            for sums, grad, (_, weights), x, b in zip(
                acc[t], grads, own, problem.x, base, strict=True
            ):
                for i, old in enumerate(sums):
                    if differences:
                        sums[i] = autograd.accumulate_difference(
                            grad, weights[i], x, b, None, old, backend=backend
                        )[0]
                    else:
                        sums[i] = autograd.accumulate(grad, weights[i], old, backend=backend)[0]
    joined = [v[0] if len(v) == 1 else torch.cat(v) for v in values]
    return Sums(acc, joined)


def endpoints(problem: Problem, base: tuple[Tensor, ...], rows: int, backend: str) -> list[Tensor]:
    """F(x) - F(base) of each target, [B], in float32 or wider."""
    found = []
    with torch.no_grad():
        for part in pieces(problem.batch, max(1, min(problem.batch, rows // 2))):
            whole = part.stop - part.start == problem.batch
            sub = problem if whole else problem.select(part)
            ends = []
            for x, b, s in zip(sub.x, base, sub.layout, strict=True):
                b = b.detach() if b.shape[0] == 1 else b.detach()[part]
                alpha = quadrature.ends(s.acc, x.device)
                ends.append(
                    autograd.points(x.detach(), b, None, alpha, dtype=s.points, backend=backend)
                )
            values = [v.real if v.is_complex() else v for v in sub.outputs(ends)]
            for v in values:
                if v.numel() != 2 * sub.batch:
                    raise fail_value(
                        "forward", f"{2 * sub.batch} rows of output to compare", v.numel()
                    )
            found.append([_wide(v).view(2, -1) for v in values])
    joined = [torch.cat(v, 1) for v in zip(*found, strict=True)]
    return [v[1] - v[0] for v in joined]


def _wide(v: Tensor) -> Tensor:
    return v if v.dtype == torch.float64 else v.float()


def named(method: str, n: int, device: torch.device) -> Nodes:
    """Nodes of a rule by name."""

    return lambda dtype: quadrature.tensor_rows(method, n, dtype, device)


def explicit(alpha: Any, weights: Any, device: torch.device) -> Nodes:
    """Nodes of float64 numpy arrays (K,) and (L, K)."""

    @functools.cache
    def nodes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return quadrature.put(alpha, dtype, device), quadrature.put(weights, dtype, device)

    return nodes


# --------------------------------------------------------------------------------------- results


def attributions(
    problem: Problem,
    base: tuple[Tensor, ...],
    acc: list[list[Tensor]],
    backend: str,
    multiply: bool = True,
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """(x - base) acc [target][input] -> [B, E], and their sums over all inputs [target] -> [B]."""
    found: list[list[Tensor]] = []
    totals: list[Tensor] = []
    for sums in acc:
        rows: list[Tensor] = []
        total: Any = None
        for a, x, b in zip(sums, problem.x, base, strict=True):
            scaled, part = autograd.scale(a, x, b, backend)
            rows.append(scaled if multiply else a)
            total = part if total is None else total + part
        found.append(rows)
        totals.append(total)
    return found, totals


def shaped(
    rows: list[list[Tensor]],
    layout: tuple[Space, ...],
    target: Target,
    single: bool,
    keep_complex: bool = False,
) -> Any:
    """[target][input] -> [B, E] in the user's form: shapes of inputs, K in front if multi."""
    per_target = [
        tuple(s.fold(r, keep_complex) for r, s in zip(inputs, layout, strict=True))
        for inputs in rows
    ]
    if not target.multi:
        found = per_target[0]
    else:
        found = tuple(torch.stack(parts) for parts in zip(*per_target, strict=True))
    return found[0] if single else found


def per_target(values: list[Tensor], target: Target) -> Tensor:
    """(B,), or (T, B) with several targets."""
    return torch.stack(values) if target.multi else values[0]


def setup(
    forward: Forward,
    inputs: Any,
    target: Any,
    multi_target: bool,
    additional_forward_args: Any,
    create_graph: bool,
    backend: str | None,
    empty: bool = False,
) -> tuple[Problem, tuple[Tensor, ...], bool, str]:
    """Checked arguments: the problem, the input tensors, whether one came alone, the backend.

    ``empty``: a batch without samples will do.
    """
    if not callable(forward):
        raise TypeError(f"forward: expected a callable, got {type(forward).__name__}")
    _checks.flags(multi_target=multi_target, create_graph=create_graph)
    single = not isinstance(inputs, (tuple, list))
    tensors = check_inputs(inputs)
    if not (empty or len(tensors[0])):
        raise fail_value("inputs", "at least one sample", tuple(tensors[0].shape))
    layout = spaces(forward, tensors)
    if create_graph:
        with torch.enable_grad():
            x = tuple(s.flat(t) for s, t in zip(layout, tensors, strict=True))
    else:
        x = tuple([s.flat(t.detach()) for s, t in zip(layout, tensors, strict=True)])
    args = arguments_of(additional_forward_args)
    chosen = Target.of(target, tensors[0].shape[0], multi_target)
    network = None if args else sequential.network_of(forward, x[0], layout)
    problem = Problem(forward, layout, x, args, chosen, create_graph, network)
    return problem, tensors, single, _backends.resolve("path_integral", backend, x[0])


def with_extras(result: Any, delta: Any, want_delta: bool, info: Any, want_info: bool) -> Any:
    extras = (delta,) * want_delta + (info,) * want_info
    return (result, *extras) if extras else result


def fixed(
    problem: Problem,
    base: tuple[Tensor, ...],
    method: str,
    n: int,
    limits: Limits,
    backend: str,
    want_delta: bool,
    shards: Shards,
    multiply: bool,
) -> tuple[list[list[Tensor]], Info]:
    """Attributions [target][input] -> [B, E] by a rule of n points."""
    nodes = shards.nodes(named(method, n, problem.x[0].device))
    rows = limits.choose(problem, n)
    batch = problem.batch
    # Where nothing records, (x - base) is multiplied in with the sum: one kernel less.
    together = multiply and not problem.create_graph
    sums, rows = run_halving(rows, lambda r: integrate(problem, base, nodes, r, backend, together))
    acc = shards.reduce([[s[0] for s in inputs] for inputs in sums.acc])
    delta = size = None
    if together:
        found, totals = acc, []
        if want_delta:
            totals = [torch.stack([r.sum(1) for r in inputs]).sum(0) for inputs in acc]
    else:
        found, totals = attributions(problem, base, acc, backend, multiply)
    if want_delta:
        change = endpoints(problem, base, rows, backend)
        values = [t - c for t, c in zip(totals, change, strict=True)]
        delta = per_target(values, problem.target)
        norms = [torch.stack([r.detach().abs().sum(1) for r in inputs]).sum(0) for inputs in found]
        size = per_target(norms, problem.target)
    # Nobody reads them where nothing is asked for beside the attributions.
    steps = torch.full((batch,), n, dtype=torch.int64) if want_delta else None
    return found, Info(
        method.removesuffix("_compat"), steps, delta, None, size, None, rows, n * batch
    )
