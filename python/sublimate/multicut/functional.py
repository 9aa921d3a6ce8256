"""Dense multicut: cluster the complete graph of n nodes without its n x n costs.

The pair (i, j) is worth s_ij = <f_i, f_j> - alpha w_i w_j; positive attracts. A clustering costs the
sum of s_ij over the pairs it cuts, and the best one, of whatever number of clusters, is sought. All
in one cluster costs 0. Source: Abbas and Swoboda, "ClusterFuG: Clustering Fully connected Graphs by
Multicut", ICML 2023. The algorithms, proofs and measurements are in this folder's README.

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

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _backends, _checks
from .._dtypes import accumulator
from . import arguments, bound, linkage
from .arguments import Batch
from .autograd import ops
from .distributed import topk as _pairs
from .linkage import AlphaPath
from .objective import cut_cost, disagreement, number_clusters

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SAMPLED_PAIRS = 2**21
_WHOLE = 2048  # nodes up to which all pairs are looked at


def _checked(
    features: Any, alpha: Any, weights: Any, negative_dims: Any, offsets: Any, *, tensor: bool
) -> Batch:
    """The arguments that the functions share; ``tensor``: alpha may be one."""
    arguments.features("features", features)
    arguments.number("alpha", alpha, tensor=tensor)
    arguments.weights("weights", weights, features)
    _checks.integer_between("negative_dims", negative_dims, 0, features.shape[-1])
    return arguments.batch(features, arguments.offsets(offsets, features))


def _rows(x: Tensor) -> Tensor:
    """(N, d) contiguous, in the dtype that is computed in, without history."""
    return x.detach().reshape(-1, x.shape[-1]).to(accumulator(x.dtype)).contiguous()


def _flat(weights: Tensor | None, x: Tensor) -> Tensor | None:
    """(N,) weights in the dtype of the rows x."""
    return None if weights is None else weights.detach().reshape(-1).to(x.dtype).contiguous()


def _borders(batch: Batch, device: torch.device) -> Tensor:
    return torch.tensor(batch.rows, dtype=torch.int64, device=device)


def _per_instance(values: Tensor, batch: Batch) -> Tensor:
    """One number for one instance, (B,) for a batch."""
    return values[0] if batch.single else values


# --------------------------------------------------------------------------------------- objective


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
    batch = _checked(features, alpha, weights, negative_dims, offsets, tensor=True)
    arguments.labels("labels", labels, features)
    chosen = _backends.resolve("multicut", backend, features)
    cost = cut_cost(features, labels, alpha, weights, negative_dims, batch, chosen)
    return _per_instance(cost, batch)


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

    O(n^2 d) time; with labels O(n^2 (d + 512)), and 512 n numbers of memory.
    """
    batch = _checked(features, alpha, weights, negative_dims, offsets, tensor=False)
    if labels is not None:
        arguments.labels("labels", labels, features)
    chosen = _backends.resolve("multicut", backend, features)
    x = _rows(features)
    w = _flat(weights, x)
    found: Tensor = ops.multicut_negative_sum(
        x, w, _borders(batch, x.device), float(alpha), negative_dims, chosen
    )
    if labels is not None:
        flat = labels.reshape(-1).long()
        for b, (low, high) in enumerate(zip(batch.rows, batch.rows[1:], strict=False)):
            part = slice(low, high)
            found[b] += bound.triangle_gain(
                x[part], flat[part], float(alpha), None if w is None else w[part], negative_dims
            )
    return _per_instance(found, batch)


# --------------------------------------------------------------------------------- average linkage


def alpha_path(
    features: Tensor,
    *,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    backend: str | None = None,
) -> AlphaPath:
    """Average linkage once; the result gives the partition for every alpha.

    Args:
        features: (n, d).

    Returns:
        ``AlphaPath`` with ``labels(alpha)``, ``n_clusters(alpha)`` and ``alpha_for(n_clusters)``.
        Its partition for alpha is that of ``dense_multicut(method="average", refine=None)``, and
        of average linkage on the matrix of inner products cut at alpha.

    4 to 5 times the work of one all-pairs pass, O(n d) memory.
    """
    arguments.features("features", features, batches=False)
    arguments.weights("weights", weights, features)
    _checks.integer_between("negative_dims", negative_dims, 0, features.shape[-1])
    chosen = _backends.resolve("multicut", backend, features)
    x = _rows(features)

    def best(means: Tensor) -> tuple[Tensor, Tensor]:
        borders = torch.tensor([0, len(means)], device=means.device)
        values, partners = _pairs(means, None, borders, 0.0, negative_dims, 1, chosen)
        return values[:, 0], partners[:, 0]

    return linkage.average_tree(x, _flat(weights, x), negative_dims, best, x.dtype)


