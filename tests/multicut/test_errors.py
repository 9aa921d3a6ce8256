"""Bad input: the exact exception, naming argument, expected and got, before any kernel runs."""

from __future__ import annotations

import pytest
import sublimate
import torch
from sublimate import multicut

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
Z = torch.arange(6) % 2
#: Every public function of features, its other arguments in place.
FUNCTIONS = {
    "dense_multicut": lambda x, **o: multicut.dense_multicut(x, **o),
    "objective": lambda x, **o: multicut.objective(x, Z, **o),
    "margin_loss": lambda x, **o: multicut.margin_loss(x, Z, **o),
    "lower_bound": lambda x, **o: multicut.lower_bound(x, **o),
    "alpha_path": lambda x, **o: multicut.alpha_path(x, **o),
    "suggest_alpha": lambda x, **o: multicut.suggest_alpha(x, quantile=0.5, **o),
    "assign": lambda x, **o: multicut.assign(x, Z, X, **o),
    "inner_product_topk": lambda x, **o: multicut.inner_product_topk(x, 2, **o),
}
WITH_ALPHA = [n for n in FUNCTIONS if n not in ("alpha_path", "suggest_alpha")]
WITH_OFFSETS = ("dense_multicut", "objective", "margin_loss", "lower_bound")
BATCHED = (*WITH_OFFSETS, "inner_product_topk")


@pytest.fixture(autouse=True)
def _nothing_runs(calls):
    yield
    assert not calls, f"ran {dict(calls)}"


def raises(error, *parts):
    """The exact type, and a message with all parts in order."""

    class Check:
        def __enter__(self):
            self.context = pytest.raises(error)
            self.info = self.context.__enter__()

        def __exit__(self, *exception):
            result = self.context.__exit__(*exception)
            assert self.info.type is error, f"{self.info.type.__name__}: {self.info.value}"
            rest = str(self.info.value)
            for part in parts:
                assert part in rest, f"{part!r} not in {self.info.value!s}"
                rest = rest[rest.index(part) :]
            return result

    return Check()


def with_value(value):
    x = X.clone()
    x[3, 1] = value
    return x


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("x", "error", "parts"),
    [
        (3.0, TypeError, ("features: expected a torch.Tensor", "got float")),
        (X.tolist(), TypeError, ("features: expected a torch.Tensor", "got list")),
        (
            torch.ones(6, 3, dtype=torch.int64),
            TypeError,
            ("features: expected a tensor of float32",),
        ),
        (X.to_sparse(), TypeError, ("features: expected a dense", "got torch.sparse_coo")),
        (X[0], ValueError, ("features: expected shape (n, d)", "got (3,)")),
        (
            X.reshape(1, 1, 6, 3),
            ValueError,
            ("features: expected shape (n, d)", "got (1, 1, 6, 3)"),
        ),
        (X[:, :0], ValueError, ("features: expected at least one feature", "got (6, 0)")),
        (with_value(torch.nan), ValueError, ("features: expected finite numbers", "got nan")),
        (with_value(torch.inf), ValueError, ("features: expected finite numbers", "got inf")),
        (with_value(-torch.inf), ValueError, ("features: expected finite numbers", "got -inf")),
    ],
)
def test_features(name, x, error, parts):
    with raises(error, *parts):
        FUNCTIONS[name](x)


def test_large_numbers_are_finite():
    """Their sum overflows; they do not."""
    from sublimate.multicut import arguments

    arguments.features("features", torch.full((4, 2), 3e38))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in BATCHED])
def test_no_batches_where_there_are_none(name):
    with raises(ValueError, "features: expected shape (n, d), got (2, 3, 3)"):
        FUNCTIONS[name](X.reshape(2, 3, 3))


@pytest.mark.parametrize("name", WITH_ALPHA)
@pytest.mark.parametrize(
    ("alpha", "error", "parts"),
    [
        (float("inf"), ValueError, ("alpha: expected a finite number", "got inf")),
        (float("nan"), ValueError, ("alpha: expected a number", "got nan")),
        ("0.5", TypeError, ("alpha: expected a number", "got str '0.5'")),
        (None, TypeError, ("alpha: expected a number", "got NoneType")),
        (True, TypeError, ("alpha: expected a number", "got bool")),
    ],
)
def test_alpha(name, alpha, error, parts):
    with raises(error, *parts):
        FUNCTIONS[name](X, alpha=alpha)


