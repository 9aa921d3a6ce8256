"""Integrated gradients, the public function."""

from __future__ import annotations

from typing import Any

import torch

from .._checks import flags, integer_between, number, one_of
from . import quadrature
from .adaptive import adaptive
from .arguments import Forward, Target, flat_baselines
from .chunks import Limits, frozen
from .path import Info, fixed, setup, shaped, with_extras
from .shards import Shards


def integrated_gradients(
    forward: Forward,
    inputs: Any,
    baselines: Any = None,
    target: Any = None,
    *,
    additional_forward_args: Any = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    tol: float | None = None,
    max_steps: int | None = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    return_info: bool = False,
    create_graph: bool = False,
    multi_target: bool = False,
    multiply_by_inputs: bool = True,
    compat_trapezoid: bool = False,
    group: Any = None,
    shard: str = "points",
    backend: str | None = None,
) -> Any:
    """Integrated gradients: (x - b) times the mean gradient on the straight path from b to x.

    Args:
        forward: a function of inputs (and additional arguments) whose output has the batch first.
        inputs: floating or complex tensor [B, ...], or a tuple of them.
        baselines: None (zeros), a number, a tensor of inputs' shape or with 1 for B; or a tuple.
        target: None where a sample has one output; an index (int or tuple) into its outputs; one
            for each sample (list, or int tensor (B,)). "all", or a list with ``multi_target``:
            several at once, from one forward.
        additional_forward_args: passed on; tensors with the batch first follow their sample.
        n_steps, method: fixed rule, one of ``quadrature.METHODS``.
        return_convergence_delta, return_info: also return what completeness misses, the ``Info``.
        tol: instead: nested Clenshaw-Curtis rules of 5, 9, 17 ... <= max_steps (129) points, each
            sample until both the missing completeness and the change from the rule before are at
            most tol times the L1 norm of its attributions.
        memory_budget: bytes that a chunk may take beside the model; may split batch and steps.
            Default: fast chunks of some tens of MiB. A chunk that does not fit is halved.
        internal_batch_size: at most so many rows at once.
        create_graph: the result is differentiable: in inputs, baselines and parameters.
        multiply_by_inputs: False gives the mean gradient.
        compat_trapezoid: Captum's riemann_trapezoid, whose weights sum to (n - 1) / n.
        group: a torch.distributed process group; each process does its share of path points
            (``shard="points"``) or of samples (``"samples"``), all get the whole result, after one
            all-reduce.
        backend: of the kernels.

    Returns:
        Attributions of the shape of inputs (float32 for 16-bit inputs; real for complex ones, the
        parts summed), with T first for several targets; then delta (B,) or (T, B) if asked for;
        then ``Info`` if asked for.

    Raises:
        ValueError, TypeError: bad arguments; the model's output is NaN (names the path point).
        RuntimeError: no gradient path.

    Cost: n_steps forward and backward passes of the batch; memory O(chunk).
    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", 2017.
    """
    problem, tensors, single, chosen = setup(
        forward, inputs, target, multi_target, additional_forward_args, create_graph, backend, True
    )
    flags(
        return_convergence_delta=return_convergence_delta, return_info=return_info,
        multiply_by_inputs=multiply_by_inputs, compat_trapezoid=compat_trapezoid,
    )  # fmt: skip
    integer_between("n_steps", n_steps, 1, 2**31)
    one_of("method", method, quadrature.METHODS)
    shards = Shards.of(group, shard, create_graph)
    limits = Limits.of(memory_budget, internal_batch_size)
    if tol is not None:
        number("tol", tol)
    if method == "riemann_trapezoid" and compat_trapezoid:
        method = quadrature.COMPAT_TRAPEZOID
    if problem.batch == 0:
        none = Target.of(None, 0)
        zero = [[torch.zeros_like(x) for x in problem.x]]
        delta = problem.x[0].new_zeros(0)
        result = shaped(zero, problem.layout, none, single)
        info = Info(method, torch.zeros(0, dtype=torch.int64), delta)
        return with_extras(result, delta, return_convergence_delta, info, return_info)
    with (
        torch.set_grad_enabled(create_graph),
        frozen(forward, not (create_graph or problem.direct)),
    ):
        base = flat_baselines(baselines, tensors, problem.layout)
        if tol is not None:
            rows, info = shards.over_samples(
                problem, base,
                lambda p, b: adaptive(p, b, tol, max_steps, limits, chosen, multiply_by_inputs),
            )  # fmt: skip
        else:
            want_delta = return_convergence_delta or return_info
            rows, info = shards.over_samples(
                problem, base,
                lambda p, b: fixed(p, b, method, n_steps, limits, chosen, want_delta, shards,
                                    multiply_by_inputs),
            )  # fmt: skip
    result = shaped(rows, problem.layout, problem.target, single, not multiply_by_inputs)
    return with_extras(result, info.delta, return_convergence_delta, info, return_info)
