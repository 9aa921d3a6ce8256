// Steps of the fast Walsh-Hadamard transform on registers. Every element passes its stages in the
// order of the bits of its index, lowest first, however the stages are grouped: results do not
// depend on the level, the blocking or the threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/ceil_div.h"
#include "common/hd.h"
#include "common/lanes.h"

namespace sublimate::randomized_linear {
namespace {

// Most stages that one pass over memory does: 2^RADIX registers and one to spare.
#if defined(__AVX512F__)
constexpr int RADIX = 4;
#else
constexpr int RADIX = 3;
#endif

// The stages of bits 0 .. log - 1 of the register's number.
template <int log, class V>
SUBLIMATE_HD void across_registers(V* v) {
  if constexpr (log > 0) {
    across_registers<log - 1>(v);
    across_registers<log - 1>(v + (1 << (log - 1)));
#pragma GCC unroll 16
    for (int i = 0; i < (1 << (log - 1)); ++i) {
      const V low = v[i], high = v[i + (1 << (log - 1))];
      v[i] = low + high;
      v[i + (1 << (log - 1))] = low - high;
    }
  }
}

// The stages within a register: bits 0 .. log - 1 of the lane's number. Low lanes become low +
// high, high lanes low - high: one permutation and one multiply-add by 1 or -1, which is exact.
template <int bit, class V, size_t... lane>
SUBLIMATE_HD V stage_of_lanes(V v, std::index_sequence<lane...>) {
  using E = std::remove_reference_t<decltype(v[0])>;
  const V partner = __builtin_shufflevector(v, v, int(lane ^ size_t(bit))...);
  const V sign = {(lane & size_t(bit) ? E(-1) : E(1))...};
  return partner + sign * v;
}
template <int log, class A>
SUBLIMATE_HD Vector<A> within_register(Vector<A> v) {
  if constexpr (log > 0) {
    v = within_register<log - 1, A>(v);
    v = stage_of_lanes<1 << (log - 1)>(v, std::make_index_sequence<size_t(LANES<A>)>());
  }
  return v;
}

// How many of the `left` stages the next pass takes, so that passes are few and even.
inline int stages_of_pass(int left) {
  if (left == 0) return 0;
  return int(ceil_div(left, ceil_div(left, RADIX)));
}

// Calls pass(integral constant of log) for log in 0 .. RADIX.
template <class Pass>
SUBLIMATE_HD void with_log(int log, const Pass& pass) {
  switch (log) {
    case 0:
      return pass(std::integral_constant<int, 0>());
    case 1:
      return pass(std::integral_constant<int, 1>());
    case 2:
      return pass(std::integral_constant<int, 2>());
    case 3:
      return pass(std::integral_constant<int, 3>());
    default:
      if constexpr (RADIX >= 4) return pass(std::integral_constant<int, 4>());
  }
}

// Memory that is read soon: each step brings a piece of it into the cache, so that the reads are
// spread evenly over the arithmetic in between.
struct Ahead {
  const char* at = nullptr;
  int64_t steps = 0;
  int64_t bytes = 0;   // of a piece
  int64_t stride = 0;  // to the next

  // `count` elements from x in at most `steps` steps, whole lines of the cache in each.
  template <class T>
  static Ahead spread(const T* x, int64_t count, int64_t steps) {
    if (count <= 0 || steps <= 0) return {};
    const int64_t all = count * int64_t(sizeof(T));
    const int64_t bytes = ceil_div(ceil_div(all, steps), 64) * 64;
    return {reinterpret_cast<const char*>(x), ceil_div(all, bytes), bytes, bytes};
  }
  // `columns` elements of each of some rows, a row in a step.
  template <class T>
  static Ahead rows(const T* x, int64_t count, int64_t columns, int64_t row_stride) {
    const int64_t size = sizeof(T);
    return {reinterpret_cast<const char*>(x), count, columns * size, row_stride * size};
  }
  SUBLIMATE_HD void step() {
    if (steps <= 0) return;
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(at + byte);
    at += stride;
    --steps;
  }
};

// Transforms a strip of 2^log_rows rows of one register each, in place, from stage `done` on.
template <class A>
void transform_strip(A* strip, int log_rows, int done, Ahead& ahead) {
  constexpr int L = LANES<A>;
  while (done < log_rows) {
    const int stages = stages_of_pass(log_rows - done);
    with_log(stages, [&](auto constant) {
      constexpr int log = constant.value;
      const int64_t step = int64_t(L) << done;
      for (int64_t high = 0; high < int64_t(1) << (log_rows - done - log); ++high) {
        A* group = strip + (high << log) * step;
        for (A* p = group; p < group + step; p += L) {
          ahead.step();
          Vector<A> v[1 << log];
#pragma GCC unroll 16
          for (int i = 0; i < (1 << log); ++i) v[i] = tile::load(p + i * step);
          across_registers<log>(v);
#pragma GCC unroll 16
          for (int i = 0; i < (1 << log); ++i) tile::store(p + i * step, v[i]);
        }
      }
    });
    done += stages;
  }
}

}  // namespace
}  // namespace sublimate::randomized_linear
