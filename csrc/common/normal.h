// Standard normal numbers from random words by a table, bit-identical on every machine: |z| is
// piecewise linear in the word on 24 octaves of 32 segments, and the slopes have 12 significant
// bits, so that slope * offset is exact and the one sum rounds alike with and without contraction.
// The table is python/sublimate/_normal.py, which says how it was made; twins: that file and
// kernels/common/normal.py.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/hd.h"

namespace sublimate {

constexpr int NORMAL_SEGMENTS = 768;

// table: NORMAL_SEGMENTS values at the start of each segment, then as many slopes.
SUBLIMATE_HD float normal_of(uint32_t word, const float* table) {
  // Odd, 24 bits, so exact in fp32; exponent and upper 5 bits of its mantissa name the segment.
  const uint32_t bits = bits_of(float(int32_t(2u * (word >> 9) + 1u)));
  const uint32_t segment = (bits >> 18) - (127u << 5);
  const float offset = float(int32_t((bits >> 6) & 4095u));
  const float size = table[segment] + table[NORMAL_SEGMENTS + segment] * offset;
  return float_of(bits_of(size) ^ (word << 31));
}

}  // namespace sublimate
