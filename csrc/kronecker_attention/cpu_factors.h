// The factors of a polynomial: sums over rows of features times values, and features times such
// sums. Features exist a few at a time, for the rows of one tile.
#pragma once

#include "kronecker_attention/cpu_monomials.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

constexpr int64_t SUMMED = 128;       // rows of a tile over which features are summed
constexpr int64_t SUMMED_APART = 32;  // of which so many before they meet the sum of all rows
constexpr int64_t FEW = 2 * ROWS;     // features at a time there
constexpr int64_t CHUNK = 48 * 4;     // features of one piece of work there
constexpr int64_t MANY = 48;          // features at a time where they are multiplied by sums
template <class A>
constexpr int64_t ACROSS = 2 * BLOCK<A>;  // rows at a time there

// Elements of the sums of all heads that are worked on together.
constexpr int64_t TOGETHER = int64_t(1) << 22;

// Rows [first, first + width) of a head as x_0 .. x_D, [D + 1, width]; 0 past the end and where the
// mask says so, in x_0 too.
template <class T>
void load_variables(const Operand& o, int64_t b, int64_t h, int64_t first, int64_t width,
                    int64_t channels, const uint8_t* mask, arith_t<T>* x) {
  using A = arith_t<T>;
  for (int64_t l = 0; l < width; ++l) {
    const bool counts = first + l < o.length && (!mask || mask[b * o.length + first + l]);
    x[l] = A(counts);
    if (counts) {
      const T* from = row_of<T>(o, b, h, first + l);
      for (int64_t c = 0; c < channels; ++c) x[(c + 1) * width + l] = load_value(from[c]);
    } else {
      for (int64_t c = 0; c < channels; ++c) x[(c + 1) * width + l] = A(0);
    }
  }
}

// One set of rows to sum over: keys with their values, or queries with gradients.
template <class A>
struct Summands {
  int64_t length = 0, width = 0, tiles = 0;  // width: rows of a tile
  A* x = nullptr;                            // [tiles, D + 1, width]
  A* values = nullptr;                       // [tiles * width, wide]
  A* extra = nullptr;  // [tiles * width] that stands where 1 stands beside values; null: 1

  static Summands of(int64_t length) {
    Summands r;
    r.length = length;
    r.width = std::min<int64_t>(SUMMED, round_up(length, LANES<A>));
    r.tiles = r.width ? ceil_div(length, r.width) : 0;
    return r;
  }
  int64_t x_size(int64_t channels) const { return tiles * width * (channels + 1); }
  int64_t values_size(int64_t wide) const { return tiles * width * wide; }
};

// T: elements of the rows, V: of their values.
template <class T, class V>
void pack_rows(const Summands<arith_t<T>>& r, const Operand& o, const Operand& values, int64_t b,
               int64_t h, int64_t channels, int64_t value_channels, int64_t wide,
               const uint8_t* mask) {
  using A = arith_t<T>;
  for (int64_t t = 0; t < r.tiles; ++t) {
    load_variables<T>(o, b, h, t * r.width, r.width, channels, mask,
                      r.x + t * r.width * (channels + 1));
  }
  std::fill_n(r.values, r.values_size(wide), A(0));
  for (int64_t j = 0; j < r.length; ++j) {
    if (mask && !mask[b * r.length + j]) continue;
    load_row(row_of<V>(values, b, h, j), value_channels, A(1), r.values + j * wide);
  }
}

// sums [r, wide] and ones [r]: features first .. first + count of all rows.
template <class A>
struct Sums {
  A *values, *ones;
};

template <class A>
int64_t sum_memory(int degree) {
  return Features<A>::memory(degree, SUMMED) + FEW * SUMMED;
}
template <class A>
void sum_features(const Place& place, const Summands<A>& r, int64_t channels, int64_t wide,
                  int64_t first, int64_t count, const Sums<A>& to, A* memory) {
  A* const phi = memory + Features<A>::memory(place.degree, SUMMED);
  std::fill_n(to.values + first * wide, count * wide, A(0));
  std::fill_n(to.ones + first, count, A(0));
  for (int64_t t = 0; t < r.tiles; ++t) {
    Features<A> features(place, r.x + t * r.width * (channels + 1), r.width, memory);
    features.seek(first);
    const A* values = r.values + t * r.width * wide;
    const int64_t rows = std::min(r.width, r.length - t * r.width);
    for (int64_t at = first; at < first + count; at += FEW) {
      const int64_t n = std::min(FEW, first + count - at);
      features.next(n, phi);
      for (int64_t l = 0; l < rows; l += SUMMED_APART) {
        add_outer(n, phi + l, r.width, 1, values + l * wide, std::min(SUMMED_APART, rows - l),
                  to.values + at * wide, wide);
      }
      for (int64_t i = 0; i < n; ++i) {
        Vector<A> sum{};
        for (int64_t l = 0; l < r.width; l += LANES<A>) {
          const Vector<A> f = tile::load(phi + i * r.width + l);
          sum += r.extra ? f * tile::load(r.extra + t * r.width + l) : f;
        }
        to.ones[at + i] += sum_lanes<A>(sum);
      }
    }
  }
}

