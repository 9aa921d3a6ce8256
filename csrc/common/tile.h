// Register tiles of a matrix product with a small inner size, where libraries are slow and whatever
// follows the product (a maximum, a sum, a random sign) is to happen in registers. One source for
// all instruction-set levels, in vector extensions; everything is inlined (common/isa.h).
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace sublimate::tile {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

// 12 accumulators, 2 columns and a broadcast row: 15 registers, so that 16 are enough.
constexpr int ROWS = 6;
template <class T>
constexpr int LANES = BYTES / int(sizeof(T));
template <class T>
constexpr int COLS = 2 * LANES<T>;  // fp32: 32, 16 or 8 by level

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
  // The same at any address, and allowed to alias elements.
  typedef T loose __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
SUBLIMATE_HD Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::loose*>(p);
}
template <class T>
SUBLIMATE_HD void store(T* p, Vector<T> x) {
  *reinterpret_cast<typename VectorOf<T>::loose*>(p) = x;
}

// sum[r][h] holds columns h * LANES .. of row r.
template <class T, int rows = ROWS>
struct Tile {
  Vector<T> sum[rows][2];

  SUBLIMATE_HD void clear() {
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = Vector<T>{};
  }

  // Adds a b, in the order of the inner index: element (r, p) of a is a[r * a_row + p * a_step];
  // row p of b is COLS consecutive elements from b + p * b_step.
  SUBLIMATE_HD void add(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step,
                        int64_t inner) {
    for (int64_t p = 0; p < inner; ++p) {
      const Vector<T> low = load(b + p * b_step), high = load(b + p * b_step + LANES<T>);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const T x = a[r * a_row + p * a_step];
        sum[r][0] += x * low;
        sum[r][1] += x * high;
      }
    }
  }
};

}  // namespace sublimate::tile
