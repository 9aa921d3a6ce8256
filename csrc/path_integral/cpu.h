// What the CPU sources of this family share. Compiled once per instruction-set level
// (common/isa.h): everything here has internal linkage but the kernels of the level's namespace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/ceil_div.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "path_integral/kernels.h"
#include "path_integral/path_integral_math.h"

SUBLIMATE_DECLARE_PATH_INTEGRAL(SUBLIMATE_ISA)

namespace sublimate::path_integral::SUBLIMATE_ISA {
namespace {

constexpr int BLOCK = 1024;       // numbers of a sample that go through all points together
constexpr int64_t GRAIN = 16384;  // numbers below which a thread costs more than it brings

// Calls body(sample, first number, count) for every piece, `weight` times as much work as numbers.
template <class Body>
void each_piece(int64_t samples, int64_t size, int64_t weight, int threads, const Body& body) {
  const int64_t across = ceil_div(size, BLOCK);
  const int64_t work = std::min<int64_t>(size, BLOCK) * std::max<int64_t>(weight, 1);
  parallel_for(samples * across, 1, ceil_div(GRAIN, std::max<int64_t>(work, 1)), threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t p = begin; p < end; ++p) {
                   const int64_t e = p % across * BLOCK;
                   body(p / across, e, int(std::min<int64_t>(BLOCK, size - e)));
                 }
               });
}

// A NaN of the default kind for any NaN: narrowing to bf16 (common/lanes.h) needs its low bits
// clear.
template <class T, class A>
SUBLIMATE_HD Vector<A> narrowable(Vector<A> v) {
  if (!std::is_same_v<T, bfloat_t>) return v;
  return v == v ? v : Vector<A>{} + std::numeric_limits<A>::quiet_NaN();
}

// n <= LANES lanes.
template <class T>
SUBLIMATE_HD void put(T* out, Vector<arith_t<T>> v, int n) {
  const Vector<arith_t<T>> kept = narrowable<T, arith_t<T>>(v);
  if (n == LANES<arith_t<T>>) {
    store_lanes(out, kept);
  } else {
    store_some(out, kept, n);
  }
}
template <class T>
SUBLIMATE_HD Vector<arith_t<T>> get(const T* p, int n) {
  return n == LANES<arith_t<T>> ? load_lanes(p) : load_some(p, n);
}

// Writes n numbers, past the caches if `stream`; end_streaming() must follow. value(i, m) gives
// lanes i .. i + m, m <= LANES. Pairs of registers begin at a multiple of their size, whatever the
// address: the numbers before the first and after the last lie in pairs that overlap those.
template <class T, class Value>
SUBLIMATE_HD void write_run(T* out, int n, bool stream, const Value& value) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>, PAIR = 2 * L;
  const auto pair = [&](int i, bool past) __attribute__((always_inline)) {
    write_pair(out + i, narrowable<T, A>(value(i, L)), narrowable<T, A>(value(i + L, L)), past);
  };
  if (n < PAIR) {
    for (int i = 0; i < n; i += L) put(out + i, value(i, std::min(L, n - i)), std::min(L, n - i));
    return;
  }
  int i = 0;
  if (stream) {
    i = int(-reinterpret_cast<uintptr_t>(out) % 64 / sizeof(T));
    if (i > 0) pair(0, false);
    for (; i + PAIR <= n; i += PAIR) pair(i, true);
  } else {
    for (; i + PAIR <= n; i += PAIR) pair(i, false);
  }
  // Past the caches the rest must not touch a line that has left them.
  for (; stream && i < n; i += L) {
    put(out + i, value(i, std::min(L, n - i)), std::min(L, n - i));
  }
  if (i < n) pair(n - PAIR, false);
}

// Whether `bytes` of output are more than the caches keep for the model that reads them next.
// Below, an output written past them costs two to five times as much, and its reader waits too.
inline bool past_caches(int64_t bytes) {
  return bytes >= (int64_t(24) << 20) && worth_streaming(nullptr, bytes);
}

// Normal numbers of words first .. first + n, n <= BLOCK; `normal` has room for n + 64. A counter
// gives four words, so the run begins at a multiple of four and is moved into place. Counters are
// drawn in whole vectors.
template <class A>
void draw(const Noise& noise, int64_t first, int n, A* normal) {
  constexpr int GROUPS = BLOCK / 4 + 16;
  const uint64_t seed = uint64_t(*noise.seed), counter = uint64_t(first) >> 2;
  const float* table = noise.table;
  const int skip = int(first & 3), groups = (skip + n + 63) / 64 * 16;
  uint32_t words[4][GROUPS];
  float apart[4][GROUPS];
  for (int j = 0; j < groups; ++j) {
    const Philox4 r = philox_words(seed, counter + uint64_t(j), stream::gaussian);
    for (int w = 0; w < 4; ++w) words[w][j] = r.w[w];
  }
  // normal_of in three loops, with the table read number by number between two that vectorise:
  // gathers take more than twice as long in all (measured on a processor with AVX-512).
  uint32_t segment[GROUPS];
  float offset[GROUPS], start[GROUPS], slope[GROUPS];
  for (int w = 0; w < 4; ++w) {
    const uint32_t* word = words[w];
    for (int j = 0; j < groups; ++j) {
      const NormalPlace at = normal_place(word[j]);
      segment[j] = at.segment;
      offset[j] = at.offset;
    }
    for (int j = 0; j < groups; ++j) {
      start[j] = table[segment[j]];
      slope[j] = table[NORMAL_SEGMENTS + segment[j]];
      asm volatile("");  // keeps the compiler from gathers
    }
    for (int j = 0; j < groups; ++j) {
      apart[w][j] = normal_from(start[j], slope[j], offset[j], word[j]);
    }
  }
  A drawn[4 * GROUPS];
  for (int j = 0; j < groups; ++j) {
    drawn[4 * j] = A(apart[0][j]);
    drawn[4 * j + 1] = A(apart[1][j]);
    drawn[4 * j + 2] = A(apart[2][j]);
    drawn[4 * j + 3] = A(apart[3][j]);
  }
  std::copy_n(drawn + skip, n, normal);
}

// Numbers e .. e + n of point k of sample b, rows of `size`: start + alpha along, with noise if
// there is any. normal is scratch, with room for n + 64.
template <class T, class A>
void write_point(const Noise& noise, int64_t b, int64_t k, int64_t e, int n, A alpha,
                 const A* start, const A* along, A* normal, T* out, bool stream) {
  if (noise.stdev) {
    const A stdev = static_cast<const A*>(noise.stdev)[b];
    draw(noise, noise.row[b] + k * noise.step + e, n, normal);
    write_run(out, n, stream, [=](int i, int m) __attribute__((always_inline)) {
      return get(start + i, m) + alpha * load_lanes(along + i) + stdev * load_lanes(normal + i);
    });
  } else {
    write_run(out, n, stream, [=](int i, int m) __attribute__((always_inline)) {
      return get(start + i, m) + alpha * load_lanes(along + i);
    });
  }
}

}  // namespace
}  // namespace sublimate::path_integral::SUBLIMATE_ISA
