"""The CUDA kernels themselves, run by the emulator, against the reference; on a GPU both the CUDA
and the Triton kernels.

Sizes lie around the packs, warps and tiles of the kernels and are otherwise small: an emulated
thread costs a fiber.
"""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.orders import outcomes
from helpers import sketch_kernels as K
from helpers.lanes import CUDA_EMULATED, GPU, Lane, lane_id
from helpers.parity import assert_same_bits
from sublimate import _native
from sublimate._native import randomized_linear as native

PROJECTIONS = native.PROJECTIONS
ON = [CUDA_EMULATED, *(pytest.param(lane, marks=pytest.mark.gpu) for lane in GPU)]


@pytest.fixture(params=ON, ids=lane_id)
def kernels(request) -> K.Kernels:
    lane: Lane = request.param
    if lane.backend == "triton":
        return K.triton(lane.device)
    if lane.emulated:
        request.getfixturevalue("emulated_cuda")
    return K.native("cuda", lane.device)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "columns", "k"), [(1, 1, 1), (37, 131, 67), (32, 128, 64)])
@pytest.mark.parametrize("sketch", K.DENSE)
def test_dense(kernels, sketch, n, columns, k, dtype):
    x = K.numbers((n, columns), dtype)
    K.check_project(kernels, x if columns == 128 else K.strided(x), sketch, k)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "columns", "k"), [(1, 1, 1), (5, 17, 5), (500, 9, 77), (1025, 16, 1025), (3300, 3, 700)]
)
def test_srht(kernels, n, columns, k, dtype):
    K.check_project(kernels, K.strided(K.numbers((n, columns), dtype)), "srht", k)


def test_srht_many_tiles(kernels):
    """More columns than blocks take at a time: several tiles for each."""
    K.check_project(kernels, K.numbers((40, 16 * 9 + 5), torch.float32), "srht", 20)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize("sketch", ["countsketch", "rows"])
@pytest.mark.parametrize(
    ("n", "columns", "k"),
    [(1, 1, 1), (67, 37, 13), (300, 264, 33), (40, 5, 40), (70, 40, 1), (66, 16, 2), (900, 8, 400)],
)
def test_selections(kernels, sketch, n, columns, k, dtype):
    x = K.numbers((n, columns), dtype)
    K.check_project(kernels, x if columns % 8 == 0 else K.strided(x), sketch, k)


@pytest.mark.parametrize("sketch", PROJECTIONS)
@pytest.mark.parametrize(
    ("n", "columns", "k"), [(6, 5, 11), (0, 3, 4), (4, 0, 2), (4, 3, 0), (3, 1, 900)]
)
def test_odd_sizes(kernels, sketch, n, columns, k):
    """Empty in one way or another, and more outputs than rows: the rest is zero."""
    K.check_project(kernels, K.numbers((n, columns), torch.float32), sketch, k)


@pytest.mark.parametrize("sketch", PROJECTIONS)
def test_nan_and_infinity_pass(kernels, sketch):
    x = K.numbers((50, 6), torch.float32)
    x[3, 1], x[40, 2], x[7, 4] = torch.nan, torch.inf, -torch.inf
    K.check_project(kernels, x, sketch, 20)


@pytest.mark.parametrize("sketch", PROJECTIONS)
def test_rows_that_are_one_row(kernels, sketch):
    """Row stride 0, as an expanded gradient has it."""
    x = K.numbers((1, 24), torch.float32).expand(40, 24)
    K.check_project(kernels, x, sketch, 9)


def test_streams(kernels):
    K.check_streams(kernels)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "columns", "k"), [(1, 1, 1), (67, 40, 300), (9, 300, 4), (5, 4, 0)])
def test_gather(kernels, n, columns, k, dtype):
    x = K.numbers((n, columns), dtype)
    x[0, 0], x[n - 1, columns - 1] = torch.nan, -0.0
    index = (torch.arange(k) * 7 % n).to(torch.int32)
    scale = (torch.arange(k, dtype=torch.float64) + 0.3).to(K.R.accumulator(dtype))
    for m in (x, K.strided(x)):
        K.check_gather(kernels, m, index, None)
        K.check_gather(kernels, m, index, scale)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "length"), [(1, 1), (3, 2), (70, 37), (40, 64), (9, 1000), (3, 1025), (1, 5000)]
)
def test_hadamard(kernels, rows, length, dtype):
    K.check_hadamard(kernels, K.strided(K.numbers((rows, length), dtype)), 0.37)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
def test_hadamard_beyond_a_block(kernels, dtype):
    """Rows longer than one block holds: two passes of fp32, more reads of the others."""
    K.check_hadamard(kernels, K.strided(K.numbers((2, 2**16 + 3), dtype)), 2.0**-8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_large(backend, dtype):
    """Sizes of a layer, several blocks to every multiprocessor; and the longest transform."""
    kernels = K.triton("cuda") if backend == "triton" else K.native("cuda", "cuda")
    for sketch in PROJECTIONS:
        K.check_project(kernels, K.numbers((4096, 771), dtype), sketch, 819)
    K.check_hadamard(kernels, K.numbers((3, 2**20 - 1), dtype), 2.0**-10)


@pytest.mark.parametrize("sketch", PROJECTIONS)
def test_same_bits_in_every_order(emulated_cuda, sketch):
    """Whatever the order of threads and blocks: nothing races, nothing is summed by chance."""
    x, seed = K.numbers((90, 37), torch.float32), torch.tensor(3)
    table = K._normal.table()

    def run() -> torch.Tensor:
        out = torch.empty(31, 37)
        native.project("cuda", x, out, seed, sketch, table)
        return out

    results = outcomes(run)
    for name, result in results.items():
        assert_same_bits(result, results["forward"], name)


def test_bad_arguments(emulated_cuda):
    x, seed = torch.zeros(4, 3), torch.tensor(0)
    with pytest.raises(_native.NativeError, match="no kernel of sketch 'crs'"):
        native.project("cuda", x, torch.zeros(2, 3), seed, "crs", None)
    module = _native.CUDA.load()
    bad = module.randomized_linear_project(0, 7, 0, 4, 3, 3, 0, 2, seed.data_ptr(), 0, 0, 0, 1)
    assert "argument" in module.error_text(bad)
    assert module.randomized_linear_gather(9, 0, 4, 3, 3, 0, 0, 0, 2, 0, 0, 1) == -1
    assert module.randomized_linear_hadamard(0, 0, 4, 3, 3, 0, 6, 1.0, 0, 0, 1) == -2
