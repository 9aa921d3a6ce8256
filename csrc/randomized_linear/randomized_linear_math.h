// The sketches as functions of an index: one source for CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/hd.h"
#include "common/philox.h"

namespace sublimate::randomized_linear {

// The numbers are the binding's: python/sublimate/_native/randomized_linear.py SKETCHES.
enum class Sketch : int { gaussian, rademacher, srht, dct, countsketch, rows, crs, wta };

SUBLIMATE_HD bool is_projection(int sketch) {
  const Sketch s = Sketch(sketch);
  return s == Sketch::gaussian || s == Sketch::rademacher || s == Sketch::srht ||
         s == Sketch::countsketch || s == Sketch::rows;
}

constexpr int64_t MAX_ROWS = int64_t(1) << 31;    // an index fits 32 bits
constexpr int64_t MAX_LENGTH = int64_t(1) << 20;  // of a Hadamard transform
constexpr int64_t SRHT_ROWS = 1024;               // most rows that one block transforms

// d(n) of rows 32 * group .. 32 * group + 31 of the data: bit n & 31 set means -1.
SUBLIMATE_HD uint32_t sign_word(uint64_t seed, int64_t group) {
  const Philox4 r = philox_words(seed, uint64_t(group) >> 2, stream::sign);
  // By choice and not by index: words that are indexed lie in memory on a GPU.
  const uint32_t low = group & 1 ? r.w[1] : r.w[0], high = group & 1 ? r.w[3] : r.w[2];
  return group & 2 ? high : low;
}

// Dense sketches, row n of S in groups: gaussian has 4 columns to a counter, rademacher 128.
SUBLIMATE_HD Philox4 gaussian_words(uint64_t seed, int64_t n, int64_t k, int64_t group) {
  return philox_words(seed, uint64_t(n) * uint64_t((k + 3) / 4) + uint64_t(group),
                      stream::gaussian);
}
SUBLIMATE_HD Philox4 rademacher_words(uint64_t seed, int64_t n, int64_t k, int64_t group) {
  return philox_words(seed, uint64_t(n) * uint64_t((k + 127) / 128) + uint64_t(group),
                      stream::rademacher);
}

// The blocks of the subsampled randomized Hadamard transform: `blocks` runs of `chunk` consecutive
// rows (the last may be short), each padded with zeros to `size` rows, a power of two.
struct SrhtBlocks {
  int64_t blocks, chunk;
  int log_size;
  SUBLIMATE_HD int64_t size() const { return int64_t(1) << log_size; }
  SUBLIMATE_HD int64_t transformed() const { return blocks << log_size; }
};
// rows > 0.
SUBLIMATE_HD SrhtBlocks srht_blocks(int64_t rows) {
  SrhtBlocks b;
  b.blocks = (rows + SRHT_ROWS - 1) / SRHT_ROWS;
  b.chunk = (rows + b.blocks - 1) / b.blocks;
  b.log_size = 0;
  while (b.size() < b.chunk) ++b.log_size;
  return b;
}

// Scales, in double on every target and rounded to the arithmetic type by the caller; `whole` is
// the number of rows to choose from.
SUBLIMATE_HD double subset_scale(int64_t whole, int64_t k) {
  return sqrt(double(whole) / double(k < whole ? k : whole));
}
SUBLIMATE_HD double dense_scale(int64_t k) { return 1.0 / sqrt(double(k)); }
// sqrt(transformed / k) and the transform's own 1 / sqrt(size).
SUBLIMATE_HD double srht_scale(const SrhtBlocks& b, int64_t k) {
  return subset_scale(b.transformed(), k) / sqrt(double(b.size()));
}

}  // namespace sublimate::randomized_linear
