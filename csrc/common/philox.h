// Philox4x32-10 (Salmon et al., SC 2011), the one random generator of every backend. Plain integer
// arithmetic on independent counters: a loop over counters vectorises.
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace sublimate {

struct Philox4 {
  uint32_t w[4];
};

// Counter (c0, c1, c2, c3) under key (k0, k1).
SUBLIMATE_HD Philox4 philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                   uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// Streams of one seed: independent sequences for different purposes (counter word c2).
namespace stream {
constexpr uint32_t uniform = 0, sign = 1, permutation = 2, gaussian = 3, rademacher = 4, draw = 5;
}

// Words 4 * counter .. 4 * counter + 3 of a stream of a 64-bit seed.
SUBLIMATE_HD Philox4 philox_words(uint64_t seed, uint64_t counter, uint32_t stream = 0) {
  return philox4x32_10(uint32_t(counter), uint32_t(counter >> 32), stream, 0u, uint32_t(seed),
                       uint32_t(seed >> 32));
}

// Uniform in [0, 1): the upper 24 bits, so that the product is exact. The cast goes through int32,
// which every vector unit converts.
SUBLIMATE_HD float philox_uniform(uint32_t word) { return float(int32_t(word >> 8)) * 0x1p-24f; }

}  // namespace sublimate
