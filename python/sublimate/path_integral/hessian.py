"""Integrated Hessians: attributions to pairs of features, for small inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import fail_type, integer_between
from . import autograd, quadrature
from .arguments import Forward, fail_value, flat_baselines
from .chunks import Limits, frozen, pieces, run_halving
from .path import setup

_MOST = 4096  # features: the result has their square


def integrated_hessian(
    forward: Forward,
    inputs: Tensor,
    baselines: Any = None,
    target: Any = None,
    *,
    additional_forward_args: Any = None,
    n_steps: int = 20,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Interactions IH_ij of features, whose rows sum to integrated gradients.

    The double integral over alpha and beta depends on s = alpha beta only, with density -ln s, so
    it is one Gauss rule for that weight: n_steps points, not n_steps^2.

    Args:
        forward, inputs, ...: as in ``integrated_gradients``; one real tensor of at most 4096
            numbers a sample, one target.
        n_steps: points of the rule, exact for models that are polynomials of degree 2 n_steps - 1
            (in the second derivative along the path).

    Returns:
        [B, E, E], E the flattened features, float32 (float64 for float64).

    Cost: n_steps * E backward passes; memory O(B E^2).
    Source: Janizek, Sturmfels and Lee, "Explaining explanations: axiomatic feature interactions for
    deep networks", 2021.
    """
    if not isinstance(inputs, Tensor):
        raise fail_type("inputs", "one torch.Tensor", inputs)
    problem, tensors, _, chosen = setup(
        forward, inputs, target, False, additional_forward_args, create_graph, backend
    )
    (space,) = problem.layout
    if space.complex or space.size > _MOST:
        raise fail_value("inputs", f"at most {_MOST} real numbers a sample",
                         f"{space.size} of {space.dtype}")  # fmt: skip
    integer_between("n_steps", n_steps, 1, 256)
    limits = Limits.of(memory_budget, internal_batch_size)
    with torch.set_grad_enabled(create_graph):
        (base,) = flat_baselines(baselines, tensors, problem.layout)
    nodes, weights = quadrature.logarithmic(n_steps)
    twice = type(problem)(**{**problem.__dict__, "create_graph": True})
    (x,) = problem.x
    batch, e = x.shape
    alpha = quadrature.put(nodes, space.acc, x.device)
    w = quadrature.put(weights, space.acc, x.device)

    def run(rows: int) -> Tensor:
        total: Any = x.new_zeros((batch, e, e))
        first: Any = x.new_zeros((batch, e))
        for piece in pieces(n_steps, max(1, rows // max(1, batch))):
            with torch.enable_grad():
                z = autograd.points(x, base, None, alpha[piece], dtype=space.points, backend=chosen)
                z = z if z.requires_grad else z.requires_grad_()
                ((_, (g,)),) = twice.gradients([z])
            for i in range(e):
                if not g.requires_grad:  # linear: no curvature
                    break
                with torch.enable_grad():
                    score = g[:, :, i].sum()
                (row,) = torch.autograd.grad(
                    score, z, retain_graph=create_graph or i < e - 1,
                    create_graph=create_graph, allow_unused=True,
                )  # fmt: skip
                if row is not None:
                    part = autograd.accumulate(row, (w * alpha)[piece], backend=chosen)[0]
                    mask = torch.zeros(e, dtype=total.dtype, device=x.device)
                    mask[i] = 1
                    total = total + mask[:, None] * part[:, None, :]
            kept = g if create_graph else g.detach()
            first = autograd.accumulate(kept, w[piece], first, backend=chosen)[0]
        d = x - base
        return d[:, :, None] * d[:, None, :] * total + torch.diag_embed(d * first)

    with frozen(forward, not create_graph), torch.set_grad_enabled(create_graph):
        result: Tensor = run_halving(limits.choose(problem, n_steps), run)[0]
    return result
