"""Cases of test_streams.py that run under Triton's interpreter, in their own process."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from helpers import philox_vectors
from sublimate import _normal, _permutation, _philox
from sublimate.kernels.common import normal, permutation, philox

SIZES = (60, 256, 257, 2**20 + 1, 2**31)


@triton.jit
def _word_kernel(seed, index, out, n, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    w = philox.word(tl.load(seed), tl.load(index + at, mask=at < n, other=0), STREAM)
    tl.store(out + at, w.to(tl.int64), mask=at < n)


@triton.jit
def _sign_kernel(seed, out, start, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, philox.signs(tl.load(seed), tl.load(start) + at))


@triton.jit
def _normal_kernel(words, table, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, normal.normal(tl.load(words + at).to(tl.uint32), table))


@triton.jit
def _permutation_kernel(seed, index, there, back, size, half, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    i = tl.load(index + at)
    m = tl.load(size)
    keys = permutation.keys(tl.load(seed))
    h = tl.cast(half, tl.int32)
    tl.store(there + at, permutation.permuted(i.to(tl.uint32), m, h, keys).to(tl.int64))
    tl.store(back + at, permutation.permuted_back(i.to(tl.uint32), m, h, keys).to(tl.int64))


@pytest.mark.parametrize("stream", range(6))
@pytest.mark.parametrize("seed", [1, 2**63 - 1])
def test_words_match_torch(seed, stream):
    index = philox_vectors.indices()
    n = index.numel()
    out = torch.full((n,), -1)
    block = triton.next_power_of_2(n)
    _word_kernel[(1,)](torch.tensor(seed), index, out, n, STREAM=stream, BLOCK=block)
    assert torch.equal(out, _philox.words(seed, index, stream=stream))


@pytest.mark.parametrize("start", [0, 7, 2**31 - 64])
def test_signs_match_torch(start):
    out = torch.zeros(256)
    _sign_kernel[(1,)](torch.tensor(2**40 + 5), out, torch.tensor(start), BLOCK=256)
    n = start + torch.arange(256)
    word = _philox.words(2**40 + 5, n >> 5, stream=1)
    assert torch.equal(out, 1.0 - 2 * ((word >> (n & 31)) & 1))


def test_normal_matches_torch():
    """Random words, and those at both ends of every segment."""
    v = torch.cat([torch.arange(2**13), 2**23 - 1 - torch.arange(2**13)])
    v = torch.cat([v, *((2**e + torch.arange(-3, 4)).clamp(0, 2**23 - 1) for e in range(23))])
    words = torch.cat([v << 9, (v << 9) | 1, _philox.words(3, 2**14)])
    words = words[: words.numel() // 2**15 * 2**15]
    out = torch.zeros(words.numel())
    _normal_kernel[(1,)](words, _normal.table(), out, BLOCK=words.numel())
    assert torch.equal(out, _normal.from_words(words))


@pytest.mark.parametrize("m", SIZES)
def test_permutation_matches_torch(m):
    seed, half = 2**40 + 17, permutation.half_bits(m)
    assert half == _permutation.half_bits(m)
    index = (torch.arange(64) * 0x9E3779B1 + 5) % m
    index[:2], index[-1] = torch.tensor([0, m // 2]), m - 1
    there, back = torch.full((64,), -1), torch.full((64,), -1)
    arguments = torch.tensor(seed), index, there, back, torch.tensor(m), half
    _permutation_kernel[(1,)](*arguments, BLOCK=64)
    assert torch.equal(there, _permutation.permute(seed, m, index))
    assert torch.equal(back, _permutation.unpermute(seed, m, index))
