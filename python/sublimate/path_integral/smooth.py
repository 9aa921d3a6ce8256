"""SmoothGrad and its kin: gradients at noisy copies of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._checks import integer_between, one_of
from .arguments import Forward
from .chunks import Limits, frozen, run_halving
from .path import Info, setup, shaped, with_extras
from .sampling import Draws, sample_numbers, sample_sums, stdevs
from .shards import Shards

KINDS = ("mean", "squared", "variance")


def smooth_grad(
    forward: Forward,
    inputs: Any,
    target: Any = None,
    *,
    kind: str = "mean",
    stdev: Any = 0.1,
    n_samples: int = 50,
    seed: int | Tensor | None = 0,
    sample_ids: Tensor | None = None,
    additional_forward_args: Any = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    return_info: bool = False,
    create_graph: bool = False,
    multi_target: bool = False,
    group: Any = None,
    backend: str | None = None,
) -> Any:
    """Mean, mean square or (population) variance of the gradient at x + stdev * normal noise.

    Args:
        forward, inputs, target, and what is not named here: as in ``integrated_gradients``.
        kind: "mean" (SmoothGrad), "squared", or "variance" (VarGrad: squared - mean^2).
        stdev: of the noise: a number, a tensor (B,), or a tuple with one for each input.
        n_samples: noisy copies of each sample. Noise comes from a counter, so it is never stored
            and is the same for every chunk size, batch order and number of processes.
        seed, sample_ids: as in ``expected_gradients``.

    Returns:
        Like the inputs in shape (complex for the mean over complex inputs); float32 for 16-bit
        inputs. ``Info`` has ``variance`` and ``standard_error`` of the mean.

    Raises:
        ArgumentError, TypeError, ValueError: as in ``integrated_gradients``.

    Cost: n_samples forward and backward passes of the batch; memory O(chunk).
    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017; Adebayo et al.,
    "Local explanation methods for deep neural networks lack sensitivity to parameter values", 2018.
    """
    problem, _, single, chosen = setup(
        forward, inputs, target, multi_target, additional_forward_args, create_graph, backend
    )
    _checks.flags(return_info=return_info)
    one_of("kind", kind, KINDS)
    integer_between("n_samples", n_samples, 1, 2**31)
    _checks.seed("seed", seed)
    limits = Limits.of(memory_budget, internal_batch_size)
    shards = Shards.of(group, "points", create_graph)
    device, n = problem.x[0].device, n_samples
    draws = Draws(
        torch.ones(n, dtype=torch.float64, device=device),
        None,
        torch.full((n,), 1 / n, dtype=torch.float64, device=device),
        sample_numbers(sample_ids, problem.batch, device),
        stdevs(stdev, problem),
        shards.seed(seed, device),
        n,
    ).shared(shards)
    second = return_info or kind != "mean"
    with frozen(forward, not create_graph), torch.set_grad_enabled(create_graph):
        rows = limits.choose(problem, draws.count)
        sums, rows = run_halving(
            rows,
            lambda r: sample_sums(
                problem, None, draws, r, chosen, second=second, differences=False
            ),
        )
        acc = shards.reduce(
            [[s for inputs in targets for s in inputs[: 1 + second]] for targets in sums.acc]
        )
    mean = [targets[:: 1 + second] for targets in acc]
    squares = [targets[1::2] for targets in acc] if second else []
    variance = [
        [(s - m.square()).clamp_min(0) for m, s in zip(ms, ss, strict=True)]
        for ms, ss in zip(mean, squares, strict=False)
    ]
    rows_of = {"mean": mean, "squared": squares, "variance": variance}[kind]
    result = shaped(rows_of, problem.layout, problem.target, single, kind == "mean")
    info = None
    if return_info:
        steps = torch.full((problem.batch,), n, dtype=torch.int64)
        info = Info("smoothgrad", steps, None, rows=rows, evaluations=draws.count * problem.batch)
        error = [[(v / n).sqrt() for v in vs] for vs in variance]
        info.variance = shaped(variance, problem.layout, problem.target, single)
        info.standard_error = shaped(error, problem.layout, problem.target, single)
    return with_extras(result, None, False, info, return_info)
