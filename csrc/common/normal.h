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

// Segment of a word, and how far into it. Odd, 24 bits, so exact in fp32; exponent and upper 5 bits
// of its mantissa name the segment.
struct NormalPlace {
  uint32_t segment;
  float offset;
};
SUBLIMATE_HD NormalPlace normal_place(uint32_t word) {
  const uint32_t bits = bits_of(float(int32_t(2u * (word >> 9) + 1u)));
  return {(bits >> 18) - (127u << 5), float(int32_t((bits >> 6) & 4095u))};
}
SUBLIMATE_HD float normal_from(float start, float slope, float offset, uint32_t word) {
  const float size = start + slope * offset;
  return float_of(bits_of(size) ^ (word << 31));
}

// table: NORMAL_SEGMENTS values at the start of each segment, then as many slopes.
SUBLIMATE_HD float normal_of(uint32_t word, const float* table) {
  const NormalPlace at = normal_place(word);
  return normal_from(table[at.segment], table[NORMAL_SEGMENTS + at.segment], at.offset, word);
}

}  // namespace sublimate
