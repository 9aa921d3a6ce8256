"""The compiled CPU kernels called directly: sizes, layouts, threads, guards, wide addresses."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch
from helpers import sketch_kernels as K
from helpers.parity import assert_same_bits
from sublimate import NativeError, _native, _normal, _permutation
from sublimate._native import randomized_linear as N
from sublimate.randomized_linear import reference as R
from torch import Tensor

pytestmark = pytest.mark.skipif(
    _native.CPU.reason() is not None, reason=f"no CPU module: {_native.CPU.reason()}"
)
KERNELS = K.native("cpu")
DTYPES = pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
SKETCHES = pytest.mark.parametrize("sketch", N.PROJECTIONS)


def project(x: Tensor, sketch: str, k: int, seed: int = K.SEED) -> Tensor:
    out = torch.empty(k, x.shape[1], dtype=x.dtype)
    N.project("cpu", x, out, torch.tensor(seed), sketch, _normal.table())
    return out


@pytest.fixture
def threads():
    """Sets the thread count for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------- random streams


def test_streams():
    K.check_streams(KERNELS)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 255, 256, 257, 1000, 4096, 5000])
def test_permutation(n):
    """Every image, through the sketch that takes the rows in that order."""
    for seed in (0, 1, K.SEED, 2**63 - 1):
        numbered = torch.arange(n, dtype=torch.float64).unsqueeze(1)
        taken = project(numbered, "rows", n, seed).squeeze(1).round().long()
        assert torch.equal(taken, _permutation.permutation(seed, n)), seed


@pytest.mark.parametrize("n", [1, 31, 32, 33, 127, 128, 129, 3000])
def test_signs_and_inverse_permutation(n):
    """A bucket for each row: row j is the signed row whose image is j."""
    numbered = 1 + torch.arange(n, dtype=torch.float64)
    got = project(numbered.unsqueeze(1), "countsketch", n).squeeze(1)
    signed = R.signs(K.SEED, n, numbered) * numbered
    expected = torch.empty_like(signed)
    expected[_permutation.permutation(K.SEED, n)] = signed
    assert_same_bits(got, expected)


