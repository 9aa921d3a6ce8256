// What the CPU sources of this family share. Compiled once per instruction-set level
// (common/isa.h): everything here has internal linkage but the kernels of the level's namespace.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/lanes.h"
#include "common/parallel.h"
#include "path_integral/kernels.h"
#include "path_integral/path_integral_math.h"

SUBLIMATE_DECLARE_PATH_INTEGRAL(SUBLIMATE_ISA)

namespace sublimate::path_integral::SUBLIMATE_ISA {
namespace {

constexpr int BLOCK = 1024;       // numbers of a sample that go through all points together
constexpr int64_t GRAIN = 16384;  // numbers below which a thread costs more than it brings

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(sample, first number, count) for every piece, `weight` times as much work as numbers.
template <class Body>
void each_piece(int64_t samples, int64_t size, int64_t weight, int threads, const Body& body) {
  const int64_t across = divide_up(size, BLOCK);
  const int64_t work = std::min<int64_t>(size, BLOCK) * std::max<int64_t>(weight, 1);
  parallel_for(samples * across, 1, divide_up(GRAIN, std::max<int64_t>(work, 1)), threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t p = begin; p < end; ++p) {
                   const int64_t e = p % across * BLOCK;
                   body(p / across, e, int(std::min<int64_t>(BLOCK, size - e)));
                 }
               });
}

// n <= LANES lanes.
template <class T>
SUBLIMATE_HD void put(T* out, Vector<arith_t<T>> v, int n) {
  if (n == LANES<arith_t<T>>) {
    store_lanes(out, v);
  } else {
    store_some(out, v, n);
  }
}

// Normal numbers of words first .. first + n, n <= BLOCK; `normal` has room for n + 64. A counter
// gives four words, so the run begins at a multiple of four and is moved into place.
template <class A>
void draw(const Noise& noise, int64_t first, int n, A* normal) {
  constexpr int GROUPS = BLOCK / 4 + 1;
  const uint64_t seed = uint64_t(*noise.seed), counter = uint64_t(first) >> 2;
  const int skip = int(first & 3), groups = (skip + n + 3) / 4;
  uint32_t words[4][GROUPS];
  for (int j = 0; j < groups; ++j) {
    const Philox4 r = philox_words(seed, counter + uint64_t(j), stream::gaussian);
    for (int w = 0; w < 4; ++w) words[w][j] = r.w[w];
  }
  A drawn[4 * GROUPS];
  for (int w = 0; w < 4; ++w) {
    for (int j = 0; j < groups; ++j) drawn[4 * j + w] = A(normal_of(words[w][j], noise.table));
  }
  std::copy_n(drawn + skip, n, normal);
}

}  // namespace
}  // namespace sublimate::path_integral::SUBLIMATE_ISA
