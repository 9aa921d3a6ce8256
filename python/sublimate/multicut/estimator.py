"""scikit-learn's estimator interface. Needs scikit-learn; nothing else of the family does."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

try:
    from sklearn.base import BaseEstimator, ClusterMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "sublimate.multicut.DenseMulticut needs scikit-learn >= 1.6 "
        f"({error}); install it with: pip install scikit-learn"
    ) from error

from .. import _backends, _checks
from .._dtypes import accumulator
from . import arguments, functional
from .autograd import ops
from .pairs import best_sums
from .path import suggest_alpha


class DenseMulticut(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Correlation clustering of the complete graph of inner products, of any number of clusters.

    Args:
        alpha: inner product above which two samples attract one another. With unit features the
            cosine of an angle. Ignored if ``n_clusters`` or ``quantile`` is given.
        n_clusters: choose alpha so that average linkage finds so many clusters; the result usually
            has about as many.
        quantile: choose alpha so that this share of pairs repels.
        normalize: divide every sample by its Euclidean norm first (zero rows stay zero).
        method, refine, restarts, negative_dims, backend: of ``dense_multicut``.
        progress: of ``dense_multicut``.

    ``fit(X)`` takes an array, a list, a DataFrame or a torch tensor (on any device), (n_samples,
    n_features). A tensor gives tensors on its device, anything else NumPy arrays.

    Attributes:
        labels_: (n_samples,) int64, numbered by first appearance.
        n_clusters_: their number.
        objective_: cost of the clustering; 0 is all in one cluster, lower is better.
        alpha_: the alpha used.
        cluster_sums_, cluster_sizes_: (n_clusters_, n_features) float64 and (n_clusters_,): what
            ``predict`` needs.
        n_features_in_, feature_names_in_: as in scikit-learn.
    """

    def __init__(
        self,
        alpha: float = 0.0,
        *,
        n_clusters: int | None = None,
        quantile: float | None = None,
        normalize: bool = False,
        method: str = "auto",
        refine: str | None = "moves",
        restarts: int = 1,
        negative_dims: int = 0,
        progress: Any = None,
        backend: str | None = None,
    ) -> None:
        self.alpha = alpha
        self.n_clusters = n_clusters
        self.quantile = quantile
        self.normalize = normalize
        self.method = method
        self.refine = refine
        self.restarts = restarts
        self.negative_dims = negative_dims
        self.progress = progress
        self.backend = backend

    def fit(
        self,
        X: ArrayLike | Tensor,
        y: Any = None,
        *,
        weights: ArrayLike | Tensor | None = None,
        must_link: ArrayLike | Tensor | None = None,
    ) -> DenseMulticut:
        """Clusters the rows of X.

        Args:
            y: ignored.
            weights: (n_samples,) positive: how many samples each row stands for, being their sum.
            must_link: (p, 2) pairs of rows to be in one cluster.
        """
        functional.solver_options(self.method, self.refine, self.restarts)
        _checks.flags(normalize=self.normalize)
        x, back = self._tensor(X, reset=True)
        w = None if weights is None else torch.as_tensor(weights, device=x.device).to(x.dtype)
        pairs = None if must_link is None else torch.as_tensor(must_link, device=x.device)
        alpha = self._alpha(x, w)
        options: dict[str, Any] = {
            "weights": w,
            "negative_dims": self.negative_dims,
            "backend": self.backend,
        }
        labels = functional.dense_multicut(
            x,
            alpha=alpha,
            method=self.method,
            refine=self.refine,
            restarts=self.restarts,
            must_link=pairs,
            progress=self.progress,
            **options,
        )
        chosen = _backends.resolve("multicut", self.backend, x)
        count = int(labels.max()) + 1
        rows = arguments.rows(x)
        sums, masses, _ = ops.multicut_contract(
            rows, arguments.flat(w, rows), labels, count, chosen
        )
        self.alpha_ = alpha
        self.objective_ = float(functional.objective(x, labels, alpha, **options))
        self.n_clusters_ = count
        self.labels_ = back(labels)
        self.cluster_sums_ = back(sums)
        self.cluster_sizes_ = back(masses)
        return self

    def fit_predict(self, X: ArrayLike | Tensor, y: Any = None, **options: Any) -> Any:
        """``fit(X, **options).labels_``."""
        return self.fit(X, y, **options).labels_

    def predict(self, X: ArrayLike | Tensor) -> Any:
        """For each row of X the cluster it is worth most to: <x, sum> - alpha * size."""
        check_is_fitted(self)
        x, back = self._tensor(X, reset=False)
        sums, masses = (
            torch.as_tensor(t, device=x.device) for t in (self.cluster_sums_, self.cluster_sizes_)
        )
        chosen = _backends.resolve("multicut", self.backend, x)
        rows = arguments.rows(x)
        _, labels = best_sums(rows, None, sums, masses, self.alpha_, self.negative_dims, chosen)
        return back(labels)

    def _alpha(self, x: Tensor, weights: Tensor | None) -> float:
        if self.n_clusters is None and self.quantile is None:
            arguments.number("alpha", self.alpha)
            return float(self.alpha)
        count = self.n_clusters
        if count is not None and self.quantile is None:
            # scikit-learn's estimators take any integer type here.
            if not isinstance(count, numbers.Integral):
                raise _checks.fail_type("n_clusters", "an integer or None", count)
            _checks.integer_between("n_clusters", int(count), 1, len(x))
            if len(x) == 1:
                arguments.number("alpha", self.alpha)
                return float(self.alpha)
        return suggest_alpha(
            x,
            quantile=self.quantile,
            n_clusters=None if count is None else int(count),
            weights=weights,
            negative_dims=self.negative_dims,
            backend=self.backend,
        )

    def _tensor(self, X: Any, reset: bool) -> tuple[Tensor, Any]:
        """X as a checked tensor, and the way back to the caller's kind of array."""
        if isinstance(X, Tensor):
            arguments.features("X", X, batches=False)
            if len(X) == 0:
                raise _checks.fail_value("X", "at least one sample", tuple(X.shape))
            if reset:
                self.n_features_in_ = X.shape[1]
                if hasattr(self, "feature_names_in_"):
                    del self.feature_names_in_
            elif X.shape[1] != self.n_features_in_:
                raise _checks.fail_value("X", f"{self.n_features_in_} features", X.shape[1])
            x, back = X.detach().to(accumulator(X.dtype)), _same
        else:
            array = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
            array = np.require(array, requirements=["C", "W"])  # torch wants to be able to write
            x, back = torch.from_numpy(array), _numpy
        if self.normalize:
            x = torch.nn.functional.normalize(x, dim=1)
        return x, back


def _same(t: Tensor) -> Tensor:
    return t


def _numpy(t: Tensor) -> Any:
    return t.cpu().numpy()
