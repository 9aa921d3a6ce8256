// One register of consecutive elements as numbers of the arithmetic type (common/tile.h's vectors),
// and small tools around it. Included by per-level sources only; everything is inlined or has
// internal linkage (common/isa.h).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/scratch.h"
#include "common/tile.h"
#include "common/vec.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace sublimate {
namespace {

using tile::LANES;
using tile::Vector;

template <class T>
constexpr int lanes_of = LANES<arith_t<T>>;

typedef uint32_t WordLanes __attribute__((vector_size(tile::BYTES)));
typedef uint16_t HalfLanes __attribute__((vector_size(tile::BYTES / 2), aligned(2), may_alias));

SUBLIMATE_HD Vector<float> load_lanes(const float* p) { return tile::load(p); }
SUBLIMATE_HD Vector<double> load_lanes(const double* p) { return tile::load(p); }
SUBLIMATE_HD Vector<float> load_lanes(const bfloat_t* p) {
  const HalfLanes h = *reinterpret_cast<const HalfLanes*>(p);
  return Vector<float>(__builtin_convertvector(h, WordLanes) << 16);
}
SUBLIMATE_HD Vector<float> load_lanes(const half_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector<float> x;
  for (int i = 0; i < LANES<float>; ++i) x[i] = load_value(p[i]);
  return x;
#endif
}

SUBLIMATE_HD void store_lanes(float* p, Vector<float> x) { tile::store(p, x); }
SUBLIMATE_HD void store_lanes(double* p, Vector<double> x) { tile::store(p, x); }
SUBLIMATE_HD void store_lanes(bfloat_t* p, Vector<float> x) {
  // Nearest even in integers. A NaN of ours has its low 16 bits clear (it comes from bf16 operands
  // or is the default one), so that the bias cannot carry out of the mantissa.
  const WordLanes u = WordLanes(x);
  const WordLanes rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  *reinterpret_cast<HalfLanes*>(p) = __builtin_convertvector(rounded, HalfLanes);
}
SUBLIMATE_HD void store_lanes(half_t* p, Vector<float> x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < LANES<float>; ++i) p[i] = store_value<half_t>(float(x[i]));
#endif
}

// Two registers of consecutive elements, in whatever split is cheapest: for elementwise work, with
// results put back in their order by in_order.
template <class A>
struct LanePair {
  Vector<A> first, second;
};
template <class T>
SUBLIMATE_HD LanePair<arith_t<T>> load_lane_pair(const T* p) {
  return {load_lanes(p), load_lanes(p + lanes_of<T>)};
}
// bf16: even elements and odd ones, which are the halves of 32-bit lanes.
SUBLIMATE_HD LanePair<float> load_lane_pair(const bfloat_t* p) {
  typedef uint32_t Loose __attribute__((vector_size(tile::BYTES), aligned(2), may_alias));
  const WordLanes u = *reinterpret_cast<const Loose*>(p);
  return {Vector<float>(u << 16), Vector<float>(u & 0xffff0000u)};
}
// Numbers that were worked on in pairs of T, in the order of T's elements.
template <class T, class A>
SUBLIMATE_HD void in_order(A* pair) {
  if constexpr (std::is_same_v<T, bfloat_t>) {
    constexpr int L = LANES<A>;
    A mixed[2 * L];
    for (int i = 0; i < L; ++i) {
      mixed[2 * i] = pair[i];
      mixed[2 * i + 1] = pair[L + i];
    }
    for (int i = 0; i < 2 * L; ++i) pair[i] = mixed[i];
  }
}

// The first n lanes only, n < LANES; the others read as zero.
template <class T>
SUBLIMATE_HD Vector<arith_t<T>> load_some(const T* p, int n) {
  T padded[lanes_of<T>] = {};
  std::memcpy(padded, p, size_t(n) * sizeof(T));
  return load_lanes(padded);
}
template <class T>
SUBLIMATE_HD void store_some(T* p, Vector<arith_t<T>> x, int n) {
  T padded[lanes_of<T>];
  store_lanes(padded, x);
  std::memcpy(p, padded, size_t(n) * sizeof(T));
}

// Two registers to consecutive elements, past the caches if `stream` (common/vec.h says when that
// is worth while; end_streaming() must follow in the same thread).
#if defined(__AVX512F__)
template <class T>
SUBLIMATE_HD void write_pair(T* p, Vector<float> low, Vector<float> high, bool stream) {
  store32(p, Vec(low), Vec(high), stream);
}
SUBLIMATE_HD void write_pair(double* p, Vector<double> low, Vector<double> high, bool stream) {
  if (stream) {
    _mm512_stream_pd(p, low);
    _mm512_stream_pd(p + 8, high);
  } else {
    tile::store(p, low);
    tile::store(p + 8, high);
  }
}
SUBLIMATE_HD void end_streaming(bool stream) {
  if (stream) _mm_sfence();  // the writes must be seen by whoever waits for this thread
}
#else
SUBLIMATE_HD bool worth_streaming(const void*, int64_t) { return false; }
template <class T>
SUBLIMATE_HD void write_pair(T* p, Vector<arith_t<T>> low, Vector<arith_t<T>> high, bool) {
  store_lanes(p, low);
  store_lanes(p + lanes_of<T>, high);
}
SUBLIMATE_HD void end_streaming(bool) {}
#endif

}  // namespace
}  // namespace sublimate
