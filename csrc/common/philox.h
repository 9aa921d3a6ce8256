// Philox4x32-10 (Salmon et al. 2011): a counter-based generator; the same stream in every backend.
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace sublimate {

struct Philox4 {
  uint32_t w[4];
};

SUBLIMATE_HD Philox4 philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                   uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// [0, 1) with 24 bits.
SUBLIMATE_HD float philox_uniform(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

}  // namespace sublimate
