// Blocks of elements to and from the arithmetic type. Included by per-level sources only
// (common/isa.h): the loops vectorise with the level's instructions, and everything has internal
// linkage.
#pragma once

#include <cstdint>

#include "common/dtype.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace sublimate {
namespace {

// Elements handled between two passes over a stack buffer: 2 KiB of fp32, well inside L1.
constexpr int BLOCK = 512;

template <class T, class A>
inline void load_block(const T* source, A* target, int n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, half_t>) {
    int j = 0;
    for (; j + 16 <= n; j += 16) {
      const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + j));
      _mm512_storeu_ps(target + j, _mm512_cvtph_ps(h));
    }
    for (; j < n; ++j) target[j] = load_value(source[j]);
    return;
  }
#elif defined(__F16C__)
  if constexpr (std::is_same_v<T, half_t>) {
    int j = 0;
    for (; j + 8 <= n; j += 8) {
      const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j));
      _mm256_storeu_ps(target + j, _mm256_cvtph_ps(h));
    }
    for (; j < n; ++j) target[j] = load_value(source[j]);
    return;
  }
#endif
  for (int j = 0; j < n; ++j) target[j] = load_value(source[j]);
}

template <class T, class A>
inline void store_block(const A* source, T* target, int n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, half_t>) {
    int j = 0;
    for (; j + 16 <= n; j += 16) {
      const __m256i h = _mm512_cvtps_ph(_mm512_loadu_ps(source + j), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + j), h);
    }
    for (; j < n; ++j) target[j] = store_value<T>(source[j]);
    return;
  }
#elif defined(__F16C__)
  if constexpr (std::is_same_v<T, half_t>) {
    int j = 0;
    for (; j + 8 <= n; j += 8) {
      const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(source + j), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(target + j), h);
    }
    for (; j < n; ++j) target[j] = store_value<T>(source[j]);
    return;
  }
#endif
  for (int j = 0; j < n; ++j) target[j] = store_value<T>(source[j]);
}

// The same without a copy where the element type is the arithmetic type: returns where to read.
template <class T, class A>
inline const A* view_block(const T* source, A* buffer, int n) {
  if constexpr (std::is_same_v<T, A>) {
    return source;
  } else {
    load_block(source, buffer, n);
    return buffer;
  }
}

}  // namespace
}  // namespace sublimate
