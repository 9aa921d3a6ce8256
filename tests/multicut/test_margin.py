"""The structured hinge loss: its definition by enumeration, its gradient, and learning with it."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import mixture
from sublimate import multicut
from sublimate.multicut import reference as R

D = torch.float64


def partitions(n):
    """Every labelling of n nodes, numbered by first appearance."""
    labels = [0] * n

    def extend(i, used):
        if i == n:
            yield torch.tensor(labels)
            return
        for c in range(used + 1):
            labels[i] = c
            yield from extend(i + 1, max(used, c + 1))

    yield from extend(0, 0)


def exact(x, target, alpha, margin, w, q):
    """The maximum over all labellings, from the matrix of pairs."""
    s = R.pair_values(x, w, alpha, q)
    unit = torch.ones(len(x), dtype=D) if w is None else w
    mass = torch.outer(unit, unit)
    cut = target[:, None] != target
    best = 0.0
    for y in partitions(len(x)):
        other = y[:, None] != y
        value = (s * cut).triu(1).sum() - (s * other).triu(1).sum()
        best = max(best, float(value + margin * (mass * (cut != other)).triu(1).sum()))
    return best


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("q", [0, 1])
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_is_the_maximum_over_all_labellings(margin, q, weighted):
    found = 0
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(6, 3, dtype=D, generator=g)
        target = torch.randint(0, 3, (6,), generator=g)
        w = torch.rand(6, dtype=D, generator=g) + 0.5 if weighted else None
        due = exact(x, target, 0.2, margin, w, q)
        got = multicut.margin_loss(
            x, target, 0.2, margin, reduction="sum", weights=w, negative_dims=q,
            refine="kernighan-lin", restarts=8,
        )  # fmt: skip
        assert float(got) <= due + 1e-9
        found += abs(float(got) - due) < 1e-9
    assert found >= 7, "the inner multicut is a heuristic, but not a bad one"


def test_zero_beyond_the_margin_only():
    """Two orthogonal pairs of copies: every pair is half a unit on the right side of alpha.

    With 0.6 the worst clustering cuts both pairs and joins two of the four across.
    """
    x = torch.eye(2).repeat_interleave(2, 0)
    target = torch.tensor([3, 3, 1, 1])
    for margin, due in ((0.0, 0.0), (0.49, 0.0), (0.6, 0.1 * 4)):
        got = multicut.margin_loss(x, target, 0.5, margin, reduction="sum")
        assert float(got) == pytest.approx(due, abs=1e-6)
    assert float(multicut.margin_loss(x, target, 0.5, 0.6)) == pytest.approx(0.4 / 6, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(9, 3, dtype=D, generator=g).requires_grad_()
    alpha = torch.tensor(0.2, dtype=D, requires_grad=True)
    w = (torch.rand(9, dtype=D, generator=g) + 0.5).requires_grad_() if weighted else None
    target = torch.randint(0, 3, (9,), generator=g)

    def loss(x, alpha, w):
        return multicut.margin_loss(x, target, alpha, 0.7, weights=w, reduction="sum")

    assert float(loss(x, alpha, w).detach()) > 1
    leaves = (x, alpha, w) if weighted else (x, alpha, None)
    assert torch.autograd.gradcheck(loss, leaves)


def test_batch_and_reductions():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 8, 4, generator=g)
    target = torch.randint(0, 3, (3, 8), generator=g)
    each = torch.stack(
        [
            multicut.margin_loss(a, b, 0.1, 0.5, reduction="sum")
            for a, b in zip(x, target, strict=True)
        ]
    )
    batch = {
        r: multicut.margin_loss(x, target, 0.1, 0.5, reduction=r) for r in ("none", "sum", "mean")
    }
    torch.testing.assert_close(batch["none"], each)
    torch.testing.assert_close(batch["sum"], each.sum())
    torch.testing.assert_close(batch["mean"], each.mean() / 28)
    ragged = multicut.margin_loss(
        x.reshape(24, 4), target.flatten(), 0.1, 0.5, reduction="none", offsets=[0, 8, 16, 24]
    )
    assert torch.equal(ragged, batch["none"])


@pytest.mark.parametrize(("dtype", "result"), [(torch.bfloat16, torch.float32), (D, D)])
def test_dtypes(dtype, result):
    x = mixture(30, 4, 0, 1.0)[0].to(dtype).requires_grad_()
    loss = multicut.margin_loss(x, torch.arange(30) % 4, 0.2, 0.5)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.dtype == result and grad.dtype == dtype and bool(grad.abs().sum() > 0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny(n):
    x = torch.ones(n, 2, requires_grad=True)
    loss = multicut.margin_loss(x, torch.arange(n), 0.0, 1.0)
    assert loss.detach().item() == (3.0 if n == 2 else 0.0)
    assert torch.autograd.grad(loss, x)[0].shape == (n, 2)


def test_learns_to_cluster():
    """A linear map learned through the loss finds the two of ten coordinates that matter."""
    g = torch.Generator().manual_seed(3)

    def sample(n):
        z = torch.randint(0, 4, (n,), generator=g)
        x = 3 * torch.randn(n, 10, generator=g)
        angle = z * torch.pi / 2
        x[:, :2] = torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(n, 2, generator=g)
        return x, z

    def agreement(embed, x, z):
        labels = multicut.dense_multicut(embed(x), alpha=0.5)
        return float(((labels[:, None] == labels) == (z[:, None] == z)).double().mean())

    embed = torch.nn.Linear(10, 4, bias=False)
    unit = lambda x: torch.nn.functional.normalize(embed(x), dim=1)  # noqa: E731
    test = sample(200)
    with torch.no_grad():
        before = agreement(unit, *test)
    optimiser = torch.optim.Adam(embed.parameters(), lr=0.03)
    for _ in range(150):
        x, z = sample(64)
        optimiser.zero_grad()
        multicut.margin_loss(unit(x), z, 0.5, 0.3).backward()
        optimiser.step()
    with torch.no_grad():
        after = agreement(unit, *test)
    assert before < 0.8 and after > 0.95


def test_errors(calls):
    x, z = torch.randn(6, 3), torch.arange(6)
    for options, error, says in (
        ({"margin": -1.0}, ValueError, "margin: expected a number of at least 0, got -1.0"),
        ({"margin": float("nan")}, ValueError, "margin: expected"),
        ({"margin": "1"}, TypeError, "margin: expected a number, got"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none'"),
        ({"method": "best"}, ValueError, "method: expected one of"),
        ({"alpha": float("inf")}, ValueError, "alpha: expected a finite number, got inf"),
    ):
        with pytest.raises(error) as info:
            multicut.margin_loss(x, z, **options)
        assert says in str(info.value)
    with pytest.raises(ValueError, match=r"target_labels: expected one label per node"):
        multicut.margin_loss(x, z[:5])
    assert not calls
