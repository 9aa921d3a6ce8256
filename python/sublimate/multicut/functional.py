"""Dense multicut: cluster the complete graph of n nodes without its n x n costs.

The pair (i, j) is worth s_ij = <f_i, f_j> - alpha w_i w_j; positive attracts. A clustering costs
the sum of s_ij over the pairs it cuts, and the best one, of whatever number of clusters, is sought.
All in one cluster costs 0. Source: Abbas and Swoboda, "ClusterFuG: Clustering Fully connected
Graphs by Multicut", ICML 2023. The algorithms, proofs and measurements are in this folder's README.

Shared by the functions here:

Args:
    features: (n, d), or a batch of instances: (B, n, d), or (N, d) with ``offsets``. float32,
        float16, bfloat16 or float64, any strides, finite. 16-bit features are computed with in
        float32.
    alpha: a finite number: how similar two nodes must be to attract one another; may be negative.
    weights: a positive weight w per node (default 1): a node that stands for w others, whose
        features are summed in it.
    negative_dims: the last so many coordinates count negatively in the inner product.
    offsets: borders of the instances in the rows of features: ascending from 0 to N.
    backend: "auto", "reference", "cpu", "triton" or "cuda"; None takes the process-wide setting.

Raises:
    TypeError, ValueError: a bad argument; raised before anything runs.
    BackendUnavailable: the named backend cannot run this call.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import _backends, _checks
from . import arguments, bound, link, solver
from .arguments import Batch
from .autograd import ops
from .cost import cut_cost
from .progress import Report, Reporter

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

METHODS = ("auto", "star", "average", "reciprocal", "gaec", "lazy")
REFINE = ("moves", "kernighan-lin")


def solver_options(method: Any, refine: Any, restarts: Any) -> None:
    _checks.one_of("method", method, METHODS)
    if refine is not None:
        _checks.one_of("refine", refine, REFINE)
    _checks.integer_between("restarts", restarts, 1, 10_000)


def dense_multicut(
    features: Tensor,
    *,
    alpha: float = 0.0,
    method: str = "auto",
    refine: str | None = "moves",
    restarts: int = 1,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    must_link: Tensor | None = None,
    offsets: Tensor | list[int] | None = None,
    return_info: bool = False,
    progress: Any = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Any:
    """Clusters the complete graph; the number of clusters is a result.

    Args:
        method: how clusters are first contracted. "star": rounds of reciprocal best pairs and who
            follows them; "average": average linkage; "reciprocal": rounds of reciprocal pairs by
            summed cost; "gaec": exact greedy additive edge contraction, O(n^2) to O(n^3); "lazy":
            greedy on a nearest-neighbour graph that is rebuilt; "auto": the cheap ones, more of
            them with more restarts.
        refine: "moves": single nodes move while that lowers the cost, and clusters join;
            "kernighan-lin": then chains of moves between pairs of clusters, for n up to a few
            thousand; None: neither.
        restarts: number of starts; the best result is kept.
        must_link: (p, 2) pairs of nodes to be in one cluster, numbered over all instances, each
            within one instance.
        return_info: return (labels, ``MulticutInfo``) instead; its ``backends`` say whose kernels
            each phase ran: the sequential ones ("lazy", "kernighan-lin", also as a part of several
            restarts, and with Triton "gaec") run on the host whatever the backend.
        progress: a tqdm bar or class, a ``rich.progress.Progress``, or a callable (done, total,
            what).
        group: a ``torch.distributed`` process group over whose ranks the rows of every all-pairs
            pass are divided. Each rank calls with the same arguments and gets the same labels.

    Returns:
        labels (n,), (B, n) or (N,) int64 on the features' device, numbered by first appearance in
        each instance. The same for any number of threads, and run to run.

    No gradient flows through the labels; see ``objective`` and ``margin_loss``.
    """
    batch = arguments.checked(features, alpha, weights, negative_dims, offsets, tensor=False)
    solver_options(method, refine, restarts)
    arguments.must_link(must_link, features, batch)
    _checks.flags(return_info=return_info)
    if group is not None and not hasattr(group, "rank"):
        raise _checks.fail_type("group", "a torch.distributed.ProcessGroup or None", group)
    chosen = _backends.resolve("multicut", backend, features)
    with Reporter(progress) as report:
        labels, info = solve_checked(
            features, float(alpha), weights, negative_dims, batch, must_link,
            method, refine, restarts, chosen, report, group, return_info,
        )  # fmt: skip
    labels = labels.reshape(batch.shape)
    if info is not None and batch.single:
        info = info.single()
    return (labels, info) if return_info else labels


def solve_checked(
    features: Tensor,
    alpha: float,
    weights: Tensor | None,
    negative_dims: int,
    batch: Batch,
    must_link: Tensor | None,
    method: str,
    refine: str | None,
    restarts: int,
    backend: str,
    report: Report | None,
    group: ProcessGroup | None,
    want_info: bool,
) -> tuple[Tensor, Any]:
    """Labels of all nodes in a row, numbered by first appearance in each instance."""
    x = arguments.rows(features)
    w, borders, node = arguments.flat(weights, x), arguments.borders(batch, x.device), None
    if must_link is not None and len(must_link):
        whole = link.contract(x, w, borders, must_link, backend)
        x, w, borders, node = whole.features, whole.weights, whole.offsets, whole.node
    labels, info = solver.solve(
        x, w, borders, alpha, negative_dims, method=method, refine=refine, restarts=restarts,
        backend=backend, report=report, group=group, want_info=want_info,
    )  # fmt: skip
    return (labels if node is None else labels[node]), info


def objective(
    features: Tensor,
    labels: Tensor,
    alpha: float | Tensor = 0.0,
    *,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    offsets: Tensor | list[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cost of a clustering: the sum of s_ij over the pairs it cuts. O(n d) time.

    Differentiable, to any order, in features, alpha (a tensor of one element) and weights at fixed
    labels: the gradient is that of the optimal cost too wherever the best clustering is unique.

    Args:
        labels: an integer per node, any numbering; equal ones are together.

    Returns:
        float64 whatever the features' dtype, since it is a difference of two sums over n^2 pairs:
        a 0-dim tensor, or (B,) for a batch.
    """
    batch = arguments.checked(features, alpha, weights, negative_dims, offsets, tensor=True)
    arguments.labels("labels", labels, features)
    chosen = _backends.resolve("multicut", backend, features)
    cost = cut_cost(features, labels, alpha, weights, negative_dims, batch, chosen)
    return arguments.per_instance(cost, batch)


