"""The demo's Match3: what its draws promise, and how answers to it are counted."""

from __future__ import annotations

import torch
from sublimate.kronecker_attention import demo


def test_pairs_tell_next_to_nothing():
    """Brute force labels; the share of true ones is alike given any number, and any pair."""
    x, labels = demo.match3(6000, torch.Generator().manual_seed(0))
    for row, due in zip(x[:40].tolist(), labels[:40].tolist(), strict=True):
        assert due == [any((a + b + c) % demo.MODULUS == 0 for b in row for c in row) for a in row]
    share = labels.double().mean()
    # By a number: 6000 * 8 / 40 draws, a deviation of .0144; five of it and the number of cases.
    for number in range(demo.MODULUS):
        found = labels[x == number].double()
        assert (len(found) == 0) == (number == 0)
        assert number == 0 or abs(found.mean() - share) < 0.072
    # By a pair, up to units: its ratio. 36 of them occur, 9300 times each: a deviation of .005
    # about shares that lie within .03 of the common one (.024 in ten times as many draws).
    inverse = torch.tensor([0, *(pow(a, -1, demo.MODULUS) for a in range(1, demo.MODULUS))])
    ratio = x[:, None, :] * inverse[x][:, :, None] % demo.MODULUS
    pairs = ~torch.eye(demo.LENGTH, dtype=torch.bool)
    same = labels[:, :, None].expand_as(ratio)[:, pairs].double()
    ratio = ratio[:, pairs]
    occurring = ratio.unique().tolist()
    assert len(occurring) == 36 and not {0, 1, 40, 39, 20} & set(occurring)
    for r in occurring:
        assert abs(same[ratio == r].mean() - share) < 0.055


def test_chance_is_a_half():
    labels = torch.tensor([True] * 30 + [False] * 10)
    assert demo.balanced_accuracy(torch.ones(40, dtype=torch.bool), labels) == demo.CHANCE
    assert demo.balanced_accuracy(labels, labels) == 1
    assert demo.balanced_loss(torch.zeros(40), labels).item() > 0
    a, b = (demo.balanced_loss(torch.full((40,), s), labels) for s in (2.0, -2.0))
    torch.testing.assert_close(a, b)


def test_text_that_every_python_has():
    text = demo.corpus()
    assert len(text) > 40_000 and len(set(text)) > 60