def suggest_alpha(
    features: Tensor,
    *,
    quantile: float | None = None,
    n_clusters: int | None = None,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    backend: str | None = None,
) -> float:
    """An alpha to start from; give exactly one of ``quantile`` and ``n_clusters``.

    Args:
        features: (n, d) with n >= 2.
        quantile: from 0 to 1: this share of pairs repels. All pairs are looked at for n <= 2048,
            else two million drawn from a fixed seed: within 0.1 % of the quantile asked for.
        n_clusters: average linkage finds so many clusters at the alpha returned; the default solver
            usually finds about as many.
    """
    arguments.features("features", features, batches=False)
    arguments.weights("weights", weights, features)
    _checks.integer_between("negative_dims", negative_dims, 0, features.shape[-1])
    n = features.shape[0]
    if (quantile is None) == (n_clusters is None):
        got = "both" if quantile is not None else "neither"
        raise _checks.fail_value("quantile", "exactly one of quantile and n_clusters", got)
    if n < 2:
        raise _checks.fail_value("features", "at least two nodes", n)
    if n_clusters is not None:
        _checks.integer_between("n_clusters", n_clusters, 1, n)
        path = alpha_path(
            features, weights=weights, negative_dims=negative_dims, backend=backend
        )
        return path.alpha_for(n_clusters)
    arguments.number("quantile", quantile)
    assert quantile is not None
    if not 0 <= quantile <= 1:
        raise _checks.fail_value("quantile", "a number from 0 to 1", quantile)
    similar = _similarities(_rows(features), weights, negative_dims)
    place = quantile * (similar.numel() - 1)
    low = int(place)
    # torch.quantile refuses large inputs; this is its linear interpolation.
    a = similar.kthvalue(low + 1).values
    b = similar.kthvalue(min(low + 2, similar.numel())).values
    return float(a + (b - a) * (place - low))


def _similarities(x: Tensor, weights: Tensor | None, negative_dims: int) -> Tensor:
    """<f_i, f_j> / (w_i w_j) of all pairs or a sample, one row of numbers."""
    n, d = x.shape
    signed = torch.cat([x[:, : d - negative_dims], -x[:, d - negative_dims :]], 1)
    w = None if weights is None else weights.detach().to(x.dtype)
    if n <= _WHOLE:
        i, j = torch.triu_indices(n, n, 1, device=x.device)
        found = (x @ signed.t())[i, j]
    else:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(n, (_SAMPLED_PAIRS,), generator=generator).to(x.device)
        step = torch.randint(1, n, (_SAMPLED_PAIRS,), generator=generator).to(x.device)
        i, j = first, (first + step) % n
        found = torch.cat(
            [(x[a] * signed[b]).sum(1) for a, b in zip(i.split(2**16), j.split(2**16), strict=True)]
        )
    return found if w is None else found / (w[i] * w[j])


# ------------------------------------------------------------------------- assignment, top-k