// Features of ACROSS rows times weights: to [value_channels, ACROSS] = weights.values^T phi, and
// to_ones [ACROSS] = weights.ones^T phi.
template <class A>
int64_t apply_memory(int degree) {
  return Features<A>::memory(degree, ACROSS<A>) + MANY * ACROSS<A>;
}
template <class A>
void apply_features(const Place& place, const A* x, int64_t value_channels, int64_t wide,
                    const Sums<A>& weights, A* to, A* to_ones, A* memory) {
  A* const phi = memory + Features<A>::memory(place.degree, ACROSS<A>);
  std::fill_n(to, value_channels * ACROSS<A>, A(0));
  std::fill_n(to_ones, ACROSS<A>, A(0));
  Features<A> features(place, x, ACROSS<A>, memory);
  features.seek(0);
  const int64_t count = place.count();
  for (int64_t at = 0; at < count; at += MANY) {
    const int64_t n = std::min(MANY, count - at);
    features.next(n, phi);
    add_outer(value_channels, weights.values + at * wide, 1, wide, phi, n, to, ACROSS<A>);
    add_outer<A>(1, weights.ones + at, 0, 1, phi, n, to_ones, ACROSS<A>);
  }
}

// Gradients of ACROSS rows: dx [D + 1, ACROSS] from those of the features, which are weights.values
// columns + weights.ones extra; columns [value_channels, ACROSS], extra [ACROSS].
template <class A>
int64_t gradient_memory(int degree) {
  return FeatureGradients<A>::memory(degree, ACROSS<A>) + MANY * ACROSS<A>;
}
template <class A>
void feature_gradients(const Place& place, const A* x, int64_t value_channels, int64_t wide,
                       int64_t channels, const Sums<A>& weights, const A* columns, const A* extra,
                       A* dx, A* memory) {
  A* const dphi = memory + FeatureGradients<A>::memory(place.degree, ACROSS<A>);
  std::fill_n(dx, (channels + 1) * ACROSS<A>, A(0));
  FeatureGradients<A> features(place, x, ACROSS<A>, dx, memory);
  features.seek(0);
  const int64_t count = place.count();
  for (int64_t at = 0; at < count; at += MANY) {
    const int64_t n = std::min(MANY, count - at);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t l = 0; l < ACROSS<A>; l += LANES<A>) {
        tile::store(dphi + i * ACROSS<A> + l, weights.ones[at + i] * tile::load(extra + l));
      }
    }
    add_outer(n, weights.values + at * wide, wide, 1, columns, value_channels, dphi, ACROSS<A>);
    features.next(n, dphi);
  }
}

// What forward and backward derive from a problem (Polynomial or PolynomialBackward).
template <class T, class P>
struct Plan {
  using A = arith_t<T>;
  const P& p;
  const Shape& s = p.shape;
  const Operand *queries = p.operands, *keys = queries + 1, *values = keys + p.sets;
  const Place place{s.channels, p.degree};
  const int64_t d = s.channels, dv = s.value_channels;
  const int64_t r = place.count(), wide = round_up(dv, LANES<A>);
  const int64_t n = queries[0].length, group = s.heads / s.kv_heads, heads = s.batch * s.kv_heads;
  const int64_t chunks = ceil_div(r, CHUNK);
  const int64_t sums_size = r * wide + round_up(r, 16);
  const Scratch<A> weight{r};
  const Scratch<uint8_t> degree{r};
  Summands<A> summands[MAX_SETS];
  int64_t packed = 0;  // elements of all sets' summands

  explicit Plan(const P& problem) : p(problem) {
    if (!good()) return;
    monomial_weights(place, s.scale, 0, r, weight.get(), degree.get());
    for (int m = 0; m < p.sets; ++m) {
      summands[m] = Summands<A>::of(keys[m].length);
      packed += summands[m].x_size(d) + summands[m].values_size(wide);
    }
  }
  bool good() const { return weight.get() && degree.get(); }

  const uint8_t* mask(int m) const {
    return p.masks ? reinterpret_cast<const uint8_t*>(p.masks[m]) : nullptr;
  }
  const A* coefficients(int64_t query_head) const {
    return static_cast<const A*>(p.coefficients) + query_head * (p.degree + 1);
  }
  // Sums number `which` of those from `memory` on.
  Sums<A> sums(A* memory, int64_t which) const {
    A* const at = memory + which * sums_size;
    return {at, at + r * wide};
  }
  // Key set m of the head packed at `memory`.
  Summands<A> set(A* memory, int m) const {
    Summands<A> found = summands[m];
    for (int i = 0; i < m; ++i) memory += summands[i].x_size(d) + summands[i].values_size(wide);
    found.x = memory;
    found.values = memory + found.x_size(d);
    return found;
  }
  void pack(A* memory, int m, int64_t head) const {
    pack_rows<T, T>(set(memory, m), keys[m], values[m], head / s.kv_heads, head % s.kv_heads, d, dv,
                    wide, mask(m));
  }
};

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
