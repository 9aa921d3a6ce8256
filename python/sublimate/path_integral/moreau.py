"""MoreauGrad: the gradient of the Moreau envelope of a model, plain, sparse or group-sparse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import fail_type, flags, integer_between, number
from .arguments import Forward, fail_value
from .bundle import cutting_planes
from .chunks import Problem, frozen
from .path import setup, shaped, with_extras

_MEMORY = 8  # objective values that a step may not exceed the largest of
_SHRINK = 0.5


@dataclass
class MoreauInfo:
    """How the proximal points were found.

    Attributes:
        envelope: value of the (sparse) Moreau envelope, (B,).
        residual: largest entry of the proximal gradient step over its length, (B,).
        converged: bool (B,).
        iterations: most that a sample took.
    """

    envelope: Tensor
    residual: Tensor
    converged: Tensor
    iterations: int


def _check_groups(groups: Any, size: int, device: torch.device) -> Tensor | None:
    if groups is None:
        return None
    if not isinstance(groups, Tensor) or groups.dtype != torch.int64:
        raise fail_type("groups", "an int64 tensor of group numbers", groups)
    if groups.numel() != size or (size and int(groups.min()) < 0):
        raise fail_value("groups", f"{size} numbers >= 0, one a feature", tuple(groups.shape))
    return groups.reshape(-1).to(device)


def _group_norms(d: Tensor, groups: Tensor) -> Tensor:
    """L2 norm of each group, [B, G]."""
    count = int(groups.max()) + 1
    member = torch.nn.functional.one_hot(groups, count).to(d.dtype)
    return (d.square() @ member).sqrt()


def _penalty(d: Tensor, eta: float, groups: Tensor | None) -> Tensor:
    if eta == 0:
        return d.new_zeros(d.shape[0])
    return eta * (d.abs() if groups is None else _group_norms(d, groups)).sum(1)


def _shrink(d: Tensor, by: Tensor, groups: Tensor | None) -> Tensor:
    """Proximal map of the penalty with weight ``by`` [B, 1]."""
    if groups is None:
        return d.sign() * (d.abs() - by).clamp_min(0)
    norm = _group_norms(d, groups)
    tiny = torch.finfo(d.dtype).tiny
    return d * (1 - by / norm.clamp_min(tiny)).clamp_min(0)[:, groups]


def _evaluate(problem: Problem, at: Tensor) -> tuple[Tensor, Tensor]:
    """f and its gradient at rows [B, E]."""
    ((value, (grad,)),) = problem.gradients([at.detach()[None].to(problem.layout[0].points)])
    if value.numel() != at.shape[0]:
        raise fail_value("forward", f"{at.shape[0]} outputs, one a sample", value.numel())
    return value.reshape(-1).to(at.dtype), grad[0].to(at.dtype)


def moreau_grad(
    forward: Forward,
    inputs: Tensor,
    target: Any = None,
    *,
    lam: float = 1.0,
    sparsity: float = 0.0,
    groups: Tensor | None = None,
    tol: float | None = None,
    max_iter: int = 500,
    additional_forward_args: Any = None,
    return_info: bool = False,
    create_graph: bool = False,
    backend: str | None = None,
) -> Any:
    """(x - prox(x)) / lam: minus the minimiser d of f(x + d) + |d|^2 / (2 lam) + penalty, over lam.

    Each sample takes spectral (Barzilai-Borwein) proximal gradient steps under a non-monotone
    descent test; where these stall, at kinks of f, a cutting-plane model of f takes over, which is
    exact for piecewise linear f after finitely many planes.

    Args:
        forward, inputs, target, additional_forward_args: as in ``integrated_gradients``; one real
            tensor, one target.
        lam: of the envelope, > 0.
        sparsity: weight eta of the penalty eta |d|_1; with ``groups``, of the sum of group norms.
        groups: int64, a group number for each feature of a sample.
        tol: of the proximal gradient, relative to 1 + its size; 1e-11 in float64, 1e-5 else.
        max_iter: steps at most; a sample that is not there by then is told in ``MoreauInfo``.
        return_info: also return it.
        create_graph: differentiable once, in inputs and parameters, by the implicit function
            theorem (conjugate gradients with Hessian-vector products).

    Returns:
        Like inputs; with ``MoreauInfo`` if asked for.

    Cost: one forward and backward of the samples that are still moving, in each iteration.
    Source: Zhang and Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via
    Moreau envelope", 2023 (from the paper's formulas).
    """
    if not isinstance(inputs, Tensor):
        raise fail_type("inputs", "one torch.Tensor", inputs)
    problem, _, single, _ = setup(
        forward, inputs, target, False, additional_forward_args, False, backend
    )
    (space,) = problem.layout
    if space.complex:
        raise fail_value("inputs", "real numbers", inputs.dtype)
    flags(create_graph=create_graph, return_info=return_info)
    for name, value in (("lam", lam), ("sparsity", sparsity)):
        number(name, value)
        if value < 0 or (name == "lam" and value == 0):
            raise fail_value(name, "a number > 0" if name == "lam" else "a number >= 0", value)
    integer_between("max_iter", max_iter, 1, 2**31)
    if tol is None:
        tol = 1e-11 if space.acc == torch.float64 else 1e-5
    number("tol", tol)
    lam, sparsity, tol = float(lam), float(sparsity), float(tol)
    grouped = _check_groups(groups, space.size, inputs.device)
    with frozen(forward, True), torch.no_grad():
        d, info = _minimise(problem, lam, sparsity, grouped, tol, max_iter)
    rows = -d / lam
    if create_graph:
        rows = _implicit(forward, inputs, problem, d, lam, sparsity, grouped)
    return with_extras(
        shaped([[rows]], problem.layout, problem.target, single), None, False, info, return_info
    )


def _minimise(
    problem: Problem, lam: float, eta: float, groups: Tensor | None, tol: float, max_iter: int
) -> tuple[Tensor, MoreauInfo]:
    (x,) = problem.x
    batch = x.shape[0]
    d = torch.zeros_like(x)
    step = torch.full((batch, 1), 0.5 * lam, dtype=x.dtype, device=x.device)
    f, g = _evaluate(problem, x)
    objective = f.clone()
    history = objective[None].repeat(_MEMORY, 1)
    residual = torch.full_like(f, torch.inf)
    stalled = torch.zeros_like(f, dtype=torch.bool)
    eps = torch.finfo(x.dtype).eps
    iteration = 0
    while iteration < max_iter:
        total = g + d / lam
        after = _shrink(d - step * total, step * eta, groups)
        move = after - d
        residual = (move / step).abs().amax(1)
        moving = (residual > tol * (1 + total.abs().amax(1))) & ~stalled
        if not bool(moving.any()):
            break
        iteration += 1
        own = moving.nonzero()[:, 0]
        f_new, g_new = _evaluate(problem.select(own), x[own] + after[own])
        new = f_new + after[own].square().sum(1) / (2 * lam) + _penalty(after[own], eta, groups)
        square = move[own].square().sum(1)
        bound = history[:, own].amax(0)
        slack = 4 * eps * (1 + bound.abs())
        good = new <= bound - 1e-4 * square / (2 * step[own, 0]) + slack
        taken, refused = own[good], own[~good]
        curve = ((g_new - g[own]) * move[own]).sum(1) + square / lam
        spectral = torch.where(curve > 0, square / curve.clamp_min(eps * square + 1e-300), lam)
        d[taken], g[taken], objective[taken] = after[taken], g_new[good], new[good]
        history[iteration % _MEMORY, taken] = new[good]
        step[taken, 0] = spectral[good].clamp(1e-10 * lam, lam)
        step[refused] *= _SHRINK
        stalled |= step[:, 0] < 1e-9 * lam
    bad = (residual > tol * (1 + (g + d / lam).abs().amax(1))).nonzero()[:, 0]
    for i in bad.tolist():  # kinks: few samples, small bundles
        one = problem.select(slice(i, i + 1))

        def at(z: Tensor, one: Problem = one, i: int = i) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = z.detach()[None].requires_grad_()
                penalty = _penalty(leaf, eta, groups).sum()
            value, grad = _evaluate(one, x[i][None] + z[None])
            if eta:
                (extra,) = torch.autograd.grad(penalty, leaf)
                return value[0] + penalty.detach(), (grad + extra.nan_to_num(0.0))[0]
            return value[0], grad[0]

        d[i], objective[i], residual[i] = cutting_planes(at, d[i], lam, max_iter)
    converged = residual <= tol * (1 + (d / lam).abs().amax(1))
    return d, MoreauInfo(objective, residual, converged, iteration)


def _implicit(
    forward: Forward,
    inputs: Tensor,
    problem: Problem,
    d: Tensor,
    lam: float,
    eta: float,
    groups: Tensor | None,
) -> Tensor:
    """-d / lam, with the derivative of the fixed point: (I + lam H)^-1 acts on what comes back, H
    the Hessian of f and, with groups, of eta times the norms of those that are not 0."""
    (space,) = problem.layout
    support = (d != 0).to(d.dtype) if eta else torch.ones_like(d)
    bends: Callable[[Tensor], Tensor] | None = None
    if eta and groups is not None:
        norm = _group_norms(d, groups)[:, groups]
        support = (norm > 0).to(d.dtype)
        unit = d / norm.clamp_min(torch.finfo(d.dtype).tiny)
        member = torch.nn.functional.one_hot(groups, int(groups.max()) + 1).to(d.dtype)

        def across(v: Tensor) -> Tensor:
            """Hessian of the norms: what of v is across d in each group, over the norm of d."""
            along = ((unit * v) @ member)[:, groups]
            return support * (v - along * unit) / norm.clamp_min(torch.finfo(d.dtype).tiny)

        bends = across

    moving = Problem(forward, problem.layout, problem.x, problem.args, problem.target, True)
    at = problem.x[0] + d

    def product(v: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = at.detach()[None].to(space.points).requires_grad_()
            ((_, (g,)),) = moving.gradients([leaf])
            h = None
            if g.requires_grad:
                (h,) = torch.autograd.grad(g[0], leaf, v * support, allow_unused=True)
        result = v if h is None else v + lam * support * h[0]
        return result if bends is None else result + lam * eta * bends(v)

    def solve(up: Tensor | None) -> Tensor | None:
        """Conjugate gradients, each sample its own system. None: nothing comes back."""
        if up is None:
            return None
        up = up * support
        v, r = torch.zeros_like(up), up.clone()
        p, old = r.clone(), r.square().sum(1, keepdim=True)
        least = old * torch.finfo(up.dtype).eps ** 2
        for _ in range(2 * up.shape[1]):
            if bool((old <= least).all()):
                break
            q = product(p)
            a = old / (p * q).sum(1, keepdim=True).clamp_min(1e-300)
            v, r = v + a * p, r - a * q
            new = r.square().sum(1, keepdim=True)
            p, old = r + new / old.clamp_min(1e-300) * p, new
        return v

    with torch.enable_grad():
        x = space.flat(inputs)
        z = (x + d)[None].to(space.points)
        ((_, (g,)),) = moving.gradients([z if z.requires_grad else z.requires_grad_()])
        rows = support * g[0]
        if rows.requires_grad:
            rows.register_hook(solve)
        # The value is that of the minimiser, exactly.
        return rows + (-d / lam - rows.detach())
