// What the CPU sources of this family share: vectors, register tiles and packed key sets. Compiled
// once per instruction-set level (common/isa.h): everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/ceil_div.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "kronecker_attention/kernels.h"
#include "kronecker_attention/kronecker_attention_math.h"

SUBLIMATE_DECLARE_KRONECKER_ATTENTION(SUBLIMATE_ISA)

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

// Rows of a register tile of two vectors: accumulators, two columns and a broadcast element fit the
// 32 registers of AVX-512 and the 16 of the others.
#if defined(__AVX512F__)
constexpr int ROWS = 8;
#else
constexpr int ROWS = 6;
#endif

// Queries (or keys, in the polynomial's factors) of a block: two vectors of them.
template <class A>
constexpr int BLOCK = 2 * LANES<A>;

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ------------------------------------------------------------------------------ vectors

typedef uint64_t LongLanes __attribute__((vector_size(tile::BYTES)));

template <class A>
SUBLIMATE_HD Vector<A> splat(A x) {
  return tile::broadcast<A>(x);
}
// Lane by lane max(bound, x), keeping a NaN of x.
template <class A>
SUBLIMATE_HD Vector<A> at_least(Vector<A> x, A bound) {
  return tile::larger<A>(splat(bound), x);
}

// 2^x for x below 2^7 (fp32) or 2^10 (fp64), exactly 0 below -127 (-1023): a key that is not read
// has a logit of -inf, and no weight at all. NaN stays. fp32: relative error 1.2e-7 (a fit of
// degree 5: 9.3e-8). fp64: Taylor to degree 13, 4e-18.
SUBLIMATE_HD Vector<float> power_of_two(Vector<float> x) {
  constexpr float c[] = {1.0f, 0.693147f, 0.24022247f, 0.05550711f, 0.009671294f, 0.0013269406f};
#if defined(__AVX512F__)
  // Unlike the shifted exponent below, that of scalef makes subnormals: those are masked out.
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
#else
  x = at_least<float>(x, -127.0f);
#endif
  // Rounded by the adder: 1.5 * 2^23 leaves the integer in the low mantissa bits.
  const Vector<float> shifted = x + splat(12582912.0f);
  const Vector<float> whole = shifted - splat(12582912.0f);
  const Vector<float> f = x - whole;
  Vector<float> p = splat(c[5]);
#pragma GCC unroll 8
  for (int i = 4; i >= 0; --i) p = p * f + splat(c[i]);
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(counts, p, whole);
#else
  return p * Vector<float>((WordLanes(shifted) + 127u) << 23);
#endif
}
SUBLIMATE_HD Vector<double> power_of_two(Vector<double> x) {
  x = at_least<double>(x, -1023.0);
  const Vector<double> shifted = x + splat(6755399441055744.0);  // 1.5 * 2^52
  const Vector<double> f = (x - (shifted - splat(6755399441055744.0))) * splat(LN_2);
  // 1 + f + f^2 / 2 + ... to f^13 / 13!
  Vector<double> p = splat(1.0);
#pragma GCC unroll 16
  for (int i = 13; i >= 1; --i) p = p * (f * splat(1.0 / i)) + splat(1.0);
  return p * Vector<double>((LongLanes(shifted) + 1023u) << 52);
}

// Sum of the lanes, by halves.
template <class A>
SUBLIMATE_HD A sum_lanes(Vector<A> x) {
  alignas(64) A v[LANES<A>];
  tile::store(v, x);
#pragma GCC unroll 8
  for (int half = LANES<A> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
}

// 0, 1, ... of the first or second vector of a block.
template <class A>
SUBLIMATE_HD Vector<A> lane_numbers(int half) {
  Vector<A> x{};
#pragma GCC unroll 16
  for (int l = 0; l < LANES<A>; ++l) x[l] = A(half * LANES<A> + l);
  return x;
}

// x where lane numbers lie in the interval, `other` elsewhere (not multiplied: x may be NaN there).
template <class A>
SUBLIMATE_HD Vector<A> inside(Interval lanes, int half, Vector<A> x, Vector<A> other) {
  const Vector<A> at = lane_numbers<A>(half);
  const auto in = (at >= splat(A(lanes.begin))) & (at < splat(A(lanes.end)));
  return in ? x : other;
}

// ------------------------------------------------------------------------------ register tiles

// As tile::Tile, with the number of vectors a row has free too.
template <class A, int rows, int vectors = 2>
struct Panel {
  Vector<A> sum[rows][vectors];

  SUBLIMATE_HD void fill(const Vector<A>* x) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = x[v];
  }
  SUBLIMATE_HD void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = Vector<A>{};
  }
  SUBLIMATE_HD void read(const A* p, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = tile::load(p + r * stride + v * LANES<A>);
  }
  SUBLIMATE_HD void write(A* p, int64_t stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) tile::store(p + r * stride + v * LANES<A>, sum[r][v]);
  }
  // Adds what the panel holds to memory: a product that began at 0 is summed before it meets a long
  // sum, so that few roundings follow one another.
  SUBLIMATE_HD void add_to(A* p, int64_t stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        A* const at = p + r * stride + v * LANES<A>;
        tile::store(at, tile::load(at) + sum[r][v]);
      }
  }
  // Adds a b: element (r, p) of a is a[r * a_row + p * a_step], row p of b is at b + p * b_step.
  SUBLIMATE_HD void add(const A* a, int64_t a_row, int64_t a_step, const A* b, int64_t b_step,
                        int64_t inner) {
    for (int64_t p = 0; p < inner; ++p) {
      Vector<A> column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = tile::load(b + p * b_step + v * LANES<A>);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const A x = a[r * a_row + p * a_step];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] += x * column[v];
      }
    }
  }
};

