"""The same bits for any number of threads, and s_ij the bits of s_ji."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.multicut_cases import mixture, run, slots_of
from sublimate.multicut import dense_multicut


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def everything(case) -> list[torch.Tensor]:
    state = slots_of(case, 200, 3)  # enough work for a second thread
    target, gain = run.multicut_best_cluster(*case.nodes, *state, "cpu")
    order = torch.arange(len(case.features))
    out = [target, gain]
    out += run.multicut_topk(*case.nodes, None, None, None, 1, 0, "cpu")
    out += run.multicut_topk(*case.nodes, None, None, None, 4, 0, "cpu")
    out += [run.multicut_negative_sum(*case.nodes, "cpu")]
    out += run.multicut_contract(case.features, case.weights, state[0], len(state[2]), "cpu")
    out += run.multicut_move(*case.nodes, *state, order, case.offsets, target, "cpu")
    out += run.multicut_gaec(*case.nodes, "cpu")
    out += run.multicut_kernighan_lin(*case.nodes, order, 4, 3, "cpu")
    return out


@pytest.mark.parametrize("sizes", [(1000,), (3, 500, 0, 97, 200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_primitives(sizes, dtype):
    case = mixture(sizes, 16, dtype, weighted=True)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(everything(case))
    for other in found[1:]:
        assert len(other) == len(found[0])
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_large_sums():
    """Enough members that the sums are divided over threads."""
    x, labels = torch.randn(40_000, 8), torch.randint(0, 40, (40_000,))
    with threads(1):
        one = run.multicut_contract(x, None, labels, 40, "cpu")
    two = run.multicut_contract(x, None, labels, 40, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_moves_of_large_instances():
    """Enough nodes that the instances are divided over threads."""
    case = mixture((1500, 0, 1300, 700), 24)
    state = slots_of(case, 9, 3)
    target, _ = run.multicut_best_cluster(*case.nodes, *state, "cpu")
    order = torch.arange(len(case.features))
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(run.multicut_move(*case.nodes, *state, order, case.offsets, target, "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert int(found[0][-1].sum()) > 0


@pytest.mark.parametrize("method", ["auto", "average", "lazy"])
def test_solver(method):
    case = mixture((700,), 16, noise=1.3)
    labels = []
    for count in (1, 2):
        with threads(count):
            labels.append(
                dense_multicut(case.features, alpha=0.25, method=method, restarts=3, backend="cpu")
            )
    assert torch.equal(*labels)


def test_values_are_symmetric():
    case = mixture((260,), 33, weighted=True, negative_dims=4)
    values, indices = run.multicut_topk(*case.nodes, None, None, None, 260, None, "cpu")
    s = torch.empty(260, 260).scatter_(1, indices, values)
    assert torch.equal(s, s.mT)