def lower_bound(
    features: Tensor,
    alpha: float = 0.0,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    offsets: Tensor | list[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """A number that no clustering costs less than.

    Without labels the sum of min(0, s_ij), in one streamed pass over all pairs. With the labels of
    a good clustering, raised by a packing of triangles guided by it: any labels give a valid bound,
    better ones a higher bound. Nothing of size n x n is kept.

    Returns:
        float64: a 0-dim tensor, or (B,) for a batch. Exact up to rounding of the pairs in the
        features' dtype (float32 for 16-bit ones).

    O(n^2 d) time; with labels at most O(n^2 (d + 256)) and 256 n numbers of memory.
    """
    batch = arguments.checked(features, alpha, weights, negative_dims, offsets, tensor=False)
    if labels is not None:
        arguments.labels("labels", labels, features)
    chosen = _backends.resolve("multicut", backend, features)
    x = arguments.rows(features)
    w = arguments.flat(weights, x)
    found: Tensor = ops.multicut_negative_sum(
        x, w, arguments.borders(batch, x.device), float(alpha), negative_dims, chosen
    )
    if labels is not None:
        flat = labels.reshape(-1).long()
        for b, (low, high) in enumerate(itertools.pairwise(batch.rows)):
            part = slice(low, high)
            found[b] += bound.triangle_gain(
                x[part], flat[part], float(alpha), None if w is None else w[part], negative_dims
            )
    return arguments.per_instance(found, batch)
