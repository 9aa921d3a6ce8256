"""``DenseMulticut`` as scikit-learn, NumPy, pandas and torch see it."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from helpers.mixtures import separated
from sublimate import multicut

sklearn = pytest.importorskip("sklearn", reason="pip install 'sublimate[demo]'")
from sklearn.base import clone  # noqa: E402
from sklearn.metrics import adjusted_rand_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

X, Z = separated(300, 12, 9, 0)
DenseMulticut = multicut.DenseMulticut
#: What check_estimator cannot check here: nothing fails, and this one needs a switch of SciPy.
NOT_RUN = {"check_array_api_input": "SCIPY_ARRAY_API is not set"}


@pytest.mark.parametrize(
    "estimator", [DenseMulticut(), DenseMulticut(n_clusters=3, normalize=True, restarts=2)]
)
def test_check_estimator(estimator):
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(results) > 40
    bad = {r["check_name"]: r for r in results if r["status"] != "passed"}
    assert set(bad) <= set(NOT_RUN), bad
    for name, result in bad.items():
        assert result["status"] == "skipped" and NOT_RUN[name] in str(result["exception"])


def test_attributes():
    model = DenseMulticut(alpha=0.5)
    labels = model.fit_predict(X.numpy())
    assert labels is model.labels_ and isinstance(labels, np.ndarray) and labels.dtype == np.int64
    assert model.n_clusters_ == 9 and adjusted_rand_score(Z, labels) == 1
    assert model.alpha_ == 0.5 and model.n_features_in_ == 12
    due = float(multicut.objective(X, torch.from_numpy(labels), 0.5))
    assert model.objective_ == pytest.approx(due, rel=1e-12)
    torch.testing.assert_close(
        torch.from_numpy(model.cluster_sums_),
        torch.zeros(9, 12, dtype=torch.float64).index_add(0, torch.from_numpy(labels), X.double()),
    )
    assert model.cluster_sizes_.tolist() == np.bincount(labels).tolist()
    assert "alpha=0.5" in repr(model)


def test_torch_in_torch_out():
    model = DenseMulticut(alpha=0.5).fit(X)
    assert isinstance(model.labels_, torch.Tensor) and model.labels_.device == X.device
    assert isinstance(model.predict(X), torch.Tensor)
    assert torch.equal(
        model.labels_, torch.from_numpy(DenseMulticut(alpha=0.5).fit_predict(X.numpy()))
    )
    half = DenseMulticut(alpha=0.5).fit(X.bfloat16().requires_grad_())
    assert torch.equal(half.labels_, model.labels_)
    for bad, error, says in (
        (X[0], ValueError, "X: expected shape (n, d), got (12,)"),
        (X[:0], ValueError, "X: expected at least one sample"),
        (X * torch.nan, ValueError, "X: expected finite numbers"),
        (torch.ones(4, 3).long(), TypeError, "X: expected a tensor of float32"),
    ):
        with pytest.raises(error) as info:
            DenseMulticut().fit(bad)
        assert says in str(info.value)
    with pytest.raises(ValueError, match="X: expected 12 features, got 11"):
        model.predict(X[:, :11])


def test_data_frame():
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    frame = pandas.DataFrame(X.numpy(), columns=[f"f{i}" for i in range(12)])
    model = DenseMulticut(alpha=0.5).fit(frame)
    assert list(model.feature_names_in_) == list(frame.columns)
    assert np.array_equal(model.labels_, DenseMulticut(alpha=0.5).fit_predict(X.numpy()))
    assert np.array_equal(model.predict(frame), model.labels_)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"f0": "g0"}))
    model.fit(X)  # a tensor has no names
    assert not hasattr(model, "feature_names_in_")


def test_predict_is_assign():
    new, _ = separated(900, 12, 9, 1, 0.3)
    model = DenseMulticut(alpha=0.5).fit(X)
    due = multicut.assign(X, model.labels_, new, alpha=0.5)
    assert torch.equal(model.predict(new), due)
    assert np.array_equal(model.predict(new.numpy()), due.numpy())


@pytest.mark.parametrize("options", [{"n_clusters": 9}, {"quantile": 0.85}])
def test_alpha_by_other_means(options):
    model = DenseMulticut(**options).fit(X.numpy())
    assert model.alpha_ == multicut.suggest_alpha(X, **options)
    assert model.n_clusters_ == 9
    with pytest.raises(ValueError, match="exactly one of quantile and n_clusters, got both"):
        DenseMulticut(n_clusters=3, quantile=0.5).fit(X.numpy())


def test_normalize():
    scaled = X * torch.rand(300, 1).add(0.1)
    model = DenseMulticut(alpha=0.5, normalize=True).fit(scaled)
    assert model.n_clusters_ == 9 and torch.equal(model.predict(7 * scaled), model.labels_)
    zero = torch.cat([scaled, torch.zeros(1, 12)])
    assert DenseMulticut(alpha=0.5, normalize=True).fit(zero).n_clusters_ == 10


def test_weights_and_must_link():
    pairs = [[0, 1], [1, 2]]
    model = DenseMulticut(alpha=0.5).fit(X.numpy(), weights=np.ones(300), must_link=pairs)
    assert len(set(model.labels_[:3])) == 1
    with pytest.raises(ValueError, match="weights: expected one weight per node"):
        DenseMulticut().fit(X.numpy(), weights=np.ones(5))


def test_in_a_pipeline_cloned_and_pickled():
    model = make_pipeline(StandardScaler(), DenseMulticut(alpha=1.0, normalize=False, restarts=2))
    labels = model.fit_predict(X.numpy())
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(X.numpy()), model.predict(X.numpy()))
    assert np.array_equal(clone(model).fit_predict(X.numpy()), labels)


def test_scikit_learn_is_optional(monkeypatch):
    """The family imports without it; the estimator says what is missing."""
    for name in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sublimate.multicut.estimator", raising=False)
    monkeypatch.delattr(multicut, "estimator", raising=False)
    with pytest.raises(ImportError, match=r"needs scikit-learn.*pip install scikit-learn"):
        _ = multicut.DenseMulticut
    assert not hasattr(multicut, "Nonsense")