@pytest.mark.parametrize("name", ["objective", "margin_loss"])
def test_alpha_as_tensor(name):
    with raises(TypeError, "alpha: expected a finite number or a floating tensor of one element"):
        FUNCTIONS[name](X, alpha=torch.ones(2))
    with raises(TypeError, "alpha: expected", "got torch.int64 of shape ()"):
        FUNCTIONS[name](X, alpha=torch.tensor(1))
    with raises(ValueError, "alpha: expected finite numbers, got nan"):
        FUNCTIONS[name](X, alpha=torch.tensor(torch.nan))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("w", "error", "parts"),
    [
        (
            torch.ones(5),
            ValueError,
            ("weights: expected one weight per node, shape (6,)", "got (5,)"),
        ),
        (torch.ones(6, 1), ValueError, ("weights: expected one weight", "got (6, 1)")),
        (torch.ones(6).long(), TypeError, ("weights: expected a tensor of float32",)),
        ([1.0] * 6, TypeError, ("weights: expected a torch.Tensor", "got list")),
        (torch.zeros(6), ValueError, ("weights: expected positive weights", "got 0.0")),
        (torch.full((6,), torch.nan), ValueError, ("weights: expected finite numbers", "got nan")),
        (
            torch.ones(6, device="meta"),
            ValueError,
            ("weights: expected a tensor on cpu", "got meta"),
        ),
    ],
)
def test_weights(name, w, error, parts):
    with raises(error, *parts):
        FUNCTIONS[name](X, weights=w)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("q", "error", "parts"),
    [
        (4, ValueError, ("negative_dims: expected an int from 0 to 3", "got 4")),
        (-1, ValueError, ("negative_dims: expected an int from 0 to 3", "got -1")),
        (1.0, TypeError, ("negative_dims: expected an int from 0 to 3", "got float")),
    ],
)
def test_negative_dims(name, q, error, parts):
    with raises(error, *parts):
        FUNCTIONS[name](X, negative_dims=q)


@pytest.mark.parametrize("name", WITH_OFFSETS)
@pytest.mark.parametrize(
    ("offsets", "error", "parts"),
    [
        (
            [0, 4, 2, 6],
            ValueError,
            ("offsets: expected ascending", "from 0 to 6", "got 2 after 4 at"),
        ),
        (torch.tensor([0, 4, 2, 6]), ValueError, ("offsets: expected ascending", "got 2 after 4")),
        ([1, 6], ValueError, ("offsets: expected ascending", "got [1, 6]")),
        ([0, 5], ValueError, ("offsets: expected ascending", "got [0, 5]")),
        ([], ValueError, ("offsets: expected ascending", "got []")),
        ([0, 3.0, 6], TypeError, ("offsets: expected integers", "got [0, 3.0, 6]")),
        (
            torch.tensor([0.0, 6.0]),
            TypeError,
            ("offsets: expected a one-dimensional tensor of int",),
        ),
        (torch.tensor([[0, 6]]), TypeError, ("offsets: expected a one-dimensional", "(1, 2)")),
        (6, TypeError, ("offsets: expected a sequence or tensor of integers", "got int")),
    ],
)
def test_offsets(name, offsets, error, parts):
    with raises(error, *parts):
        FUNCTIONS[name](X, offsets=offsets)


def test_offsets_with_a_batch():
    with raises(ValueError, "offsets: expected None for features of shape (B, n, d)"):
        multicut.dense_multicut(X.reshape(2, 3, 3), offsets=[0, 6])


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda z: multicut.objective(X, z), "labels"),
        (lambda z: multicut.margin_loss(X, z), "target_labels"),
        (lambda z: multicut.lower_bound(X, labels=z), "labels"),
        (lambda z: multicut.assign(X, z, X), "labels"),
    ],
)
def test_labels(call, argument):
    if "lower_bound" not in call.__code__.co_names:  # where None is a choice
        with raises(TypeError, f"{argument}: expected a torch.Tensor of integers", "got NoneType"):
            call(None)
    with raises(TypeError, f"{argument}: expected a torch.Tensor of integers", "got list"):
        call([0] * 6)
    with raises(TypeError, f"{argument}: expected a tensor of integers", "got torch.float32"):
        call(torch.zeros(6))
    with raises(TypeError, f"{argument}: expected a tensor of integers", "got torch.bool"):
        call(torch.zeros(6, dtype=torch.bool))
    for shape in ((5,), (7,), (6, 1)):
        with raises(
            ValueError, f"{argument}: expected one label per node, shape (6,)", f"got {shape}"
        ):
            call(torch.zeros(shape, dtype=torch.int64))
    with raises(ValueError, f"{argument}: expected a tensor on cpu, got meta"):
        call(Z.to("meta"))


