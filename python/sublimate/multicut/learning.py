"""Learning features whose best clustering is a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backends, _checks
from .._dtypes import accumulator
from . import arguments, solver
from .arguments import Batch
from .cost import cut_cost, disagreement, number_clusters
from .functional import solver_options


def margin_loss(
    features: Tensor,
    target_labels: Tensor,
    alpha: float | Tensor = 0.0,
    margin: float = 1.0,
    *,
    reduction: str = "mean",
    method: str = "auto",
    refine: str | None = "moves",
    restarts: int = 1,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    offsets: Tensor | list[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Structured hinge loss: learn features whose best clustering is the given one.

        max over labellings y of  cost(target) - cost(y) + margin * distance(y, target),

    where the distance is the number of pairs (weighted w_i w_j) that one of the two cuts and the
    other not. It is 0 if and only if the target beats every other clustering by the margin times
    its distance. The maximum is itself a dense multicut, with the target as extra coordinates that
    count negatively, and is sought by ``dense_multicut``'s methods: the loss is a lower bound of
    the exact one and never negative. (Tsochantaridis et al., "Large Margin Methods for Structured
    and Interdependent Output Variables", JMLR 2005; margin = 0 is the structured perceptron.)

    Args:
        features, alpha, weights, negative_dims, offsets, backend: as in ``dense_multicut``; alpha
            also a 0-dim tensor.
        target_labels: an integer per node, any numbering.
        margin: a finite number >= 0, in units of s_ij per pair.
        reduction: "mean": per pair of nodes, averaged over the instances; "sum": over all pairs and
            instances; "none": the sum over pairs, for each instance.
        method, refine, restarts: of the inner maximisation.

    Returns:
        the loss, 0-dim ((B,) for reduction="none" of a batch), in the dtype of the features, and
        float32 for 16-bit ones. Differentiable in features, alpha and weights, with the maximising
        labelling held fixed: a subgradient of the loss.

    O(n d) beside the inner multicut, which has one more coordinate for each target cluster of two
    nodes or more.
    """
    batch = arguments.checked(features, alpha, weights, negative_dims, offsets, tensor=True)
    arguments.labels("target_labels", target_labels, features)
    arguments.number("margin", margin)
    if margin < 0:
        raise _checks.fail_value("margin", "a number of at least 0", margin)
    _checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    solver_options(method, refine, restarts)
    chosen = _backends.resolve("multicut", backend, features)
    level = float(alpha.detach() if isinstance(alpha, Tensor) else alpha)
    worst = _most_violated(
        features, target_labels, level, float(margin), weights, negative_dims, batch,
        method, refine, restarts, chosen,
    )  # fmt: skip
    gap = cut_cost(
        features, target_labels, alpha, weights, negative_dims, batch, chosen
    ) - cut_cost(features, worst, alpha, weights, negative_dims, batch, chosen)
    apart = disagreement(target_labels.reshape(-1), worst, weights, batch, chosen)
    loss = (gap + margin * apart).clamp(min=0)  # the target itself is a candidate, worth 0
    result = accumulator(features.dtype)
    if reduction == "none":
        return arguments.per_instance(loss, batch).to(result)
    if reduction == "sum":
        return loss.sum().to(result)
    sizes = torch.tensor(batch.rows, dtype=torch.float64, device=loss.device).diff()
    pairs = (sizes * (sizes - 1) / 2).clamp(min=1)
    return ((loss / pairs).sum() / max(batch.size, 1)).to(result)


def _most_violated(
    features: Tensor,
    target: Tensor,
    alpha: float,
    margin: float,
    weights: Tensor | None,
    negative_dims: int,
    batch: Batch,
    method: str,
    refine: str | None,
    restarts: int,
    backend: str,
) -> Tensor:
    """(N,) labels that maximise cost(target) - cost(y) + margin * distance(y, target).

    Cutting a pair of one target cluster earns the margin, and so does joining one of two: s becomes
    s + margin - 2 margin [same target], that is alpha - margin, and a coordinate sqrt(2 margin) w_i
    for each target cluster, counted negatively.
    """
    x = arguments.rows(features)
    w = arguments.flat(weights, x)
    if margin > 0:
        clusters = number_clusters(target, batch)
        sizes = torch.bincount(clusters.ids, minlength=clusters.count)
        # Instances share coordinates: each takes those of its clusters of two nodes or more, from
        # the first on.
        several = sizes > 1
        before = several.long().cumsum(0) - several.long()
        first = torch.searchsorted(
            clusters.instance.contiguous(), torch.arange(batch.size, device=x.device)
        )
        rank = before - before[first[clusters.instance]]
        width = int(rank[several].max()) + 1 if bool(several.any()) else 0
        code = x.new_zeros(x.shape[0], width)
        members = several[clusters.ids].nonzero()[:, 0]
        scale = (2 * margin) ** 0.5
        code[members, rank[clusters.ids[members]]] = scale if w is None else scale * w[members]
        x = torch.cat([x, code], 1)
        negative_dims += width
    return solver.solve(
        x, w, arguments.borders(batch, x.device), alpha - margin, negative_dims, method=method,
        refine=refine, restarts=restarts, backend=backend, report=None, group=None, want_info=False,
    )[0]  # fmt: skip
