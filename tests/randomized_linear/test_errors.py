"""Bad input: the exception, and a message naming argument, expected and got; nothing runs."""

from __future__ import annotations

import pytest
import torch
from sublimate import BackendUnavailable, randomized_linear
from sublimate.randomized_linear import linear

X, W, B = torch.randn(8, 4), torch.randn(3, 4), torch.randn(3)
HALF = torch.full((8,), 1 / 8)
LINEAR = [
    ({"ratio": 0.0}, ValueError, r"ratio: expected a number in \(0, 1\], got 0.0"),
    ({"ratio": 1.1}, ValueError, r"ratio: expected a number in \(0, 1\], got 1.1"),
    ({"ratio": -0.2}, ValueError, "ratio: expected a number"),
    ({"ratio": "all"}, TypeError, "ratio: expected a number, got str 'all'"),
    ({"ratio": float("nan")}, ValueError, "ratio: expected a number"),
    (
        {"sketch": "fft"},
        ValueError,
        "sketch: expected one of 'gaussian', 'rademacher', 'srht', 'dct', 'countsketch', 'rows', "
        "'crs', 'wta', got 'fft'",
    ),
    ({"sketch": 3}, TypeError, "sketch: expected one of .*, got int"),
    ({"seed": None}, TypeError, "seed: expected an int or a 0-dim int64 tensor, got NoneType"),
    ({"seed": -1}, ValueError, r"seed: expected an int in \[0, 2\*\*63\), got -1"),
    ({"seed": torch.zeros(2, dtype=torch.int64)}, TypeError, "seed: expected an int or a 0-dim"),
    (
        {"x": torch.ones(8, 4, dtype=torch.int64)},
        TypeError,
        "x: expected a tensor of float32.*int64",
    ),
    ({"x": 3.0}, TypeError, "x: expected a torch.Tensor, got float"),
    ({"x": torch.tensor(1.0)}, ValueError, "x: expected at least one dimension"),
    ({"weight": torch.randn(3, 5)}, ValueError, r"weight: expected shape \(out, 4\).*got \(3, 5\)"),
    ({"weight": W.double()}, TypeError, "weight: expected the dtype of x.*got torch.float64"),
    ({"weight": torch.ones(3, 4, dtype=torch.int32)}, TypeError, "weight: expected a tensor of"),
    ({"bias": torch.randn(4)}, ValueError, r"bias: expected shape \(3,\), got \(4,\)"),
    ({"bias": B.half()}, TypeError, "bias: expected the dtype of x"),
    ({"probabilities": HALF}, ValueError, "probabilities: expected None unless sketch is one of"),
    (
        {"probabilities": 2 * HALF, "sketch": "crs"},
        ValueError,
        "probabilities: expected values that sum to 1, got sum 2",
    ),
    (
        {"probabilities": HALF[:5], "sketch": "wta"},
        ValueError,
        r"probabilities: expected shape \(8,\), one for each row, got \(5,\)",
    ),
    (
        {"probabilities": torch.tensor([2.0, -1, 0, 0, 0, 0, 0, 0]), "sketch": "crs"},
        ValueError,
        "probabilities: expected values >= 0, got -1",
    ),
    (
        {"probabilities": HALF * torch.nan, "sketch": "crs"},
        ValueError,
        "probabilities: expected values that sum to 1, got sum nan",
    ),
    ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    ({"backend": "cuda"}, BackendUnavailable, "backend 'cuda' of sublimate.randomized_linear"),
    ({"x": X.to("meta")}, ValueError, "weight: expected the device of x, meta, got cpu"),
]


@pytest.mark.parametrize(("changes", "error", "message"), LINEAR)
def test_linear(changes, error, message, calls):
    options = {"x": X, "weight": W, "bias": B, "seed": 1, **changes}
    with pytest.raises(error, match=message):
        linear(**options)
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], "srht", 2, 1), ValueError, r"x: expected shape \(N, I\), got \(4,\)"),
        ((X, "crs", 2, 1), ValueError, "sketch: expected one of 'gaussian'.*got 'crs'"),
        ((X, "srht", -1, 1), ValueError, r"k: expected an int in \[0, 2\*\*31\), got -1"),
        ((X, "srht", 2.0, 1), TypeError, "k: expected an int >= 0, got float"),
    ],
)
def test_project(arguments, error, message):
    with pytest.raises(error, match=message):
        randomized_linear.project(*arguments)


def test_distributed_tensors():
    """Refused in words where something would be sketched; torch's own layer runs them."""
    dist = pytest.importorskip("torch.distributed", reason="a torch without torch.distributed")
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        x = distribute_tensor(X, mesh, [Shard(0)])
        w = distribute_tensor(W, mesh, [Replicate()]).requires_grad_()
        why = r"expected a plain tensor \(of a DTensor its to_local\(\).*got a DTensor"
        for argument, call in (
            ("x", lambda: linear(x, w, seed=1)),
            ("weight", lambda: linear(X, w, seed=1)),
            ("weight", lambda: linear(X, w, seed=1, backend="reference")),
            ("x", lambda: randomized_linear.project(x, "rows", 2, 1)),
            ("x", lambda: randomized_linear.hadamard_transform(x)),
        ):
            with pytest.raises(TypeError, match=f"^{argument}: {why}"):
                call()
        layer = randomized_linear.Linear(4, 3)
        layer.weight = torch.nn.Parameter(w.detach())
        with pytest.raises(TypeError, match=f"^weight: {why}"):
            layer(X)
        frozen = linear(x, w.detach(), seed=1)
        torch.testing.assert_close(frozen.to_local(), X @ W.T)
        local = linear(x.to_local(), w.to_local(), seed=1)
        torch.testing.assert_close(local, X @ W.T)
    finally:
        dist.destroy_process_group()


def test_hadamard():
    with pytest.raises(ValueError, match=r"x: expected a last dimension of at most 2\*\*20"):
        randomized_linear.hadamard_transform(torch.empty(2**20 + 1))
    with pytest.raises(ValueError, match="x: expected at least one dimension"):
        randomized_linear.hadamard_transform(torch.tensor(1.0))
    with pytest.raises(TypeError, match="scale: expected a number"):
        randomized_linear.hadamard_transform(X, "one")


def test_variance():
    with pytest.raises(ValueError, match="dy: expected the rows of x"):
        randomized_linear.variance(X, X[:3], "rows", 2)
    with pytest.raises(ValueError, match="k: expected an int from 1"):
        randomized_linear.variance(X, X, "rows", 0)


def test_noise():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    loss = lambda m, batch: m(batch).sum()  # noqa: E731
    with pytest.raises(ValueError, match="loader: expected at least 2 batches"):
        randomized_linear.noise_report(model, [X], loss=loss)
    with pytest.raises(ValueError, match="loss: expected a callable"):
        randomized_linear.noise_report(model, [X, X])
    with pytest.raises(ValueError, match="noise_share: expected a number > 0"):
        randomized_linear.choose_ratio(model, [X, X], loss=loss, noise_share=0)
