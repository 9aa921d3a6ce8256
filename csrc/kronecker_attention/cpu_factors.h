// The factors of a polynomial: sums over rows of features times values, and features times such
// sums. Features exist a few at a time, for the rows of one tile.
#pragma once

#include "kronecker_attention/cpu_monomials.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

constexpr int64_t SUMMED = 128;    // rows of a tile over which features are summed
constexpr int64_t FEW = 2 * ROWS;  // features at a time there
constexpr int64_t CHUNK = 48 * 4;  // features of one piece of work there
constexpr int64_t MANY = 48;       // features at a time where they are multiplied by sums
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
    r.tiles = r.width ? divide_up(length, r.width) : 0;
    return r;
  }
  int64_t x_size(int64_t channels) const { return tiles * width * (channels + 1); }
  int64_t values_size(int64_t wide) const { return tiles * width * wide; }
};

template <class T>
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
    load_row(row_of<T>(values, b, h, j), value_channels, A(1), r.values + j * wide);
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
      add_outer(n, phi, r.width, 1, values, rows, to.values + at * wide, wide);
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

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
