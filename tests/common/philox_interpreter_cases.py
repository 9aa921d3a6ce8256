"""Cases of test_philox.py that run under Triton's interpreter, in their own process."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from helpers import philox_vectors
from sublimate import _philox
from sublimate.kernels.common import philox


@triton.jit
def _known_kernel(counter, key, out):
    seed = tl.load(key).to(tl.uint64) | (tl.load(key + 1).to(tl.uint64) << 32)
    c = [tl.load(counter + i + tl.arange(0, 1)).to(tl.uint32) for i in tl.static_range(4)]
    w0, w1, w2, w3 = tl.philox(seed, c[0], c[1], c[2], c[3])
    at = out + tl.arange(0, 1)
    tl.store(at, w0.to(tl.int64))
    tl.store(at + 1, w1.to(tl.int64))
    tl.store(at + 2, w2.to(tl.int64))
    tl.store(at + 3, w3.to(tl.int64))


@triton.jit
def _uniform_kernel(seed, index, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    u = philox.uniform(tl.load(seed), tl.load(index + at, mask=at < n, other=0))
    tl.store(out + at, u, mask=at < n)


@triton.jit
def _tile_kernel(seed, start, out, ROWS: tl.constexpr, COLS: tl.constexpr):
    u = philox.uniform_tile(tl.load(seed), tl.load(start), ROWS, COLS)
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(out + at, u)


@pytest.mark.parametrize("vector", philox_vectors.KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(vector):
    counter, key, expected = vector
    out = torch.zeros(4, dtype=torch.int64)
    _known_kernel[(1,)](torch.tensor(counter), torch.tensor(key), out)
    assert out.tolist() == list(expected)


@pytest.mark.parametrize("seed", philox_vectors.SEEDS)
def test_indices_match_torch(seed):
    index = philox_vectors.indices()
    n = index.numel()
    out = torch.full((n,), -1.0)
    _uniform_kernel[(1,)](torch.tensor(seed), index, out, n, BLOCK=triton.next_power_of_2(n))
    assert torch.equal(out, _philox.uniform(seed, index))


@pytest.mark.parametrize("start", [0, 1024, 2**34 - 256, 2**34 + 64, 2**61])
def test_tile_matches_torch(start):
    seed = 2**40 + 11
    out = torch.full((16 * 32,), -1.0)
    _tile_kernel[(1,)](torch.tensor(seed), torch.tensor(start), out, ROWS=16, COLS=32)
    assert torch.equal(out, _philox.uniform(seed, start + torch.arange(16 * 32)))


@pytest.mark.parametrize("shape", [(1, 4), (2, 8), (4, 16), (1, 32)])
def test_tile_shapes(shape):
    rows, cols = shape
    out = torch.full((rows * cols,), -1.0)
    _tile_kernel[(1,)](torch.tensor(3), torch.tensor(8), out, ROWS=rows, COLS=cols)
    assert torch.equal(out, _philox.uniform(3, 8 + torch.arange(rows * cols)))