@pytest.mark.parametrize(
    ("pairs", "error", "parts"),
    [
        ([[0, 1]], TypeError, ("must_link: expected a torch.Tensor of integers", "got list")),
        (
            torch.ones(1, 2),
            TypeError,
            ("must_link: expected a tensor of integers", "torch.float32"),
        ),
        (torch.tensor([0, 1]), ValueError, ("must_link: expected shape (p, 2)", "got (2,)")),
        (torch.tensor([[0, 1, 2]]), ValueError, ("must_link: expected shape (p, 2)", "got (1, 3)")),
        (torch.tensor([[0, 6]]), ValueError, ("must_link: expected nodes from 0 to 5", "got 6")),
        (torch.tensor([[-1, 2]]), ValueError, ("must_link: expected nodes from 0 to 5", "got -1")),
        (
            torch.zeros(1, 2, device="meta").long(),
            ValueError,
            ("must_link: expected a tensor on cpu",),
        ),
    ],
)
def test_must_link(pairs, error, parts):
    with raises(error, *parts):
        multicut.dense_multicut(X, must_link=pairs)


def test_must_link_stays_within_an_instance():
    pairs = torch.tensor([[0, 1], [2, 3]])
    says = ("must_link: expected pairs within one instance", "got [2, 3]")
    with raises(ValueError, *says):
        multicut.dense_multicut(X.reshape(2, 3, 3), must_link=pairs)
    with raises(ValueError, *says):
        multicut.dense_multicut(X, offsets=[0, 3, 3, 6], must_link=pairs)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        (
            {"method": "louvain"},
            ValueError,
            ("method: expected one of 'auto', 'star'", "'louvain'"),
        ),
        ({"method": None}, TypeError, ("method: expected one of", "got NoneType")),
        ({"refine": "some"}, ValueError, ("refine: expected one of 'moves', 'kernighan-lin'",)),
        ({"restarts": 0}, ValueError, ("restarts: expected an int from 1", "got 0")),
        ({"restarts": 1.5}, TypeError, ("restarts: expected an int", "got float")),
        ({"return_info": 1}, TypeError, ("return_info: expected a bool", "got int")),
        ({"progress": 5}, TypeError, ("progress: expected None, a tqdm bar", "got int")),
        ({"progress": int}, TypeError, ("progress: expected None, a tqdm bar", "the class int")),
        ({"group": 3}, TypeError, ("group: expected a torch.distributed.ProcessGroup", "got int")),
    ],
)
def test_options_of_the_solver(options, error, parts):
    with raises(error, *parts):
        multicut.dense_multicut(X, **options)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (
            lambda: multicut.inner_product_topk(X, 0),
            ValueError,
            ("k: expected an int from 1", "got 0"),
        ),
        (
            lambda: multicut.inner_product_topk(X, 2.0),
            TypeError,
            ("k: expected an int", "got float"),
        ),
        (
            lambda: multicut.inner_product_topk(X, 1, other=X[:, :2]),
            ValueError,
            ("other: expected shape (m, 3)", "got (6, 2)"),
        ),
        (
            lambda: multicut.inner_product_topk(X, 1, other=X.reshape(2, 3, 3)),
            ValueError,
            ("other: expected shape (m, 3)", "got (2, 3, 3)"),
        ),
        (
            lambda: multicut.inner_product_topk(X, 1, other=X.double()),
            TypeError,
            ("other: expected the dtype of features, torch.float32", "got torch.float64"),
        ),
        (
            lambda: multicut.inner_product_topk(X, 1, other_weights=torch.ones(6)),
            ValueError,
            ("other_weights: expected None without other",),
        ),
        (
            lambda: multicut.inner_product_topk(X, 1, exclude_self=0),
            TypeError,
            ("exclude_self: expected a bool", "got int"),
        ),
        (
            lambda: multicut.assign(X, Z, X[:, :2]),
            ValueError,
            ("new_features: expected 3 features", "got 2"),
        ),
        (
            lambda: multicut.assign(X, Z, X.double()),
            TypeError,
            ("new_features: expected the dtype of features", "got torch.float64"),
        ),
        (
            lambda: multicut.assign(X, Z, X * torch.nan),
            ValueError,
            ("new_features: expected finite",),
        ),
        (
            lambda: multicut.assign(X, Z, X, new_weights=torch.ones(5)),
            ValueError,
            ("new_weights: expected one weight per node",),
        ),
        (
            lambda: multicut.assign(X, Z, X, reject=1),
            TypeError,
            ("reject: expected a bool", "got int"),
        ),
    ],
)
def test_pairs_and_assignment(call, error, parts):
    with raises(error, *parts):
        call()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backend(name):
    with raises(ValueError, "backend: expected one of", "got 'gpu'"):
        FUNCTIONS[name](X, backend="gpu")
    for backend in ("cuda", "triton"):
        with raises(
            sublimate.BackendUnavailable,
            f"backend '{backend}' of sublimate.multicut cannot run this call (torch.float32 on c",
            "needs tensors on cuda, got cpu",
            "Would work: reference, cpu",
        ):
            FUNCTIONS[name](X, backend=backend)
