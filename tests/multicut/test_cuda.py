"""The CUDA kernels of dense multicut, emulated (and on a GPU where there is one).

Each against the reference under four orders of threads and blocks, whose results must have the same
bits; batches against their instances one by one; and against the CPU's kernels, whose values are
the same chain of multiply-adds.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_emulator.orders import outcomes
from helpers import lanes
from helpers import multicut_cases as M
from helpers.multicut_cases import integers, mixture, run

WIDE = (torch.float32, torch.float64)
RAGGED = (3, 0, 80, 1, 33)


GPU = [pytest.param(lane, marks=pytest.mark.gpu) for lane in lanes.GPU]


@pytest.fixture(params=[lanes.CUDA_EMULATED, *GPU], ids=lanes.lane_id)
def cuda(request):
    """The emulated module; with a GPU also its CUDA and Triton kernels."""
    if request.param.emulated:
        request.getfixturevalue("emulated_cuda")
    return request.param


def every_order(lane, call):
    """Result of ``call()``; emulated, under every order of threads, all with the same bits."""
    if not lane.emulated:
        return call()
    results = outcomes(call)
    first, *others = results.values()
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b) or (a != a).any()
    return first


def topk(lane, case, k, self_offset=0, other=(None, None, None)):
    return every_order(
        lane, lambda: run.multicut_topk(*case.nodes, *other, k, self_offset, lane.backend)
    )


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize(
    ("sizes", "d", "options"),
    [
        (1, 4, {}),
        (33, 16, {"alpha": 0.0}),
        (130, 17, {"weighted": True, "negative_dims": 2}),
        (RAGGED, 33, {"alpha": -0.2, "weighted": True}),
    ],
)
def test_topk(cuda, sizes, d, options, k, dtype):
    case = mixture(sizes, d, dtype, **options).put(cuda.device)
    true = run.multicut_topk(*case.nodes, None, None, None, k, 0, "reference")
    M.assert_same_choice(*topk(cuda, case, k), *true, M.tolerance(dtype))


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("sizes", [260, RAGGED], ids=str)
def test_topk_ties_and_shares(cuda, sizes, k):
    """Integers: exact values, many ties; 260 nodes are more than one share of the columns."""
    case = integers(sizes, 3, weighted=True).put(cuda.device)
    true = run.multicut_topk(*case.nodes, None, None, None, k, 0, "reference")
    for mine, expected in zip(topk(cuda, case, k), true, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("k", [1, 5])
def test_topk_among_others(cuda, k):
    case = mixture((20, 40), 6, weighted=True).put(cuda.device)
    other = mixture((2, 90), 6, seed=1, weighted=True).put(cuda.device)
    columns = (other.features, other.weights, other.offsets)
    for self_offset in (None, 10):
        true = run.multicut_topk(*case.nodes, *columns, k, self_offset, "reference")
        got = topk(cuda, case, k, self_offset, columns)
        M.assert_same_choice(*got, *true, M.tolerance(torch.float32))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_topk_of_odd_numbers(cuda, odd, k):
    case = integers((70, 40), 4).put(cuda.device)
    case.features[33, 1] = case.features[90, 0] = odd
    true = run.multicut_topk(*case.nodes, None, None, None, k, 0, "reference")
    values, indices = topk(cuda, case, k)
    torch.testing.assert_close(values, true[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, true[1])


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("sizes", "d"), [(0, 4), (1, 4), (150, 17), (RAGGED, 33)])
def test_negative_sum(cuda, sizes, d, dtype):
    case = mixture(sizes, d, dtype, weighted=d > 4, negative_dims=1).put(cuda.device)
    (got,) = every_order(cuda, lambda: (run.multicut_negative_sum(*case.nodes, cuda.backend),))
    true = run.multicut_negative_sum(*case.nodes, "reference")
    torch.testing.assert_close(got, true, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("sizes", "d"), [(1, 3), (90, 70), (RAGGED, 32)])
def test_contract(cuda, sizes, d, dtype):
    """fp64 sums in ascending order, as a plain loop has them: equal to the last bit."""
    case = mixture(sizes, d, dtype, weighted=d == 32)
    labels = M.slots_of(case, 4, 2)[0]
    clusters = int(labels.max()) + 3
    true = run.multicut_contract(case.features, case.weights, labels, clusters, "reference")
    case, labels = case.put(cuda.device), labels.to(cuda.device)
    arguments = (case.features, case.weights, labels, clusters, cuda.backend)
    got = every_order(cuda, lambda: run.multicut_contract(*arguments))
    for mine, expected in zip(got, true, strict=True):
        assert torch.equal(mine.cpu(), expected)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(
    ("sizes", "clusters", "empty"), [(1, 1, 0), (40, 40, 1), (150, 90, 0), (RAGGED, 5, 2)]
)
def test_best_cluster_and_move(cuda, sizes, clusters, empty, dtype):
    options = {"weighted": clusters == 5, "negative_dims": 2}
    case = mixture(sizes, 9, dtype, **options).put(cuda.device)
    state = M.slots_of(case, clusters, empty)
    target, gain = every_order(
        cuda, lambda: run.multicut_best_cluster(*case.nodes, *state, cuda.backend)
    )
    due_target, due_gain = run.multicut_best_cluster(*case.nodes, *state, "reference")
    M.assert_same_choice(gain, target, due_gain, due_target, 8 * M.tolerance(dtype))
    arguments = (*case.nodes, *state, M.shuffled(case), case.offsets, due_target.clamp_min(0))
    got = every_order(cuda, lambda: run.multicut_move(*arguments, cuda.backend))
    true = run.multicut_move(*arguments, "reference")
    for mine, expected in zip(got, true, strict=True):
        assert torch.equal(mine, expected)
    assert int(got[-1].sum()) > 0 or sizes == 1


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("sizes", "d"), [(1, 3), (100, 9), (RAGGED, 5), ((7, 7, 6), 40)])
def test_gaec(cuda, sizes, d, dtype):
    """One instance: the cooperative kernel, several blocks; more: a block each."""
    options = {"weighted": d == 5, "negative_dims": d == 9}
    case = mixture(sizes, d, dtype, **options).put(cuda.device)
    got = every_order(cuda, lambda: run.multicut_gaec(*case.nodes, cuda.backend))
    true = run.multicut_gaec(*case.nodes, "reference")
    assert torch.equal(got[0], true[0]) and torch.equal(got[1], true[1])
    torch.testing.assert_close(got[2], true[2], rtol=1e-5, atol=60 * M.tolerance(dtype))


@pytest.mark.parametrize("sizes", [70, (40, 33)], ids=str)
def test_gaec_of_ties(cuda, sizes):
    """Integers: the merges are those of the reference where half of the pairs tie."""
    case = integers(sizes, 3).put(cuda.device)
    got = every_order(cuda, lambda: run.multicut_gaec(*case.nodes, cuda.backend))
    for mine, expected in zip(got, run.multicut_gaec(*case.nodes, "reference"), strict=True):
        assert torch.equal(mine, expected)


def test_gaec_is_not_reciprocal_merging(cuda):
    """Merging all reciprocal pairs gives -4 here; the greedy one finds the optimum, -7."""
    s = torch.tensor(
        [[0, 10, 4, -6], [10, 0, 4, 0], [4, 4, 0, 5], [-6, 0, 5, 0]], dtype=torch.float64
    )
    lifted = s + 20 * torch.eye(4, dtype=torch.float64)
    x = torch.linalg.cholesky(lifted).contiguous().to(cuda.device)
    offsets = torch.tensor([0, 4], device=cuda.device)
    labels, merges, _ = run.multicut_gaec(x, None, offsets, 0.0, 0, cuda.backend)
    assert labels.tolist() == [0, 0, 0, 3] and merges[:2].tolist() == [[0, 1], [0, 2]]


def test_batched_equals_one_by_one(cuda):
    case = mixture(RAGGED, 12, weighted=True).put(cuda.device)
    values, indices = run.multicut_topk(*case.nodes, None, None, None, 3, 0, cuda.backend)
    labels, _, costs = run.multicut_gaec(*case.nodes, cuda.backend)
    sums = run.multicut_negative_sum(*case.nodes, cuda.backend)
    for b, begin in enumerate(case.offsets[:-1].tolist()):
        one = case.one(b)
        rows = slice(begin, begin + len(one.features))
        alone = run.multicut_topk(*one.nodes, None, None, None, 3, 0, cuda.backend)
        assert torch.equal(alone[0], values[rows])
        assert torch.equal(torch.where(alone[1] < 0, -1, alone[1] + begin), indices[rows])
        single = run.multicut_gaec(*one.nodes, cuda.backend)
        assert torch.equal(single[0] + begin, labels[rows])
        assert torch.equal(single[2], costs[rows])
        # The tiles of a batch lie elsewhere: another order of a sum in fp32.
        torch.testing.assert_close(
            run.multicut_negative_sum(*one.nodes, cuda.backend)[0], sums[b], rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_same_bits_as_the_cpu(cuda, dtype):
    """Top-k values, and the values of merges: the same chain of fused multiply-adds."""
    from sublimate import _native

    if cuda.backend == "triton":
        pytest.skip("Triton's product of wide elements promises no order of summation")
    case = mixture((120, 35), 23, dtype, weighted=True, negative_dims=3)
    there = case.put(cuda.device)
    for k in (1, 4):
        ours = run.multicut_topk(*there.nodes, None, None, None, k, 0, cuda.backend)
        theirs = run.multicut_topk(*case.nodes, None, None, None, k, 0, "cpu")
        assert torch.equal(ours[1].cpu(), theirs[1])
        if _native.CPU.load().isa != "base":  # it has no fused multiply-add
            assert torch.equal(ours[0].cpu(), theirs[0])
    ours = run.multicut_gaec(*there.nodes, cuda.backend)
    theirs = run.multicut_gaec(*case.nodes, "cpu")
    assert torch.equal(ours[0].cpu(), theirs[0]) and torch.equal(ours[1].cpu(), theirs[1])
