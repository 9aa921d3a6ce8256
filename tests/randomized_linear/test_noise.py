"""``noise_report`` and ``choose_ratio`` against noise that is computed by brute force."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.randomized_linear_cases import dense_gradients
from sublimate import randomized_linear
from sublimate.randomized_linear import choose_ratio, noise_report
from torch import nn

ROWS, BATCHES, SEEDS = 6, 4, 4000


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batches():
    generator = torch.Generator().manual_seed(4)
    shapes = ((ROWS, 5), (ROWS, 3))
    return [
        tuple(torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
        for _ in range(BATCHES)
    ]


def loss(m, batch):
    return F.mse_loss(m(batch[0]), batch[1])


def by_hand(m):
    """{layer: [(x, dy) of each batch]} without hooks: the layers called one by one."""
    found = {"0": [], "2": []}
    for x, target in batches():
        first = m[0](x)
        hidden = torch.tanh(first)
        out = m[2](hidden)
        grads = torch.autograd.grad(F.mse_loss(out, target), (first, out))
        found["0"].append((x, grads[0]))
        found["2"].append((hidden.detach(), grads[1]))
    return found


def subsets_noise(x, dy, k):
    """Mean of |estimate - gradient|^2 over every way to take k rows: sketch "rows", no formula."""
    exact = dy.T @ x
    every = [
        (len(x) / k * dy[list(s)].T @ x[list(s)] - exact).square().sum()
        for s in itertools.combinations(range(len(x)), k)
    ]
    return float(torch.stack(every).mean())


def drawn_noise(x, dy, k):
    """The same for the default sketch, over seeds."""
    drawn = dense_gradients(x, dy, "srht", k, torch.arange(SEEDS))
    return float((drawn - dy.T @ x).square().sum((1, 2)).mean())


def batch_noise(pairs):
    grads = torch.stack([dy.T @ x for x, dy in pairs])
    return float((grads - grads.mean(0)).square().sum()) / (len(pairs) - 1)


def test_report_is_the_noise():
    m = model()
    found = noise_report(m, batches(), loss=loss, sketch="rows", ratio=1 / 3)
    assert [n.name for n in found] == ["0", "2"]
    for n in found:
        pairs = by_hand(m)[n.name]
        grads = torch.stack([dy.T @ x for x, dy in pairs])
        noise = sum(subsets_noise(x, dy, 2) for x, dy in pairs) / BATCHES
        power = float(grads.square().sum((1, 2)).mean())
        assert (n.sketch, n.ratio, n.rows) == ("rows", 1 / 3, ROWS)
        assert n.gradient == pytest.approx(float(grads.mean(0).norm()), rel=1e-9)
        assert n.sketch_noise == pytest.approx(noise, rel=1e-9)
        assert n.batch_noise == pytest.approx(batch_noise(pairs), rel=1e-9)
        assert n.share == pytest.approx(noise / batch_noise(pairs), rel=1e-9)
        assert n.cosine == pytest.approx(math.sqrt(power / (power + noise)), rel=1e-9)
    text = str(found)
    assert "share of batch noise" in text and f"{found[0].share:.4f}" in text
    assert all(p.grad is None for p in m.parameters())


def test_report_of_the_default_sketch():
    """Within 5 standard errors of what seeds give: the relative spread of one draw is below 1.5."""
    m = model()
    (first, _) = noise_report(m, batches(), loss=loss, ratio=0.5)
    assert first.sketch == "srht"
    due = sum(drawn_noise(x, dy, 3) for x, dy in by_hand(m)["0"]) / BATCHES
    assert first.sketch_noise == pytest.approx(due, rel=5 * 1.5 / math.sqrt(SEEDS * BATCHES))


def test_report_of_sketched_layers_is_of_their_own_options():
    m = model()
    due = noise_report(m, batches(), loss=loss, sketch="countsketch", ratio=0.5)
    exact_names = [n.name for n in due]
    randomized_linear.convert(m, {"0": 0.5}, "countsketch")
    before = m[0].sketch_count.clone()
    found = noise_report(m, batches(), loss=loss)
    assert [n.name for n in found] == exact_names
    assert found[0] == due[0] and found[0].sketch == "countsketch"
    assert (found[1].sketch, found[1].ratio) == ("srht", 0.2)
    assert int(m[0].sketch_count) >= int(before)


def test_kinds_of_batches_and_losses():
    m = model()
    due = noise_report(m, batches(), loss=loss, ratio=0.5)

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = m

        def forward(self, x, target):
            return SimpleNamespace(loss=F.mse_loss(self.inner(x), target))

    as_dicts = [dict(zip(("x", "target"), b, strict=True)) for b in batches()]
    for loader in (batches(), as_dicts, iter(batches())):
        found = noise_report(WithLoss(), loader, ratio=0.5)
        assert [n.sketch_noise for n in found] == [n.sketch_noise for n in due]
    few = noise_report(m, itertools.cycle(batches()), loss=loss, ratio=0.5, max_batches=4)
    assert [n.share for n in few] == [n.share for n in due]
    m[2].weight.requires_grad_(False)
    assert [n.name for n in noise_report(m, batches(), loss=loss)] == ["0"]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 3.0])
def test_chosen_ratio_is_the_smallest_quiet_one(share):
    """By the brute-force noise: the chosen ratio is below the bound, the next smaller is not."""
    m = model()
    ratios = [k / ROWS for k in range(1, ROWS)]
    chosen = choose_ratio(m, batches(), loss=loss, sketch="rows", noise_share=share, ratios=ratios)
    for name, pairs in by_hand(m).items():
        bound = share * batch_noise(pairs)
        quiet = [
            r
            for k, r in enumerate(ratios, 1)
            if sum(subsets_noise(x, dy, k) for x, dy in pairs) / BATCHES <= bound
        ]
        assert chosen.get(name) == (quiet[0] if quiet else None)
    if share == 0.5:
        assert chosen, "nothing was chosen at all"


def test_chosen_ratios_fit_convert_and_shared_inputs():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(5, 5) for _ in range(3))
            self.out = nn.Linear(5, 3)

        def forward(self, x):
            return self.out(self.query(x).tanh() * self.key(x) * 3 + self.value(x))

    torch.manual_seed(0)
    m = nn.Sequential(Attention()).double()
    ratios = [k / ROWS for k in range(1, ROWS)]
    shares = {"0.query": [], "0.key": [], "0.value": [], "0.out": []}
    for r in ratios:
        for n in noise_report(m, batches(), loss=loss, sketch="rows", ratio=r):
            shares[n.name].append(n.share)
    names = list(shares)[:3]
    # A bound that one of the three meets at half of the rows and another does not.
    bound = sorted(shares[n][2] for n in names)[1] * (1 + 1e-9)
    alone = {
        name: next(r for r, s in zip(ratios, values, strict=True) if s <= bound)
        for name, values in shares.items()
    }
    assert len({alone[n] for n in names}) > 1
    chosen = choose_ratio(
        m, batches(), loss=loss, sketch="rows", noise_share=bound, ratios=ratios[::-1]
    )
    assert chosen == {**dict.fromkeys(names, max(alone[n] for n in names)), "0.out": alone["0.out"]}
    # None for the group if one of its layers has none.
    few = choose_ratio(
        m, batches(), loss=loss, sketch="rows", noise_share=bound, ratios=[min(alone.values())]
    )
    assert not set(few) & set(names)
    report = randomized_linear.convert(m, chosen, "rows")
    assert len(report.replaced) == 4 and report.shared == [tuple(names)]
