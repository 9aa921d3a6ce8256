// Sums over pairs of keys, the heart of exact attention and of the polynomial under windows. A
// block of queries lies across two vectors. For one key j of the first set the queries are folded
// with it; then logits, their weights and the sum over the second set go through a tile of TILE
// keys that stays in L1, and what is summed is multiplied by the value of j once. Nothing of size
// N^2 is stored.
#pragma once

#include "kronecker_attention/cpu_keys.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

// What a logit weighs: e^x, of logits in powers of two.
template <class A>
struct Exponential {
  static constexpr bool exponential = true;
  static constexpr double unit = LOG2_E;
  SUBLIMATE_HD Vector<A> value(Vector<A> x) const { return power_of_two(x); }
};
// sum_j c_j x^j.
template <class A>
struct Power {
  static constexpr bool exponential = false;
  static constexpr double unit = 1;
  const A* c;
  int degree;
  SUBLIMATE_HD Vector<A> value(Vector<A> x) const {
    Vector<A> y = splat(c[degree]);
    for (int j = degree - 1; j >= 0; --j) y = y * x + splat(c[j]);
    return y;
  }
  SUBLIMATE_HD Vector<A> slope(Vector<A> x) const {
    Vector<A> y{};
    for (int j = degree; j >= 1; --j) y = y * x + splat(A(j) * c[j]);
    return y;
  }
};

constexpr int64_t TILE = 64;  // keys of the second set between two products

template <class A>
constexpr A INFINITE = std::numeric_limits<A>::infinity();

// State of one block of queries.
template <class A, class Weight>
struct Block {
  Weight weight;
  int64_t channels, value_channels;
  A *queries, *folded;  // [channels, BLOCK]
  A *sums, *weighted;   // [value_channels, BLOCK]: over all pairs; over the second set for one j
  A* tile;              // [TILE, BLOCK]
  Vector<A> maximum[2], limit[2];  // limit: -inf before the first logit, then STATIC_BOUND
  Vector<A> total[2], partial[2];  // sums of the exponentials, likewise

  static int64_t size(int64_t d, int64_t dv) { return (2 * d + 2 * dv + TILE) * BLOCK<A>; }
  Block(const Weight& w, A* memory, int64_t d, int64_t dv)
      : weight(w), channels(d), value_channels(dv) {
    queries = memory;
    folded = queries + d * BLOCK<A>;
    sums = folded + d * BLOCK<A>;
    weighted = sums + dv * BLOCK<A>;
    tile = weighted + dv * BLOCK<A>;
  }

  void begin() {
    std::fill_n(sums, value_channels * BLOCK<A>, A(0));
    for (int half = 0; half < 2; ++half) {
      maximum[half] = total[half] = Vector<A>{};
      limit[half] = splat(-INFINITE<A>);
    }
  }

  // Exponentials of `count` keys into the tile. `online` leaves logits there and their maximum in
  // top; `masked` keeps lanes of each key's interval only.
  template <bool online, bool masked>
  void score(const A* keys, int64_t count, const Vector<A>* start, const Interval* lanes,
             Vector<A>* top) {
    each_rows(count, [&](int64_t r, auto rows) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      Panel<A, R> t;
      t.fill(start);
      t.add(keys + r * channels, channels, 1, folded, BLOCK<A>, channels);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          Vector<A> x = t.sum[i][half];
          if constexpr (online) {
            x -= maximum[half];
            if (masked) x = inside<A>(lanes[r + i], half, x, splat(-INFINITE<A>));
            top[half] = tile::larger<A>(x, top[half]);
          } else {
            x = weight.value(x);
            if (masked) x = inside<A>(lanes[r + i], half, x, Vector<A>{});
            partial[half] += x;
          }
          tile::store(tile + (r + i) * BLOCK<A> + half * LANES<A>, x);
        }
      }
    });
  }

  // Logits of the tile to exponentials, under a maximum raised if need be.
  void exponentiate(int64_t count, const Vector<A>* top) {
    Vector<A> shift[2] = {};
    if (tile::above<A>(top[0], limit[0]) | tile::above<A>(top[1], limit[1])) raise(top, shift);
    for (int64_t r = 0; r < count; ++r) {
      for (int half = 0; half < 2; ++half) {
        A* at = tile + r * BLOCK<A> + half * LANES<A>;
        const Vector<A> x = power_of_two(tile::load(at) - shift[half]);
        partial[half] += x;
        tile::store(at, x);
      }
    }
  }

  __attribute__((noinline)) void raise(const Vector<A>* top, Vector<A>* shift) {
    for (int half = 0; half < 2; ++half) {
      const auto higher = top[half] > limit[half];
      shift[half] = higher ? top[half] : Vector<A>{};
      const auto first = limit[half] < splat(A(0));
      const Vector<A> factor = first ? splat(A(1)) : power_of_two(-shift[half]);
      maximum[half] += shift[half];
      limit[half] = higher ? splat(A(STATIC_BOUND)) : limit[half];
      total[half] *= factor;
      partial[half] *= factor;
      for (int64_t c = 0; c < value_channels; ++c) {
        A* at = sums + c * BLOCK<A> + half * LANES<A>;
        tile::store(at, tile::load(at) * factor);
        at = weighted + c * BLOCK<A> + half * LANES<A>;
        tile::store(at, tile::load(at) * factor);
      }
    }
  }

  // sums += value * weighted in the lanes that may read j.
  void fold_value(const A* value, Interval lanes) {
    const bool whole = lanes.begin == 0 && lanes.end == BLOCK<A>;
    for (int half = 0; half < 2; ++half) {
      total[half] += whole ? partial[half] : inside<A>(lanes, half, partial[half], Vector<A>{});
      for (int64_t c = 0; c < value_channels; ++c) {
        A* at = sums + c * BLOCK<A> + half * LANES<A>;
        const Vector<A> x = value[c] * tile::load(weighted + c * BLOCK<A> + half * LANES<A>);
        tile::store(at, tile::load(at) + (whole ? x : inside<A>(lanes, half, x, Vector<A>{})));
      }
    }
  }
};

