"""Average linkage for every alpha, and alphas to start from."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backends, _checks
from . import arguments, linkage
from .distributed import topk
from .linkage import AlphaPath

_SAMPLED_PAIRS = 2**21
_WHOLE = 2048  # nodes up to which all pairs are looked at


def alpha_path(
    features: Tensor,
    *,
    weights: Tensor | None = None,
    negative_dims: int = 0,
    backend: str | None = None,
) -> AlphaPath:
    """Average linkage once; the result gives the partition for every alpha.

    Args:
        features: (n, d). weights, negative_dims, backend: as in ``dense_multicut``.

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
    x = arguments.rows(features)

    def best(means: Tensor) -> tuple[Tensor, Tensor]:
        borders = torch.tensor([0, len(means)], device=means.device)
        values, partners = topk(means, None, borders, 0.0, negative_dims, 1, chosen)
        return values[:, 0], partners[:, 0]

    return linkage.average_tree(x, arguments.flat(weights, x), negative_dims, best, x.dtype)


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
        features: (n, d) with n >= 2. weights, negative_dims, backend: as in ``dense_multicut``.
        quantile: from 0 to 1: this share of pairs repels. All pairs are looked at for n <= 2048,
            else two million drawn from a fixed seed: within 0.1 % of the quantile asked for.
        n_clusters: average linkage finds so many clusters at the alpha returned; the default solver
            usually finds about as many.
    """
    arguments.features("features", features, batches=False)
    arguments.weights("weights", weights, features)
    _checks.integer_between("negative_dims", negative_dims, 0, features.shape[-1])
    _backends.resolve("multicut", backend, features)
    n = features.shape[0]
    if (quantile is None) == (n_clusters is None):
        got = "both" if quantile is not None else "neither"
        raise _checks.fail_value("quantile", "exactly one of quantile and n_clusters", got)
    if n < 2:
        raise _checks.fail_value("features", "at least two nodes", n)
    if n_clusters is not None:
        _checks.integer_between("n_clusters", n_clusters, 1, n)
        path = alpha_path(features, weights=weights, negative_dims=negative_dims, backend=backend)
        return path.alpha_for(n_clusters)
    arguments.number("quantile", quantile)
    assert quantile is not None
    if not 0 <= quantile <= 1:
        raise _checks.fail_value("quantile", "a number from 0 to 1", quantile)
    similar = _similarities(arguments.rows(features), weights, negative_dims)
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
