"""Cases of test_triton_interpreter.py: every multicut Triton kernel against the reference.

They run under Triton's interpreter on CPU tensors, in a process of their own. Its products are
numpy's: values agree to rounding, and with small integers for features to the last bit, ties
included.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers import multicut_cases as M
from helpers.multicut_cases import integers, mixture, run
from sublimate.kernels.multicut import configs

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)
RAGGED = (3, 0, 61, 1, 33)
SMALL = configs.Config(32, 32, 16, 4, 1)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 32 x 32, so that a few dozen nodes have inner tiles and edges."""
    table = dict.fromkeys((2, 4, 8), ((configs.MOST_K, SMALL),))
    monkeypatch.setattr(configs, "CONFIGS", table)


def both(op, *arguments):
    function = getattr(run, f"multicut_{op}")
    return function(*arguments, "triton"), function(*arguments, "reference")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    ("sizes", "d", "options"),
    [
        (1, 4, {}),
        (33, 16, {"alpha": 0.0}),
        (70, 5, {"weighted": True, "negative_dims": 2}),
        (RAGGED, 18, {"alpha": -0.2, "weighted": True}),
    ],
)
def test_topk(sizes, d, options, k, dtype):
    case = mixture(sizes, d, dtype, **options)
    got, true = both("topk", *case.nodes, None, None, None, k, 0)
    M.assert_same_choice(*got, *true, M.tolerance(dtype))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("sizes", "k"), [(65, 1), (65, 7), (RAGGED, 2), (RAGGED, 40)], ids=str)
def test_topk_of_integers_is_exact(sizes, k, dtype):
    """Many ties: the same columns in the same order, by lowest index."""
    case = integers(sizes, 3, weighted=True)
    case.features = case.features.to(dtype)
    got, true = both("topk", *case.nodes, None, None, None, k, 0)
    if dtype == torch.float32:
        assert torch.equal(got[1], true[1])
    # 16-bit: two tiles are kept for each row when k is 1, a few more columns otherwise.
    assert torch.equal(got[0], true[0])


@pytest.mark.parametrize("k", [1, 4])
def test_topk_among_others(k):
    """Columns of their own, fewer than k in one instance, with and without a row's self."""
    case, other = mixture((20, 40), 6, weighted=True), mixture((2, 77), 6, seed=1, weighted=True)
    columns = (other.features, other.weights, other.offsets)
    for self_offset in (None, 10):
        got, true = both("topk", *case.nodes, *columns, k, self_offset)
        M.assert_same_choice(*got, *true, M.tolerance(torch.float32))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_topk_nan_and_infinity(k, dtype):
    """NaN before every number, -inf is a candidate: as the reference has it."""
    case = mixture((40, 25), 4, dtype, alpha=0.0)
    case.features[7, 1], case.features[50, 2] = math.nan, math.inf
    case.features[12] = torch.tensor([-math.inf, 0.5, 0.5, 0.5])
    got, true = both("topk", *case.nodes, None, None, None, k, 0)
    torch.testing.assert_close(got[0], true[0], rtol=0, atol=M.tolerance(dtype), equal_nan=True)
    assert torch.equal(got[1], true[1])


def test_longest_list():
    case = mixture(9, 3)
    values = case.features.new_empty(9, configs.MOST_K)
    got, true = both("topk", *case.nodes, None, None, None, values.shape[1], 0)
    M.assert_same_choice(*got, *true, M.tolerance(torch.float32))
    with pytest.raises(ValueError, match="k: expected 1 to 128, got 129"):
        run.multicut_topk(*case.nodes, None, None, None, 129, 0, "triton")


@pytest.mark.parametrize("config", ["tame", "wild"])
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_shipped_tiles(dtype, config, monkeypatch):
    """The tiles that a GPU gets, on one instance with an inner tile."""
    monkeypatch.undo()
    case = mixture(150 if config == "tame" else 35, 130, dtype)
    if config == "wild":
        case.features[3, 0] = math.nan
    got, true = both("topk", *case.nodes, None, None, None, 1, 0)
    M.assert_same_choice(*got, *true, M.tolerance(dtype))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("sizes", "d"), [(0, 4), (1, 4), (97, 5), (RAGGED, 33)])
def test_negative_sum(sizes, d, dtype):
    case = mixture(sizes, d, dtype, weighted=d > 4, negative_dims=1)
    got, true = both("negative_sum", *case.nodes)
    torch.testing.assert_close(got, true, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


def test_negative_sum_keeps_nan():
    case = mixture((40, 25), 4)
    case.features[50, 1] = math.nan
    got = run.multicut_negative_sum(*case.nodes, "triton")
    assert got[0].isfinite() and got[1].isnan()


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("sizes", "d"), [(1, 3), (90, 70), (RAGGED, 5)])
def test_contract(sizes, d, dtype):
    """fp64 sums in ascending order, as a plain loop has them: equal to the last bit."""
    for weighted in (False, True):
        case = mixture(sizes, d, dtype, weighted=weighted)
        labels, *_ = M.slots_of(case, 4, 2)
        clusters = int(labels.max()) + 3
        for mine, true in zip(
            *both("contract", case.features, case.weights, labels, clusters), strict=True
        ):
            assert torch.equal(mine, true)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(
    ("sizes", "clusters", "empty"), [(1, 1, 0), (40, 40, 1), (70, 35, 0), (RAGGED, 5, 2)]
)
def test_best_cluster(sizes, clusters, empty, dtype):
    case = mixture(sizes, 9, dtype, weighted=clusters == 5, negative_dims=2)
    state = M.slots_of(case, clusters, empty)
    got, true = both("best_cluster", *case.nodes, *state)
    assert torch.equal(got[0], true[0])
    torch.testing.assert_close(got[1], true[1], rtol=0, atol=4 * M.tolerance(dtype))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("sizes", "clusters", "empty"), [(1, 1, 1), (50, 7, 0), (RAGGED, 5, 2)])
def test_move(sizes, clusters, empty, dtype):
    case = mixture(sizes, 6, dtype, weighted=True, negative_dims=1)
    state = M.slots_of(case, clusters, empty)
    target = run.multicut_best_cluster(*case.nodes, *state, "reference")[0].clamp_min(0)
    order = M.shuffled(case)
    got, true = both("move", *case.nodes, *state, order, case.offsets, target)
    for mine, expected in zip(got, true, strict=True):
        assert torch.equal(mine, expected)
    assert int(got[-1].sum()) > 0 or sizes == 1
