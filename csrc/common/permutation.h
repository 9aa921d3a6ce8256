// A keyed bijection of [0, size) and its inverse, evaluated for one index at a time in registers: a
// random order of any length without a list of it. Eight Feistel rounds over the smallest domain
// 4^half that holds `size` (at least 2^8), repeated until the result lies below `size` (cycle
// walking; Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). The round
// function is the finaliser of MurmurHash3 on the keyed half. Twins: python/sublimate/
// _permutation.py, kernels/common/permutation.py.
#pragma once

#include <cstdint>

#include "common/hd.h"
#include "common/philox.h"

namespace sublimate {

struct Permutation {
  static constexpr int ROUNDS = 8;
  uint32_t size;
  int half;       // bits of half an index
  uint32_t mask;  // 2^half - 1
  uint32_t key[ROUNDS];
};

// size in [1, 2^31]. Two Philox evaluations: made once per thread, not per index.
SUBLIMATE_HD Permutation make_permutation(uint64_t seed, int64_t size) {
  Permutation p;
  p.size = uint32_t(size);
  p.half = 4;
  while ((int64_t(1) << (2 * p.half)) < size) ++p.half;
  p.mask = (1u << p.half) - 1u;
  SUBLIMATE_GPU_UNROLL
  for (int r = 0; r < Permutation::ROUNDS; r += 4) {
    const Philox4 words = philox_words(seed, uint64_t(r / 4), stream::permutation);
    SUBLIMATE_GPU_UNROLL
    for (int k = 0; k < 4; ++k) p.key[r + k] = words.w[k];
  }
  return p;
}

SUBLIMATE_HD uint32_t permutation_round(const Permutation& p, int r, uint32_t v) {
  uint32_t x = v * 0x9E3779B1u + p.key[r];
  x ^= x >> 16;
  x *= 0x85EBCA6Bu;
  x ^= x >> 13;
  x *= 0xC2B2AE35u;
  x ^= x >> 16;
  return x & p.mask;
}

// All rounds once, forward or backward: a bijection of the domain, so its results may be >= size.
SUBLIMATE_HD uint32_t permutation_pass(const Permutation& p, uint32_t i) {
  uint32_t left = i >> p.half, right = i & p.mask;
  SUBLIMATE_GPU_UNROLL
  for (int r = 0; r < Permutation::ROUNDS; ++r) {
    const uint32_t mixed = left ^ permutation_round(p, r, right);
    left = right;
    right = mixed;
  }
  return (left << p.half) | right;
}
SUBLIMATE_HD uint32_t permutation_pass_back(const Permutation& p, uint32_t i) {
  uint32_t left = i >> p.half, right = i & p.mask;
  SUBLIMATE_GPU_UNROLL
  for (int r = Permutation::ROUNDS - 1; r >= 0; --r) {
    const uint32_t mixed = right ^ permutation_round(p, r, left);
    right = left;
    left = mixed;
  }
  return (left << p.half) | right;
}

// PERM(size)(i) and PERM(size)^-1(i), i in [0, size); at most 4 passes on average.
SUBLIMATE_HD uint32_t permuted(const Permutation& p, uint32_t i) {
  do i = permutation_pass(p, i);
  while (i >= p.size);
  return i;
}
SUBLIMATE_HD uint32_t permuted_back(const Permutation& p, uint32_t i) {
  do i = permutation_pass_back(p, i);
  while (i >= p.size);
  return i;
}

}  // namespace sublimate
