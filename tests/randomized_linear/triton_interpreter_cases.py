"""Cases of test_triton_interpreter.py: every Triton kernel of the family against the reference.

They run under Triton's interpreter on CPU tensors, in a process of their own; what it does with
bf16 is in ``sketch_kernels.compare``.
"""

from __future__ import annotations

import pytest
import torch
from helpers import sketch_kernels as K
from sublimate.kernels.randomized_linear import configs, fwd

KERNELS = K.triton()


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "columns", "k"), [(1, 1, 1), (67, 37, 13), (33, 130, 40)])
@pytest.mark.parametrize("sketch", K.DENSE)
def test_dense(sketch, n, columns, k, dtype):
    K.check_project(KERNELS, K.strided(K.numbers((n, columns), dtype)), sketch, k)


@pytest.mark.parametrize("sketch", K.DENSE)
def test_dense_large_tile(sketch, monkeypatch):
    monkeypatch.setattr(configs, "_ENOUGH", 1)
    assert configs.dense(300, 140, 2) == configs.DENSE_16[1]
    K.check_project(KERNELS, K.numbers((40, 300), torch.float16), sketch, 140)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "columns", "k"), [(1, 1, 1), (5, 17, 5), (500, 40, 77), (1025, 24, 1025)]
)
def test_srht(n, columns, k, dtype):
    K.check_project(KERNELS, K.strided(K.numbers((n, columns), dtype)), "srht", k)


def test_srht_many_tiles(monkeypatch):
    """Several tiles of columns for each program, the last ones beyond the matrix."""
    monkeypatch.setattr(configs, "_ENOUGH", 2)
    assert configs.srht_tiles(1, 5) == 3
    K.check_project(KERNELS, K.numbers((70, 75), torch.float32), "srht", 20)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "columns", "k"), [(1, 1, 1), (67, 37, 13), (90, 257, 33), (40, 5, 40), (5, 3, 1)]
)
@pytest.mark.parametrize("sketch", ["countsketch", "rows"])
def test_selections(sketch, n, columns, k, dtype):
    K.check_project(KERNELS, K.strided(K.numbers((n, columns), dtype)), sketch, k)


@pytest.mark.parametrize("sketch", fwd.PROJECTIONS)
def test_more_outputs_than_rows(sketch):
    K.check_project(KERNELS, K.numbers((6, 5), torch.float32), sketch, 11)


@pytest.mark.parametrize("sketch", fwd.PROJECTIONS)
@pytest.mark.parametrize(("n", "columns", "k"), [(0, 3, 4), (4, 0, 2), (4, 3, 0)])
def test_empty(sketch, n, columns, k):
    K.check_project(KERNELS, K.numbers((n, columns), torch.float32), sketch, k)


@pytest.mark.parametrize("sketch", fwd.PROJECTIONS)
def test_nan_and_infinity_pass(sketch):
    x = K.numbers((50, 6), torch.float32)
    x[3, 1], x[40, 2], x[7, 4] = torch.nan, torch.inf, -torch.inf
    K.check_project(KERNELS, x, sketch, 20)


@pytest.mark.parametrize("sketch", fwd.PROJECTIONS)
def test_wide_index(sketch, monkeypatch):
    """Offsets of 64 bits within a tile."""
    import triton.language as tl

    monkeypatch.setattr(configs, "index", lambda span: tl.int64)
    K.check_project(KERNELS, K.numbers((30, 20), torch.float32), sketch, 9)


def test_streams():
    K.check_streams(KERNELS)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "columns", "k"), [(1, 1, 1), (67, 37, 33), (9, 300, 4), (5, 4, 0)])
def test_gather(n, columns, k, dtype):
    x = K.strided(K.numbers((n, columns), dtype))
    x[0, 0] = torch.nan
    index = (torch.arange(k) * 7 % n).to(torch.int32)
    scale = (torch.arange(k, dtype=torch.float64) + 0.3).to(K.R.accumulator(dtype))
    K.check_gather(KERNELS, x, index, None)
    K.check_gather(KERNELS, x, index, scale)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "length"), [(1, 1), (3, 2), (70, 37), (300, 64), (2, 1000), (1, 20000), (3, 2**14 + 1)]
)
def test_hadamard(rows, length, dtype):
    K.check_hadamard(KERNELS, K.strided(K.numbers((rows, length), dtype)), 0.37)


def test_hadamard_longest():
    K.check_hadamard(KERNELS, K.numbers((1, 2**20), torch.float32), 2.0**-10)


def test_bad_arguments():
    x, seed = torch.zeros(4, 3), torch.tensor(0)
    with pytest.raises(ValueError, match=r"sketch: expected one of .*, got 'crs'"):
        fwd.project(x, x, seed, "crs", None)
    with pytest.raises(ValueError, match="table: expected the table of normal numbers"):
        fwd.project(x, x, seed, "gaussian", None)
    with pytest.raises(ValueError, match="out: expected a power of two >= 3 to a row, got 6"):
        fwd.hadamard(x, torch.zeros(4, 6), 1.0)