def assign(
    features: Tensor,
    labels: Tensor,
    new_features: Tensor,
    *,
    alpha: float = 0.0,
    weights: Tensor | None = None,
    new_weights: Tensor | None = None,
    negative_dims: int = 0,
    reject: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Puts each new node into the cluster it is worth most to, all others fixed.

    Args:
        features, labels: (n, d) and (n,): a clustering, any numbering.
        new_features: (m, d), same dtype and device.
        new_weights: (m,), default 1.
        reject: label -1 where the node repels every cluster, so that it would rather be alone.

    Returns:
        (m,) int64, values of ``labels``; ties go to the lowest label.

    O(n d + m K d) for K clusters, nothing of size m x K.
    """
    arguments.features("features", features, batches=False)
    arguments.labels("labels", labels, features)
    arguments.features("new_features", new_features, batches=False)
    if new_features.shape[1] != features.shape[1]:
        raise _checks.fail_value(
            "new_features", f"{features.shape[1]} features", new_features.shape[1]
        )
    if new_features.dtype != features.dtype:
        raise _checks.fail_kind(
            "new_features", f"the dtype of features, {features.dtype}", str(new_features.dtype)
        )
    if new_features.device != features.device:
        raise _checks.fail_value("new_features", f"a tensor on {features.device}", new_features.device)
    arguments.number("alpha", alpha)
    arguments.weights("weights", weights, features)
    arguments.weights("new_weights", new_weights, new_features)
    _checks.integer_between("negative_dims", negative_dims, 0, features.shape[-1])
    if not isinstance(reject, bool):
        raise _checks.fail_type("reject", "a bool", reject)
    if features.shape[0] == 0 and new_features.shape[0] > 0:
        raise _checks.fail_value("features", "at least one node to be assigned to", 0)
    chosen = _backends.resolve("multicut", backend, features)
    names, ids = torch.unique(labels, return_inverse=True)
    x = _rows(features)
    sums, masses, _ = ops.multicut_contract(x, _flat(weights, x), ids, len(names), chosen)
    worth, place = best_sums(
        _rows(new_features), _flat(new_weights, x), sums, masses, alpha, negative_dims, chosen
    )
    found = names.long()[place]
    return torch.where(worth > 0, found, -1) if reject else found


def best_sums(
    x: Tensor,
    weights: Tensor | None,
    sums: Tensor,
    masses: Tensor,
    alpha: float,
    negative_dims: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(value, cluster) of the cluster that each row of x is worth most to, given their sums."""
    own = x.new_ones(x.shape[0]) if weights is None else weights
    values, columns = ops.multicut_topk(
        x,
        own,
        torch.tensor([0, x.shape[0]], device=x.device),
        float(alpha),
        negative_dims,
        sums.to(x.dtype),
        masses.to(x.dtype),
        torch.tensor([0, sums.shape[0]], device=x.device),
        1,
        None,
        backend,
    )
    return values[:, 0], columns[:, 0]


def inner_product_topk(
    features: Tensor,
    k: int,
    *,
    other: Tensor | None = None,
    alpha: float = 0.0,
    weights: Tensor | None = None,
    other_weights: Tensor | None = None,
    exclude_self: bool = True,
    negative_dims: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest s_ij of each node and their columns, streamed: never n x n.

    Args:
        features: (n, d) or (B, n, d).
        k: at least 1.
        other: (m, d) or (B, m, d): the columns; default the features themselves.
        weights, other_weights: default 1.
        exclude_self: without ``other``, leave the pair (i, i) out.

    Returns:
        values (..., n, k), descending, float32 (float64 for float64 features), and indices
        (..., n, k) int64 of the columns; equal values by lowest index. Where there are fewer than k
        columns, -inf and -1. 16-bit features: as if converted to float32. The values have no
        gradient; gather the pairs to differentiate.

    O(n m d) time, O(n k) memory beside the inputs.
    """
    arguments.features("features", features)
    _checks.integer_between("k", k, 1, 2**31 - 1)
    arguments.number("alpha", alpha)
    arguments.weights("weights", weights, features)
    d = features.shape[-1]
    _checks.integer_between("negative_dims", negative_dims, 0, d)
    if not isinstance(exclude_self, bool):
        raise _checks.fail_type("exclude_self", "a bool", exclude_self)
    columns = features
    if other is not None:
        arguments.features("other", other)
        expected = (*features.shape[:-2], "m", d)
        if other.dim() != features.dim() or (*other.shape[:-2], "m", other.shape[-1]) != expected:
            shown = f"({', '.join(map(str, expected))})"
            raise _checks.fail_value("other", f"shape {shown}", tuple(other.shape))
        if other.dtype != features.dtype:
            raise _checks.fail_kind(
                "other", f"the dtype of features, {features.dtype}", str(other.dtype)
            )
        if other.device != features.device:
            raise _checks.fail_value("other", f"a tensor on {features.device}", other.device)
        arguments.weights("other_weights", other_weights, other)
        columns = other
    elif other_weights is not None:
        raise _checks.fail_value("other_weights", "None without other", "a tensor")
    chosen = _backends.resolve("multicut", backend, features)
    x = features.detach().reshape(-1, d).contiguous()
    y = None if other is None else other.detach().reshape(-1, d).contiguous()
    acc = x.new_empty(0, dtype=accumulator(x.dtype))
    w, v = _flat(weights, acc), _flat(other_weights, acc)
    if y is not None and (w is None) != (v is None):
        w = acc.new_ones(x.shape[0]) if w is None else w
        v = acc.new_ones(y.shape[0]) if v is None else v
    rows = _borders(arguments.batch(features, None), x.device)
    starts = _borders(arguments.batch(columns, None), x.device)
    values, indices = ops.multicut_topk(
        x,
        w,
        rows,
        float(alpha),
        negative_dims,
        y,
        v,
        None if y is None else starts,
        k,
        0 if y is None and exclude_self else None,
        chosen,
    )
    shape = (*features.shape[:-1], k)
    values, indices = values.reshape(shape), indices.reshape(shape)
    if features.dim() == 3:
        indices = torch.where(indices < 0, -1, indices - starts[:-1].reshape(-1, 1, 1))
    return values, indices


# ------------------------------------------------------------------------------- sparse graphs


def gaec_graph(
    edges: Tensor,
    costs: Tensor,
    *,
    nodes: int | None = None,
    return_merges: bool = False,
    backend: str | None = None,
) -> Any:
    """Greedy additive edge contraction of a sparse graph; absent edges cost nothing.

    Contracts the edge of largest positive cost, parallel edges adding up, until none is positive;
    equal costs by lower, then higher smallest member. (Keuper et al., "Efficient Decomposition of
    Image and Mesh Graphs by Lifted Multicuts", ICCV 2015.)

    Args:
        edges: (m, 2) integers, ends of each edge, different from one another; repeated edges add.
        costs: (m,) finite floating numbers; positive attracts. Computed in float64.
        nodes: number of nodes; default the largest end plus one.
        return_merges: also return what was contracted.
        backend: "cpu" or "reference" (plain Python, for tiny graphs). The heap is sequential, so
            there is no GPU kernel: tensors on a GPU are copied to the host and the labels back.

    Returns:
        labels (nodes,) int64, numbered by first appearance; with ``return_merges`` also the merges
        (c, 2), smallest members of the two clusters, and their costs (c,) float64.

    O(m log m) for the heap, plus for each contraction the degree of the absorbed cluster.
    """
    if not isinstance(edges, Tensor):
        raise _checks.fail_type("edges", "a torch.Tensor of integers, shape (m, 2)", edges)
    if edges.dtype not in arguments.INTEGERS:
        raise _checks.fail_kind("edges", "a tensor of integers", str(edges.dtype))
    if edges.dim() != 2 or edges.shape[1] != 2:
        raise _checks.fail_value("edges", "shape (m, 2)", tuple(edges.shape))
    _checks.floating_tensor("costs", costs)
    if costs.shape != edges.shape[:1]:
        raise _checks.fail_value(
            "costs", f"one cost per edge, shape ({len(edges)},)", tuple(costs.shape)
        )
    if costs.device != edges.device:
        raise _checks.fail_value("costs", f"a tensor on {edges.device}", costs.device)
    arguments.finite("costs", costs.detach())
    low, high = (int(v) for v in torch.aminmax(edges)) if edges.numel() else (0, -1)
    if nodes is None:
        nodes = high + 1
    _checks.integer_between("nodes", nodes, 0, 2**31 - 1)
    if low < 0 or high >= nodes:
        raise _checks.fail_value(
            "edges", f"ends from 0 to {nodes - 1}", low if low < 0 else high
        )
    loops = (edges[:, 0] == edges[:, 1]).nonzero()
    if len(loops):
        raise _checks.fail_value("edges", "two different ends", edges[loops[0, 0]].tolist())
    if not isinstance(return_merges, bool):
        raise _checks.fail_type("return_merges", "a bool", return_merges)
    host = costs.detach().cpu().double().contiguous()
    chosen = _graph_backend(backend, host)
    labels, merges, gains, count = ops.multicut_gaec_graph(
        edges.cpu().long().contiguous(), host, nodes, chosen
    )
    labels = labels.to(edges.device)
    if not return_merges:
        return labels
    made = int(count)
    return labels, merges[:made].to(edges.device), gains[:made].to(edges.device)


def _graph_backend(backend: str | None, host: Tensor) -> str:
    """cpu or reference; a process-wide setting for a GPU does not concern this function."""
    if backend in ("cuda", "triton"):
        raise _backends.BackendUnavailable(
            f"backend {backend!r} of sublimate.multicut cannot run gaec_graph: its heap is "
            "sequential. Would work: reference, cpu."
        )
    if backend is None and _backends.get_backend() in ("cuda", "triton"):
        backend = "auto"
    return _backends.resolve("multicut", backend, host)
