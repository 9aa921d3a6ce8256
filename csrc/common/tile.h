// Register tiles of a matrix product with a small inner size, where libraries are slow and whatever
// follows the product (a maximum, a sum, a random sign) is to happen in registers. One source for
// all instruction-set levels, in vector extensions; everything is inlined (common/isa.h).
#pragma once

#include <cstdint>

#include "common/hd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

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

// ------------------------------------------------------------------------------ lanes

template <class T>
SUBLIMATE_HD Vector<T> broadcast(T x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return Vector<T>(_mm512_set1_ps(x));
  if constexpr (sizeof(T) == 8) return Vector<T>(_mm512_set1_pd(x));
#endif
  return Vector<T>{} + x;
}

// Bit l is set if lane l of a is greater than lane l of b; NaN is not.
template <class T>
SUBLIMATE_HD unsigned above(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_GT_OQ);
  if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask(__m512d(a), __m512d(b), _CMP_GT_OQ);
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4)
    return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_GT_OQ)));
  if constexpr (sizeof(T) == 8)
    return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), __m256d(b), _CMP_GT_OQ)));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4)
    return unsigned(_mm_movemask_ps(_mm_cmpgt_ps(__m128(a), __m128(b))));
  if constexpr (sizeof(T) == 8)
    return unsigned(_mm_movemask_pd(_mm_cmpgt_pd(__m128d(a), __m128d(b))));
#endif
  unsigned bits = 0;
  for (int l = 0; l < LANES<T>; ++l) bits |= unsigned(a[l] > b[l]) << l;
  return bits;
}

// Lane by lane a > b ? a : b, so b where one is NaN.
template <class T>
SUBLIMATE_HD Vector<T> larger(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return Vector<T>(_mm512_max_ps(__m512(a), __m512(b)));
  if constexpr (sizeof(T) == 8) return Vector<T>(_mm512_max_pd(__m512d(a), __m512d(b)));
#endif
  return a > b ? a : b;
}

// ------------------------------------------------------------------------------ the tile

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
