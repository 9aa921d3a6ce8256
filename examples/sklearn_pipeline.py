"""``DenseMulticut`` as a step of scikit-learn: pipeline, cloning, grid search over its threshold.

Run: python examples/sklearn_pipeline.py          (a few seconds on two cores)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sublimate.multicut import DenseMulticut


def pipeline() -> Pipeline:
    """Images -> 20 whitened directions -> clusters of acute angles."""
    return Pipeline(
        [
            ("scale", StandardScaler()),
            ("reduce", PCA(20, random_state=0)),
            ("cluster", DenseMulticut(normalize=True)),
        ]
    )


def agreement(fitted: Pipeline, x: np.ndarray, y: np.ndarray) -> float:
    """How the clusters of samples it has not seen agree with the digits."""
    return adjusted_rand_score(y, fitted.predict(x))


def main() -> dict[str, Any]:
    x, y = load_digits(return_X_y=True)
    split = ShuffleSplit(2, test_size=0.3, random_state=0)
    grid = {"cluster__alpha": [0.0, 0.15, 0.3, 0.45, 0.6], "cluster__refine": [None, "moves"]}
    search = GridSearchCV(pipeline(), grid, scoring=agreement, cv=split).fit(x, y)
    for options, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        print(f"alpha {options['cluster__alpha']:<5} refine {options['cluster__refine']!s:6} "
              f"agreement {score:.3f}")  # fmt: skip

    best = search.best_estimator_
    again = clone(best).fit(x)  # a fresh pipeline with the same options, fitted again
    k_means = clone(best).set_params(cluster=KMeans(10, n_init=4, random_state=0)).fit(x)
    found = {
        "scores": search.cv_results_["mean_test_score"],
        "params": search.cv_results_["params"],
        "best": search.best_params_["cluster__alpha"],
        "clusters": int(again["cluster"].n_clusters_),
        "multicut": adjusted_rand_score(y, again["cluster"].labels_),
        "k-means": adjusted_rand_score(y, k_means["cluster"].labels_),
        "same again": np.array_equal(again["cluster"].labels_, best["cluster"].labels_),
    }
    print(f"best alpha {found['best']}: {found['clusters']} clusters, adjusted Rand index "
          f"{found['multicut']:.3f}; k-means, told of ten, {found['k-means']:.3f}")  # fmt: skip
    return found


if __name__ == "__main__":
    main()