@pytest.mark.parametrize("k", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("sketch", K.DENSE)
def test_dense_entries(sketch, k):
    """S bit for bit, past the borders of panels: 1 / sqrt(k) is a power of two."""
    n = 133
    assert_same_bits(project(torch.eye(n), sketch, k), R.project(torch.eye(n), sketch, k, K.SEED))


# ------------------------------------------------------------------------------- sizes and layouts


@DTYPES
@SKETCHES
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (5, 3), (64, 16), (129, 33), (1025, 70)])
def test_sizes(sketch, n, columns, dtype):
    """Odd strides and addresses; few outputs, some, as many as rows, more."""
    x = K.strided(K.numbers((n, columns), dtype))
    for k in sorted({1, max(1, n // 5), n, n + 3}):
        K.check_project(KERNELS, x, sketch, k)


@DTYPES
@pytest.mark.parametrize(
    ("n", "columns", "k"),
    [(2050, 1040, 410), (700, 2100, 1), (3000, 5, 17), (1024, 64, 1024), (300, 40, 250)],
)
def test_larger(n, columns, k, dtype, threads):
    """Several blocks, panels, tiles and lists of rows; one thread, and more than there are cores
    write the same bits."""
    x = K.strided(K.numbers((n, columns), dtype))
    for sketch in N.PROJECTIONS:
        threads(1)
        alone = K.check_project(KERNELS, x, sketch, k)
        for count in (2, 5):
            threads(count)
            assert_same_bits(project(x, sketch, k), alone, f"{sketch}, {count} threads")


@SKETCHES
@pytest.mark.parametrize(("n", "columns", "k"), [(0, 3, 4), (4, 0, 2), (4, 3, 0), (0, 0, 0)])
def test_empty(sketch, n, columns, k):
    K.check_project(KERNELS, K.numbers((n, columns), torch.float32), sketch, k)


def test_srht_all_outputs_and_more():
    """As many outputs as the padded transform has rows, and zeros after those."""
    for n in (3, 1030):
        total = R.transformed_rows("srht", n)
        for k in (n + 1, total, total + 5):
            K.check_project(KERNELS, K.numbers((n, 20), torch.float32), "srht", k)


@SKETCHES
@DTYPES
def test_nan_and_infinity_pass(sketch, dtype):
    x = K.numbers((50, 70), dtype)
    x[3, 1], x[40, 2], x[7, 40], x[8, 69] = torch.nan, torch.inf, -torch.inf, torch.nan
    K.check_project(KERNELS, x, sketch, 20)


@SKETCHES
def test_expanded_rows(sketch):
    """A row stride of zero."""
    x = K.numbers((1, 33), torch.float32).expand(100, 33)
    out = torch.empty(20, 33)
    N.project("cpu", x, out, torch.tensor(3), sketch, _normal.table())
    torch.testing.assert_close(out, R.project(x, sketch, 20, 3), rtol=1e-5, atol=1e-5)


@SKETCHES
def test_x_is_not_written(sketch):
    x = K.numbers((70, 19), torch.float16)
    before = x.clone()
    project(x, sketch, 9)
    assert_same_bits(x, before)


@DTYPES
@pytest.mark.parametrize(
    ("n", "columns", "k"), [(1, 1, 1), (67, 37, 133), (9, 3000, 40), (5, 4, 0)]
)
def test_gather(n, columns, k, dtype, threads):
    x = K.strided(K.numbers((n, columns), dtype))
    x[0, 0] = torch.nan
    index = (torch.arange(k) * 7 % n).to(torch.int32)
    scale = (torch.arange(k, dtype=torch.float64) + 0.3).to(R.accumulator(dtype))
    for count in (1, 3):
        threads(count)
        K.check_gather(KERNELS, x, index, None)
        K.check_gather(KERNELS, x, index, scale)


# ------------------------------------------------------------------------------ Hadamard transform


@DTYPES
@pytest.mark.parametrize("log", range(17))
def test_hadamard_lengths(log, dtype):
    """A full row, one that lacks an element, and one just above half; rows apart and together."""
    length = 2**log
    rows = max(3, 1500 // length)
    for short in {0, min(1, length // 2), max(0, length // 2 - 1)}:
        x = K.numbers((rows, length - short), dtype)
        K.check_hadamard(KERNELS, K.strided(x), 0.37)
        if not short:
            K.check_hadamard(KERNELS, x, -1.25)


def test_hadamard_longest():
    K.check_hadamard(KERNELS, K.numbers((1, 2**20 - 9), torch.float32), 2.0**-10)
    K.check_hadamard(KERNELS, K.numbers((1, 2**20), torch.bfloat16), 2.0**-10)


@DTYPES
def test_hadamard_against_scipy(dtype):
    scipy = pytest.importorskip("scipy.linalg")
    for length in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        # Small integers, so that every sum is exact in every type.
        x = torch.randint(-1, 2, (5, length), generator=torch.Generator().manual_seed(length))
        expected = x.double() @ torch.from_numpy(scipy.hadamard(length)).double()
        out = torch.empty(5, length, dtype=dtype)
        N.hadamard("cpu", x.to(dtype), out, 1.0)
        assert_same_bits(out, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "length"), [(1, 2**17), (3, 2**14), (7, 2**12), (5000, 8), (900, 64), (4, 2**16)]
)
def test_hadamard_threads(rows, length, dtype, threads):
    """Rows, parts of rows and short rows shared among threads; results of 8 MiB and more, which
    bypass the caches."""
    rows = rows * 9 if length >= 2**16 else rows
    x = K.numbers((rows, length), dtype)
    found = []
    for count in (1, 2, 5):
        threads(count)
        out = torch.empty_like(x)
        N.hadamard("cpu", x, out, 0.5)
        found.append(out)
    truth = R.hadamard_transform(x[-1:].double(), 0.5)
    torch.testing.assert_close(found[0][-1:].double(), truth, rtol=1e-2, atol=2.0)
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_hadamard_is_its_own_inverse(rows):
    x = torch.randn(rows, 2**18, dtype=torch.float64)
    once, twice = torch.empty_like(x), torch.empty_like(x)
    N.hadamard("cpu", x, once, 2.0**-9)
    N.hadamard("cpu", once, twice, 2.0**-9)
    torch.testing.assert_close(twice, x, rtol=0, atol=1e-13)
    assert not torch.allclose(once, x)


# ------------------------------------------------------------------------------- wide addresses


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory without reserving it")
def test_rows_more_than_2_to_31_elements_apart():
    """Only the pages that hold a row exist."""
    apart, columns, rows = 2**31 + 64, 40, 5
    no_reserve = 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    room = mmap.mmap(-1, 2 * (apart * (rows - 1) + columns), flags=flags)
    x = torch.frombuffer(room, dtype=torch.float16).as_strided((rows, columns), (apart, 1))
    dense = K.numbers((rows, columns), torch.float16)
    x.copy_(dense)
    for sketch in N.PROJECTIONS:
        assert_same_bits(project(x, sketch, 3), project(dense, sketch, 3), sketch)
    index = torch.tensor([4, 0, 3], dtype=torch.int32)
    out = torch.empty(3, columns, dtype=torch.float16)
    N.gather("cpu", x, index, None, out)
    assert_same_bits(out, dense[index.long()])
    wide, narrow = (torch.empty(rows, 64, dtype=torch.float16) for _ in range(2))
    N.hadamard("cpu", x, wide, 1.0)
    N.hadamard("cpu", dense, narrow, 1.0)
    assert_same_bits(wide, narrow)
    del x


# ---------------------------------------------------------------------------------------- guards


def project_arguments():
    return {
        "x": torch.randn(8, 6),
        "out": torch.empty(3, 6),
        "seed": torch.tensor(1),
        "sketch": "gaussian",
        "normal_table": _normal.table(),
    }


def gather_arguments():
    return {
        "x": torch.randn(8, 6),
        "index": torch.tensor([1, 7, 0], dtype=torch.int32),
        "scale": torch.ones(3),
        "out": torch.empty(3, 6),
    }


def hadamard_arguments():
    return {"x": torch.randn(8, 6), "out": torch.empty(8, 8), "scale": 1.0}


OPS = {
    "randomized_linear_project": (N.project, project_arguments),
    "randomized_linear_gather": (N.gather, gather_arguments),
    "randomized_linear_hadamard": (N.hadamard, hadamard_arguments),
}
TENSORS = [
    (op, name)
    for op, (_, make) in OPS.items()
    for name, value in make().items()
    if isinstance(value, Tensor)
]


def run(op, **changes):
    function, make = OPS[op]
    function("cpu", *{**make(), **changes}.values())


@pytest.mark.parametrize("op", OPS)
def test_the_unchanged_arguments_are_good(op):
    run(op)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_wrong_device(op, name):
    value = OPS[op][1]()[name].to("meta")
    with pytest.raises(NativeError, match=f"^{op}: {name} is on meta, the kernel needs cpu"):
        run(op, **{name: value})


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_wrong_dtype(op, name):
    value = OPS[op][1]()[name].to(torch.int16)
    with pytest.raises(NativeError, match=f"^{op}: {name} has torch.int16, the kernel needs"):
        run(op, **{name: value})


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("project", {"x": torch.randn(8)}, "x has 1 dimensions, the kernel needs 2"),
        ("project", {"x": torch.randn(6, 8).t()}, "x has strides"),
        ("project", {"out": torch.empty(3, 5)}, r"out has shape \(3, 5\)"),
        ("project", {"out": torch.empty(6, 3).t()}, "out has shape"),
        ("project", {"seed": torch.zeros(2, dtype=torch.int64)}, "seed has 2 elements"),
        ("project", {"sketch": "crs"}, "no kernel of sketch 'crs'"),
        ("project", {"normal_table": None}, "sketch 'gaussian' needs normal_table"),
        ("project", {"normal_table": torch.zeros(768)}, "normal_table has 768 elements"),
        ("project", {"normal_table": torch.zeros(1536, 2)[:, 0]}, "normal_table is not contig"),
        ("gather", {"x": torch.randn(6, 8).t()}, "x has strides"),
        ("gather", {"index": torch.zeros(6, dtype=torch.int32)[::2]}, "index is not a contiguous"),
        ("gather", {"scale": torch.ones(4)}, "scale has 4 elements"),
        ("gather", {"scale": torch.ones(3, dtype=torch.float64)}, "scale has torch.float64"),
        ("gather", {"out": torch.empty(2, 6)}, r"out has shape \(2, 6\)"),
        ("gather", {"x": torch.randn(0, 6)}, "argument out of range"),
        ("hadamard", {"x": torch.randn(6, 8).t()}, "x has strides"),
        ("hadamard", {"out": torch.empty(8, 4)}, "rows of 6 do not fit out's 4"),
        ("hadamard", {"out": torch.empty(8, 12)}, "rows of 6 do not fit out's 12"),
        ("hadamard", {"out": torch.empty(7, 8)}, r"out has shape \(7, 8\)"),
        ("hadamard", {"out": torch.empty(8, 2**21)}, "argument out of range"),
    ],
)
def test_wrong_arguments(op, changes, message):
    with pytest.raises(NativeError, match=rf"randomized_linear_{op}\b.*{message}"):
        run(f"randomized_linear_{op}", **changes)


def test_lazy_negative():
    x = torch._neg_view(torch.randn(8, 6))
    with pytest.raises(NativeError, match="x is a lazy conjugate or negative view"):
        run("randomized_linear_project", x=x)