template <class T, class Weight>
struct Pairs {
  using A = arith_t<T>;
  using Queries = Block<A, Weight>;
  const Shape& shape;
  Form form;
  const KeySet<T>&first, &second;

  // Whether the exponentials of the block's logits stay in range without a maximum.
  bool is_static(const Queries& block, const Keys<A>& k1, const Keys<A>& k2) const {
    A longest = 0;
    for (int64_t l = 0; l < BLOCK<A>; ++l) {
      A row[MAX_CHANNELS];
      for (int64_t c = 0; c < block.channels; ++c) row[c] = block.queries[c * BLOCK<A> + l];
      const A size = norm(row, block.channels, form);
      if (size > longest || size != size) longest = size;
    }
    if (form == Form::kronecker) return longest * k1.longest * k2.longest < A(STATIC_BOUND);
    const A keys = A(std::abs(shape.scale) * LOG2_E) * k1.longest * k2.longest;
    return longest * (k1.longest + k2.longest) + keys < A(STATIC_BOUND);
  }

  template <bool online>
  void run_pairs(Queries& block, const Keys<A>& k1, const Keys<A>& k2, int64_t i,
                 int64_t last) const {
    const int64_t d = block.channels, dv = block.value_channels;
    const Range js = k1.near(i, last), ks = k2.near(i, last);
    const Fold<A> fold{form, d, A(shape.scale * Weight::unit)};
    // Keys of the second set that stay in L2 while the first set passes.
    const int64_t chunk = std::max<int64_t>(1, 65536 / (d + dv) / TILE) * TILE;
    Interval lanes[TILE];
    for (int64_t begin = ks.begin; begin < ks.end; begin += chunk) {
      const int64_t end = std::min(ks.end, begin + chunk);
      for (int64_t j = js.begin; j < js.end; ++j) {
        const Interval at_j = k1.readers_of(j, i, BLOCK<A>);
        const bool whole_j = at_j.begin == 0 && at_j.end == BLOCK<A>;
        Vector<A> start[2], top[2];
        fold.run(block.queries, k1.keys + j * d, block.folded, start);
        std::fill_n(block.weighted, dv * BLOCK<A>, A(0));
        block.partial[0] = block.partial[1] = Vector<A>{};
        for (int64_t k = begin; k < end; k += TILE) {
          const int64_t count = std::min(TILE, end - k);
          bool whole = whole_j;
          if (k2.bounded) {
            for (int64_t t = 0; t < count; ++t) {
              lanes[t] = both(at_j, k2.readers_of(k + t, i, BLOCK<A>));
              whole &= lanes[t].begin == 0 && lanes[t].end == BLOCK<A>;
            }
          } else if (!whole) {
            std::fill_n(lanes, count, at_j);
          }
          top[0] = top[1] = splat(-INFINITE<A>);
          if (whole) {
            block.template score<online, false>(k2.keys + k * d, count, start, lanes, top);
          } else {
            block.template score<online, true>(k2.keys + k * d, count, start, lanes, top);
          }
          if (online) block.exponentiate(count, top);
          if (whole || k2.finite) {
            add_product(dv, k2.values + k * dv, 1, dv, block.tile, count, block.weighted);
          } else {
            add_product_inside(dv, k2.values + k * dv, 1, dv, block.tile, count, lanes,
                               block.weighted);
          }
        }
        block.fold_value(k1.values + j * dv, at_j);
      }
    }
  }

  // Sums of queries i, i + 1, ... of one head in `block`.
  void run_block(Queries& block, const Operand& q, int64_t b, int64_t h, int64_t i) const {
    const int64_t last = std::min(q.length, i + BLOCK<A>) - 1;
    const int64_t kv = h / (shape.heads / shape.kv_heads);
    const Keys<A> k1 = first.at(b, kv), k2 = second.at(b, kv);
    load_columns<T>(q, b, h, i, block.channels, A(shape.scale * Weight::unit), block.queries);
    block.begin();
    if (!Weight::exponential || is_static(block, k1, k2)) {
      run_pairs<false>(block, k1, k2, i, last);
    } else {
      run_pairs<true>(block, k1, k2, i, last);
    }
  }
};

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