template <int n>
using Rows = std::integral_constant<int, n>;

// Calls body(first row, Rows<count>) over [0, n): whole tiles, then what is left by powers of two.
template <class Body>
SUBLIMATE_HD void each_rows(int64_t n, const Body& body) {
  int64_t r = 0;
  for (; r + ROWS <= n; r += ROWS) body(r, Rows<ROWS>());
  if ((n - r) & 4) {
    body(r, Rows<4>());
    r += 4;
  }
  if ((n - r) & 2) {
    body(r, Rows<2>());
    r += 2;
  }
  if ((n - r) & 1) body(r, Rows<1>());
}

// c [rows, BLOCK] += a b over `inner`; a as in Panel::add, b [inner, BLOCK].
template <class A>
void add_product(int64_t rows, const A* a, int64_t a_row, int64_t a_step, const A* b, int64_t inner,
                 A* c) {
  each_rows(rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
    Panel<A, decltype(count)::value> t;
    t.clear();
    t.add(a + r * a_row, a_row, a_step, b, BLOCK<A>, inner);
    t.add_to(c + r * BLOCK<A>, BLOCK<A>);
  });
}

// The same where row p of b counts in the lanes of its interval only: elsewhere b is 0 and a may be
// infinite or NaN.
template <class A>
void add_product_inside(int64_t rows, const A* a, int64_t a_row, int64_t a_step, const A* b,
                        int64_t inner, const Interval* lanes, A* c) {
  for (int64_t p = 0; p < inner; ++p) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int half = 0; half < 2; ++half) {
        const int64_t at = half * LANES<A>;
        const Vector<A> x = a[r * a_row + p * a_step] * tile::load(b + p * BLOCK<A> + at);
        A* to = c + r * BLOCK<A> + at;
        tile::store(to, tile::load(to) + inside<A>(lanes[p], half, x, Vector<A>{}));
      }
    }
  }
}

// c [rows, width] += a b over `inner`, where rows of b and c are `width` apart, a multiple of
// LANES.
template <class A>
void add_outer(int64_t rows, const A* a, int64_t a_row, int64_t a_step, const A* b, int64_t inner,
               A* c, int64_t width) {
  each_rows(rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
    int64_t at = 0;
    for (; at + BLOCK<A> <= width; at += BLOCK<A>) {
      Panel<A, R> t;
      t.clear();
      t.add(a + r * a_row, a_row, a_step, b + at, width, inner);
      t.add_to(c + r * width + at, width);
    }
    if (at < width) {
      Panel<A, R, 1> t;
      t.clear();
      t.add(a + r * a_row, a_row, a_step, b + at, width, inner);
      t.add_to(c + r * width + at, width);
    }
  });
}

// ------------------------------------------------------------------------------ packing

template <class T>
const T* row_of(const Operand& o, int64_t b, int64_t h, int64_t i) {
  return reinterpret_cast<const T*>(o.address) + b * o.batch + h * o.head + i * o.row;
}
template <class T>
T* row_to(const Operand& o, int64_t b, int64_t h, int64_t i) {
  return reinterpret_cast<T*>(o.address) + b * o.batch + h * o.head + i * o.row;
}

// n elements to the arithmetic type, times scale.
template <class T>
void load_row(const T* from, int64_t n, arith_t<T> scale, arith_t<T>* to) {
  for (int64_t c = 0; c < n; ++c) to[c] = scale * load_value(from[c]);
}
template <class T>
void store_row(const arith_t<T>* from, int64_t n, arith_t<T> scale, T* to) {
  for (int64_t c = 0; c < n; ++c) to[c] = store_value<T>(scale * from[c]);
}

// Rows [first, first + BLOCK) of one head as columns, [channels, BLOCK]; past the end, 0.
template <class T>
void load_columns(const Operand& o, int64_t b, int64_t h, int64_t first, int64_t channels,
                  arith_t<T> scale, arith_t<T>* to) {
  using A = arith_t<T>;
  for (int64_t l = 0; l < BLOCK<A>; ++l) {
    if (first + l < o.length) {
      const T* from = row_of<T>(o, b, h, first + l);
      for (int64_t c = 0; c < channels; ++c) to[c * BLOCK<A> + l] = scale * load_value(from[c]);
    } else {
      for (int64_t c = 0; c < channels; ++c) to[c * BLOCK<A> + l] = A(0);
    }
  }
}
template <class T>
void store_columns(const arith_t<T>* from, const Operand& o, int64_t b, int64_t h, int64_t first,
                   int64_t channels, arith_t<T> scale) {
  using A = arith_t<T>;
  const int64_t count = std::min<int64_t>(BLOCK<A>, o.length - first);
  for (int64_t l = 0; l < count; ++l) {
    T* to = row_to<T>(o, b, h, first + l);
    for (int64_t c = 0; c < channels; ++c) {
      to[c] = store_value<T>(scale * from[c * BLOCK<A> + l]);
    }
  }
}

// A flag that threads raise and nobody lowers.
struct Failure {
  bool raised = false;
  void raise() {
#pragma omp atomic write
    raised = true;
  }
};

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
