"""Integrated gradients to a tolerance: nested Clenshaw-Curtis rules, each sample on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import integer_between, number
from . import quadrature
from .arguments import fail_value
from .chunks import Limits, Problem, run_halving
from .path import Info, attributions, explicit, integrate, per_target

_MAX_STEPS = 129


def check(problem: Problem, tol: float, max_steps: int | None) -> int:
    """The largest rule; raises ValueError if rounding alone is more than ``tol``."""
    most = _MAX_STEPS if max_steps is None else max_steps
    integer_between("max_steps", most, 9, 2**20 + 1)
    number("tol", tol)
    if not tol > 0:
        raise fail_value("tol", "a number > 0", tol)
    least = max(
        16 * torch.finfo(s.acc).eps if s.points == s.acc else 2 * torch.finfo(s.points).eps
        for s in problem.layout
    )
    if tol < least:
        kinds = ", ".join(sorted({str(s.points).removeprefix("torch.") for s in problem.layout}))
        raise fail_value("tol", f"at least {least:.2g}, which rounding of {kinds} allows", tol)
    return most


def adaptive(
    problem: Problem,
    base: tuple[Tensor, ...],
    tol: float,
    max_steps: int | None,
    limits: Limits,
    backend: str,
    multiply: bool = True,
) -> tuple[list[list[Tensor]], Info]:
    """Attributions [target][input] -> [B, E], mean gradients without ``multiply``, and their Info.

    The error is estimated by the larger of |sum of attributions - change of output| and the L1
    change from the rule of half as many points, plus rounding. The latter is the error of the
    coarser rule, so for a smooth model the estimate is far above the truth.
    """
    most, tol = check(problem, tol, max_steps), float(tol)
    levels = quadrature.nested_levels(most)
    batch, device = problem.batch, problem.x[0].device
    active = torch.arange(batch, device=device)
    sub, start = problem, base
    acc: list[list[list[Tensor]]] = []  # [target][input][rule] -> [active, E]
    previous: list[list[Tensor]] = []
    change_of_output: list[Tensor] = []
    out = _Results(batch, device)
    steps = rows = evaluations = 0
    for level, (alpha, weights) in enumerate(levels):
        nodes = explicit(alpha, weights, device)
        rows = limits.choose(sub, len(alpha))
        sums, rows = run_halving(
            rows,
            lambda r, sub=sub, start=start, nodes=nodes: integrate(sub, start, nodes, r, backend),  # type: ignore[misc]
        )
        steps += len(alpha)
        evaluations += len(alpha) * len(active)
        if level == 0:
            acc = sums.acc
            change_of_output = [_difference(v) for v in sums.values]
        else:
            acc = [
                [[a + b for a, b in zip(old[1:], new, strict=True)]
                 for old, new in zip(olds, news, strict=True)]
                for olds, news in zip(acc, sums.acc, strict=True)
            ]  # fmt: skip
        found, totals = attributions(sub, start, [[s[0] for s in i] for i in acc], backend)
        last = level == len(levels) - 1
        if level == 0:
            previous = found
            continue
        delta = torch.stack([t.detach() - c for t, c in zip(totals, change_of_output, strict=True)])
        size = torch.stack([_norm(f) for f in found])  # [T, active]
        moved = torch.stack(
            [_norm([a - b for a, b in zip(f, p, strict=True)])
             for f, p in zip(found, previous, strict=True)]
        )  # fmt: skip
        rounding = max(4 * torch.finfo(s.points).eps for s in sub.layout)
        error = torch.maximum(moved, delta.abs()) + rounding * size
        good = (error <= tol * size).all(0)
        done = torch.ones_like(good) if last else good
        shown = found if multiply else [[s[0] for s in i] for i in acc]
        out.put(active, done, shown, delta, error, size, good, steps)
        if bool(done.all()):
            break
        keep = (~done).nonzero()[:, 0]
        active = active[keep]
        sub = sub.select(keep)
        start = tuple(b if b.shape[0] == 1 else b[keep] for b in start)
        acc = [[[a[keep] for a in rules] for rules in inputs] for inputs in acc]
        previous = [[p[keep] for p in inputs] for inputs in found]
        change_of_output = [c[keep] for c in change_of_output]
    target = problem.target
    info = Info(
        "clenshawcurtis",
        out.steps.cpu(),
        per_target(list(out.delta), target),
        per_target(list(out.error), target),
        per_target(list(out.size), target),
        out.converged,
        rows,
        evaluations,
    )
    return out.rows(), info


def _difference(values: Tensor) -> Tensor:
    """F(x) - F(base) of [K, B] values whose first and last points are the ends."""
    if values.shape[0] < 2:
        raise fail_value("forward", "an output for each sample with tol", "one for all")
    values = values if values.dtype == torch.float64 else values.float()
    return values[-1] - values[0]


def _norm(rows: list[Tensor]) -> Tensor:
    return torch.stack([r.detach().abs().sum(1) for r in rows]).sum(0)


class _Results:
    """Results of samples as they finish."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.parts: list[tuple[Tensor, list[list[Tensor]]]] = []
        self.steps = torch.zeros(batch, dtype=torch.int64, device=device)
        self.converged = torch.zeros(batch, dtype=torch.bool, device=device)
        self.delta = self.error = self.size = torch.empty(0)
        self.batch = batch

    def put(
        self,
        active: Tensor,
        done: Tensor,
        found: list[list[Tensor]],
        delta: Tensor,
        error: Tensor,
        size: Tensor,
        good: Tensor,
        steps: int,
    ) -> None:
        if not self.delta.numel():
            self.delta, self.error, self.size = (
                t.new_zeros(t.shape[0], self.batch) for t in (delta, error, size)
            )
        own = done.nonzero()[:, 0]
        at = active[own]
        self.parts.append((at, [[f[own] for f in inputs] for inputs in found]))
        for mine, now in ((self.delta, delta), (self.error, error), (self.size, size)):
            mine[:, at] = now[:, own]
        self.steps[at] = steps
        self.converged[at] = good[own]

    def rows(self) -> list[list[Tensor]]:
        """[target][input] -> [B, E], in the order of the batch."""
        order = torch.cat([at for at, _ in self.parts]).argsort()
        count = len(self.parts[0][1])
        return [
            [torch.cat(parts)[order] for parts in zip(*(f[t] for _, f in self.parts), strict=True)]
            for t in range(count)
        ]
