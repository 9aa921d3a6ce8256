"""Every compiled primitive against the reference, on instances of all shapes in one call."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.multicut_cases import assert_same_choice, integers, mixture, run, slots_of, tolerance
from sublimate.multicut import reference as R
from sublimate.multicut.reference_kernighan_lin import kernighan_lin

D, F = torch.float64, torch.float32
SIZES = [
    (0,),
    (1,),
    (2, 0, 1),
    (31, 32, 33),
    (95, 1, 97),
    (211,),
]
VARIANTS = {
    "plain": {"alpha": 0.3},
    "repelling": {"alpha": -0.2, "negative_dims": 2},
    "no alpha": {"alpha": 0.0},
    "weights": {"alpha": 0.3, "weighted": True, "negative_dims": 1},
}
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_dtype = pytest.mark.parametrize("dtype", [D, F], ids=str)


def wide(case):
    """The leading arguments of an op in float64."""
    x, w, *rest = case.nodes
    return x.double(), None if w is None else w.double(), *rest


@each_size
@each_variant
@each_dtype
def test_topk(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    for k in (1, 3, 40):
        for self_offset in (0, None):
            got = run.multicut_topk(*case.nodes, None, None, None, k, self_offset, "cpu")
            due = R.topk(*wide(case), None, None, None, k, self_offset)
            assert_same_choice(*got, *due, tolerance(dtype))


@each_size
@each_variant
@each_dtype
def test_topk_of_others(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    other = mixture(tuple((7 * n + 40) % 103 for n in sizes), 9, dtype, seed=1, **VARIANTS[variant])
    others = other.features, other.weights, other.offsets
    wide_others = wide(other)[:3]
    for k in (1, 5):
        got = run.multicut_topk(*case.nodes, *others, k, None, "cpu")
        assert_same_choice(*got, *R.topk(*wide(case), *wide_others, k, None), tolerance(dtype))


def test_rows_of_a_share_give_the_bits_of_all_rows():
    """Some rows against all columns: what each process of several computes."""
    case = mixture((150, 81), 20)
    whole = run.multicut_topk(*case.nodes, None, None, None, 1, 0, "cpu")
    x, w, offsets, alpha, q = case.nodes
    for low, high in ((0, 77), (77, 154), (154, 231)):
        shifted = offsets.clamp(low, high) - low
        part = run.multicut_topk(x[low:high], w, shifted, alpha, q, x, None, offsets, 1, low, "cpu")
        assert torch.equal(part[0], whole[0][low:high])
        assert torch.equal(part[1], whole[1][low:high])


@each_size
@pytest.mark.parametrize("k", [1, 4])
def test_ties_go_to_the_lowest(sizes, k):
    case = integers(sizes, 4, weighted=True, negative_dims=1)
    got = run.multicut_topk(*case.nodes, None, None, None, k, 0, "cpu")
    due = R.topk(*case.nodes, None, None, None, k, 0)
    assert torch.equal(got[0], due[0]) and torch.equal(got[1], due[1])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 3e38])
def test_odd_numbers_pass_through(odd, k):
    case = integers((70, 40), 4)
    case.features[33, 1] = case.features[90, 0] = odd
    got = run.multicut_topk(*case.nodes, None, None, None, k, 0, "cpu")
    due = R.topk(*case.nodes, None, None, None, k, 0)
    torch.testing.assert_close(got[0], due[0], equal_nan=True, rtol=1e-6, atol=0)
    assert torch.equal(got[1], due[1])
    sums = run.multicut_negative_sum(*case.nodes, "cpu")
    if math.isnan(odd):
        assert sums.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_topk_of_16_bits_is_that_of_float32(dtype):
    case = mixture((130,), 24, dtype)
    got = run.multicut_topk(*case.nodes, None, None, None, 5, 0, "cpu")
    case.features = case.features.float()
    due = run.multicut_topk(*case.nodes, None, None, None, 5, 0, "cpu")
    assert torch.equal(got[0], due[0]) and torch.equal(got[1], due[1])


@pytest.mark.parametrize("d", [1, 2, 130, 700])
def test_other_inner_sizes(d):
    case = mixture((101,), d, alpha=0.1)
    got = run.multicut_topk(*case.nodes, None, None, None, 1, 0, "cpu")
    assert_same_choice(*got, *R.topk(*wide(case), None, None, None, 1, 0), 4e-6)


@each_size
@each_variant
@each_dtype
def test_negative_sum(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    got, due = run.multicut_negative_sum(*case.nodes, "cpu"), R.negative_sum(*wide(case))
    torch.testing.assert_close(got, due, rtol=1e-12 if dtype == D else 2e-6, atol=1e-6)


@each_size
@each_variant
@each_dtype
def test_contract(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    labels = torch.randint(0, 7, (len(case.features),))
    got = run.multicut_contract(case.features, case.weights, labels, 9, "cpu")
    due = R.contract(case.features, case.weights, labels, 9)
    for g, e in zip(got, due, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-14, atol=1e-13)


def test_contract_refuses_labels_out_of_range():
    from sublimate import NativeError

    for wrong in (-1, 2):
        with pytest.raises(NativeError, match="out of range"):
            run.multicut_contract(torch.zeros(3, 2), None, torch.tensor([0, 1, wrong]), 2, "cpu")


@each_size
@each_variant
@each_dtype
def test_best_cluster_and_moves(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    state = slots_of(case, clusters=5, empty=2)
    target, gain = run.multicut_best_cluster(*case.nodes, *state, "cpu")
    due_target, due_gain = R.best_cluster(*wide(case), *state)
    atol = 1e-12 if dtype == D else 3e-5
    assert_same_choice(gain, target, due_gain.to(dtype), due_target, atol)
    order = (gain > 0).nonzero()[:, 0]
    borders = torch.searchsorted(order, case.offsets)
    got = run.multicut_move(*case.nodes, *state, order, borders, target, "cpu")
    due = run.multicut_move(*case.nodes, *state, order, borders, target, "reference")
    for g, e in zip(got, due, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-11)
    if max(sizes) > 50:
        assert got[4].sum() > 0, "nothing moved"


def test_move_opens_closes_and_is_rechecked():
    """Two nodes want to leave into the same empty slot: the second may not, if they repel."""
    x = torch.tensor([[1.0, 0], [1, 0], [-1, 0.1], [-1, -5]])
    case = (x, None, torch.tensor([0, 4]), 0.0, 0)
    labels, offsets = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 3])
    sums, masses, counts = R.contract(x, None, labels, 3)
    state = (labels, sums, masses, counts, offsets)
    target, gain = run.multicut_best_cluster(*case, *state, "cpu")
    assert target.tolist() == [1, 1, 1, 1] and gain[2] > 0 and gain[3] > 0
    order, borders = torch.tensor([3, 2]), torch.tensor([0, 2])
    labels, sums, masses, counts, moved = run.multicut_move(
        *case, *state, order, borders, target, "cpu"
    )
    # 3 opens slot 1; <2, 3> = 0.5 attracts, so 2 follows.
    assert labels.tolist() == [0, 0, 1, 1] and int(moved) == 2
    assert counts.tolist() == [2, 2, 0]
    back = torch.tensor([0, 0, 0, 0])
    state = (labels, sums, masses, counts, offsets)
    again = run.multicut_move(*case, *state, torch.arange(4), torch.tensor([0, 4]), back, "cpu")
    assert int(again[4]) == 0, "a move that loses was made"


@each_size
@each_variant
@each_dtype
def test_gaec(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    labels, merges, costs = run.multicut_gaec(*case.nodes, "cpu")
    due_labels, due_merges, due_costs = R.gaec(*wide(case))
    if dtype == D:
        assert torch.equal(labels, due_labels) and torch.equal(merges, due_merges)
        torch.testing.assert_close(costs, due_costs, rtol=1e-10, atol=1e-10)
        return
    for b, (low, high) in enumerate(zip(case.offsets[:-1], case.offsets[1:], strict=True)):
        v = R.pair_values(*wide(case.one(b))[:2], case.alpha, case.negative_dims)
        got, due = (R.objective(v, ls[low:high]) for ls in (labels, due_labels))
        torch.testing.assert_close(got, due, rtol=1e-4, atol=1e-4)


@each_size
def test_gaec_breaks_ties_by_lower_indices(sizes):
    case = integers(sizes, 4)
    for got, due in zip(run.multicut_gaec(*case.nodes, "cpu"), R.gaec(*case.nodes), strict=True):
        assert torch.equal(got, due)


@each_size
@each_variant
@pytest.mark.parametrize("neighbors", [0, 3])
def test_kernighan_lin(sizes, variant, neighbors):
    case = mixture(sizes, 9, D, **VARIANTS[variant])
    for start in (torch.arange(len(case.features)), run.multicut_gaec(*case.nodes, "cpu")[0]):
        got = run.multicut_kernighan_lin(*case.nodes, start, neighbors, 6, "cpu")
        due = kernighan_lin(*case.nodes, start, neighbors, 6)
        assert torch.equal(got[0], due[0])
        torch.testing.assert_close(got[1], due[1], rtol=1e-9, atol=1e-9)


def test_a_chain_ends_after_its_patience():
    """Two clusters of more nodes than the patience, apart by more than one move mends."""
    case = mixture((400,), 6, D, alpha=0.2)
    start = torch.arange(400) % 2
    got = run.multicut_kernighan_lin(*case.nodes, start, 0, 2, "cpu")
    due = kernighan_lin(*case.nodes, start, 0, 2)
    assert torch.equal(got[0], due[0])
    assert float(got[1]) == pytest.approx(float(due[1]), rel=1e-9) and float(due[1]) > 0


@each_size
@each_variant
@each_dtype
def test_lazy(sizes, variant, dtype):
    case = mixture(sizes, 9, dtype, **VARIANTS[variant])
    values, neighbors = run.multicut_topk(*case.nodes, None, None, None, 4, 0, "cpu")
    neighbors = neighbors.masked_fill(~(values > 0), -1)
    got = run.multicut_lazy(*case.nodes, neighbors, "cpu")
    assert torch.equal(got, run.multicut_lazy(*case.nodes, neighbors, "reference"))
