// Gradients of sums over pairs, in one pass: five products over each triple. T_ij = sum_k dS_ijk
// k2_k serves dq and dk1, Y_jk = sum_i P_ijk dout_i serves dv1 and dv2; dk2 takes the transposed
// tile of dS times the folded queries.
//
// Work is cut into slices by shape alone, each with its own sums of the key gradients, which are
// added in order at the end: results do not depend on the number of threads.
#pragma once

#include "kronecker_attention/cpu_pairs.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

constexpr int64_t TILE_BACK = 48;  // keys of the second set between two products
// Sums of key gradients, over all heads; one a head if those are more.
constexpr int64_t SLICES = 16;
// Keys of the first set whose part of dq, dk2 and dv2 is summed apart before it meets that of all.
constexpr int64_t APART = 64;

// Gradients of one head's keys and values, rows padded to whole vectors in the second set.
template <class A>
struct KeyGradients {
  A *dk1, *dv1, *dk2, *dv2;
};

template <class A, class Weight>
struct BackwardBlock {
  Weight weight;
  int64_t d, dv, wide, value_wide;  // the latter two: rounded up to whole vectors
  A *queries, *grads;               // [d or dv, BLOCK]
  A *query_rows, *grad_rows;        // [BLOCK, wide]
  A *folded, *folded_grads;         // with key j: [d or dv, BLOCK]
  A* folded_rows;
  A *t, *dq;       // [d, BLOCK]
  A *p, *ds;       // [TILE_BACK, BLOCK]
  A *key, *value;  // row j, padded
  A* dvalue;       // gradient of `value`, likewise
  // Parts of APART keys of the first set: [d, BLOCK] and of a chunk of the second set.
  A *dq_part, *dk2_part, *dv2_part;
  Vector<A> lse[2], delta[2], sigma[2];

  // Keys of the second set, of `count`, that stay in L2 with their gradients while the first
  // passes.
  static int64_t chunk(int64_t d, int64_t dv, int64_t count) {
    const int64_t across = round_up(d, LANES<A>) + round_up(dv, LANES<A>);
    return std::min(std::max<int64_t>(1, 32768 / across / TILE_BACK), ceil_div(count, TILE_BACK)) *
           TILE_BACK;
  }
  static int64_t size(int64_t d, int64_t dv, int64_t count) {
    const int64_t wide = round_up(d, LANES<A>), value_wide = round_up(dv, LANES<A>);
    return BLOCK<A> * (5 * d + 2 * dv + 2 * wide + value_wide + 2 * TILE_BACK) +
           (1 + chunk(d, dv, count)) * (wide + value_wide) + value_wide;
  }
  BackwardBlock(const Weight& weigh, A* memory, int64_t channels, int64_t value_channels,
                int64_t count)
      : weight(weigh),
        d(channels),
        dv(value_channels),
        wide(round_up(d, LANES<A>)),
        value_wide(round_up(dv, LANES<A>)) {
    A* at = memory;
    const auto take = [&](int64_t count) {
      A* const found = at;
      at += count;
      return found;
    };
    constexpr int64_t I = BLOCK<A>;
    query_rows = take(I * wide);
    grad_rows = take(I * value_wide);
    folded_rows = take(I * wide);
    queries = take(I * d);
    folded = take(I * d);
    t = take(I * d);
    dq = take(I * d);
    grads = take(I * dv);
    folded_grads = take(I * dv);
    p = take(I * TILE_BACK);
    ds = take(I * TILE_BACK);
    key = take(wide);
    value = take(value_wide);
    dvalue = take(value_wide);
    dq_part = take(I * d);
    dk2_part = take(chunk(d, dv, count) * wide);
    dv2_part = take(chunk(d, dv, count) * value_wide);
  }

  void clear_parts(int64_t keys) {
    std::fill_n(dq_part, BLOCK<A> * d, A(0));
    std::fill_n(dk2_part, keys * wide, A(0));
    std::fill_n(dv2_part, keys * value_wide, A(0));
  }
  void add_parts(int64_t keys, A* dk2, A* dv2) {
    for (int64_t i = 0; i < BLOCK<A> * d; ++i) dq[i] += dq_part[i];
    for (int64_t i = 0; i < keys * wide; ++i) dk2[i] += dk2_part[i];
    for (int64_t i = 0; i < keys * value_wide; ++i) dv2[i] += dv2_part[i];
  }

  // P and dS of `count` keys into the tile; `masked` keeps lanes of each key's interval only.
  template <bool masked>
  void score(const A* keys, const A* values, int64_t count, const Vector<A>* start,
             const Interval* lanes) {
    const Vector<A> none[2] = {-delta[0], -delta[1]};
    each_rows(count, [&](int64_t r, auto rows) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      Panel<A, R> x;
      x.fill(start);
      x.add(keys + r * d, d, 1, folded, BLOCK<A>, d);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = (r + i) * BLOCK<A> + half * LANES<A>;
          Vector<A> logit = x.sum[i][half];
          // After the products, which would else all be rounded to the size of the LSE.
          if constexpr (Weight::exponential) logit -= lse[half];
          Vector<A> e = weight.value(logit);
          if (masked) e = inside<A>(lanes[r + i], half, e, Vector<A>{});
          tile::store(p + at, e);
          if constexpr (!Weight::exponential) tile::store(ds + at, weight.slope(logit));
        }
      }
      x.fill(none);
      x.add(values + r * dv, dv, 1, folded_grads, BLOCK<A>, dv);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = (r + i) * BLOCK<A> + half * LANES<A>;
          const A* slope = Weight::exponential ? p : ds;
          Vector<A> e = tile::load(slope + at) * x.sum[i][half];
          if (masked) e = inside<A>(lanes[r + i], half, e, Vector<A>{});
          sigma[half] += e;
          tile::store(ds + at, e);
        }
      }
    });
  }

  // Row-wise twins of the folded columns.
  void fold_rows(Form form, A scale) {
    for (int64_t l = 0; l < BLOCK<A>; ++l) {
      for (int64_t c = 0; c < wide; c += LANES<A>) {
        const Vector<A> q = tile::load(query_rows + l * wide + c), k = tile::load(key + c);
        tile::store(folded_rows + l * wide + c, form == Form::kronecker ? q * k : q + scale * k);
      }
    }
  }

  // dv2 and dvalue of `count` keys from Y, which stays in registers; `masked` leaves out keys that
  // no query reads, whose values may be infinite or NaN.
  template <bool masked>
  void pass_values(const A* values, int64_t count, const Interval* lanes, A* dv2) {
    each_rows(count, [&](int64_t r, auto rows) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      int64_t at = 0;
      for (; at + BLOCK<A> <= value_wide; at += BLOCK<A>) {
        pass_columns<R, 2, masked>(values, r, at, lanes, dv2);
      }
      if (at < value_wide) pass_columns<R, 1, masked>(values, r, at, lanes, dv2);
    });
  }
  template <int R, int V, bool masked>
  SUBLIMATE_HD void pass_columns(const A* values, int64_t r, int64_t at, const Interval* lanes,
                                 A* dv2) {
    Panel<A, R, V> y;
    y.clear();
    y.add(p + r * BLOCK<A>, BLOCK<A>, 1, grad_rows + at, value_wide, BLOCK<A>);
    Vector<A> first[V], sum[V] = {};
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) first[v] = tile::load(value + at + v * LANES<A>);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      if (masked && lanes[r + i].begin >= lanes[r + i].end) continue;
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const int64_t c = at + v * LANES<A>;
        A* const to = dv2 + (r + i) * value_wide + c;
        tile::store(to, tile::load(to) + first[v] * y.sum[i][v]);
        sum[v] += tile::load(values + (r + i) * dv + c) * y.sum[i][v];
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      A* const to = dvalue + at + v * LANES<A>;
      tile::store(to, tile::load(to) + sum[v]);
    }
  }

  // What T, the sum of dS and dvalue give to dq_part, dk1 and dv1.
  void finish_key(Form form, A scale, A* dk1, A* dv1) {
    for (int64_t c = 0; c < d; ++c) {
      Vector<A> sum{};
      for (int half = 0; half < 2; ++half) {
        const int64_t at = c * BLOCK<A> + half * LANES<A>;
        const Vector<A> q = tile::load(queries + at), x = tile::load(t + at);
        if (form == Form::kronecker) {
          tile::store(dq_part + at, tile::load(dq_part + at) + key[c] * x);
          sum += q * x;
        } else {
          tile::store(dq_part + at, tile::load(dq_part + at) + x + key[c] * sigma[half]);
          sum += scale * x + q * sigma[half];
        }
      }
      dk1[c] += sum_lanes<A>(sum);
    }
    for (int64_t c = 0; c < dv; ++c) dv1[c] += dvalue[c];
  }
};

template <class T, class Weight>
struct PairsBackward {
  using A = arith_t<T>;
  using Queries = BackwardBlock<A, Weight>;
  const Shape& shape;
  Form form;
  const KeySet<T>&first, &second;

  // G: elements of dout. lse is null where weights are not exponentials.
  template <class G>
  void load(Queries& block, const Operand& q, const Operand& dout, const A* lse_rows,
            const A* delta_rows, A sign, int64_t b, int64_t h, int64_t i) const {
    const int64_t n = q.length;
    load_columns<T>(q, b, h, i, block.d, A(shape.scale * Weight::unit), block.queries);
    load_columns<G>(dout, b, h, i, block.dv, A(1), block.grads);
    std::fill_n(block.query_rows, BLOCK<A> * block.wide, A(0));
    std::fill_n(block.grad_rows, BLOCK<A> * block.value_wide, A(0));
    std::fill_n(block.dq, BLOCK<A> * block.d, A(0));
    const int64_t at = (b * shape.heads + h) * n + i;
    for (int64_t l = 0; l < BLOCK<A>; ++l) {
      A lse = Weight::exponential ? A(INFINITY) : A(0), delta = 0;
      if (i + l < n) {
        for (int64_t c = 0; c < block.d; ++c) {
          block.query_rows[l * block.wide + c] = block.queries[c * BLOCK<A> + l];
        }
        for (int64_t c = 0; c < block.dv; ++c) {
          block.grad_rows[l * block.value_wide + c] = block.grads[c * BLOCK<A> + l];
        }
        if (Weight::exponential) lse = A(LOG2_E) * lse_rows[at + l];
        delta = sign * delta_rows[at + l];
        if (lse == -INFINITY) lse = INFINITY;  // a row without keys: P = 0
      }
      block.lse[l / LANES<A>][l % LANES<A>] = lse;
      block.delta[l / LANES<A>][l % LANES<A>] = delta;
    }
  }

  void run_block(Queries& block, const Keys<A>& k1, const Keys<A>& k2, const KeyGradients<A>& to,
                 int64_t i, int64_t last) const {
    const int64_t d = block.d, dv = block.dv;
    const A scale = A(shape.scale * Weight::unit);
    const Range js = k1.near(i, last), ks = k2.near(i, last);
    const Fold<A> fold{form, d, scale};
    const int64_t chunk = Queries::chunk(d, dv, k2.count);
    Interval lanes[TILE_BACK];
    for (int64_t begin = ks.begin; begin < ks.end; begin += chunk) {
      const int64_t end = std::min(ks.end, begin + chunk);
      block.clear_parts(end - begin);
      for (int64_t j = js.begin; j < js.end; ++j) {
        const Interval at_j = k1.readers_of(j, i, BLOCK<A>);
        const bool whole_j = at_j.begin == 0 && at_j.end == BLOCK<A>;
        std::copy_n(k1.keys + j * d, d, block.key);
        std::copy_n(k1.values + j * dv, dv, block.value);
        Vector<A> start[2];
        fold.run(block.queries, block.key, block.folded, start);
        for (int64_t c = 0; c < dv; ++c) {
          for (int half = 0; half < 2; ++half) {
            const int64_t at = c * BLOCK<A> + half * LANES<A>;
            tile::store(block.folded_grads + at, block.value[c] * tile::load(block.grads + at));
          }
        }
        block.fold_rows(form, scale);
        std::fill_n(block.t, d * BLOCK<A>, A(0));
        std::fill_n(block.dvalue, block.value_wide, A(0));
        block.sigma[0] = block.sigma[1] = Vector<A>{};
        for (int64_t k = begin; k < end; k += TILE_BACK) {
          const int64_t count = std::min(TILE_BACK, end - k);
          bool whole = whole_j;
          if (k2.bounded) {
            for (int64_t t = 0; t < count; ++t) {
              lanes[t] = both(at_j, k2.readers_of(k + t, i, BLOCK<A>));
              whole &= lanes[t].begin == 0 && lanes[t].end == BLOCK<A>;
            }
          } else if (!whole) {
            std::fill_n(lanes, count, at_j);
          }
          const A *keys = k2.keys + k * d, *values = k2.values + k * dv;
          if (whole) {
            block.template score<false>(keys, values, count, start, lanes);
          } else {
            block.template score<true>(keys, values, count, start, lanes);
          }
          A* const dv2 = block.dv2_part + (k - begin) * block.value_wide;
          if (whole || (k1.finite && k2.finite)) {
            add_product(d, keys, 1, d, block.ds, count, block.t);
            block.template pass_values<false>(values, count, lanes, dv2);
          } else {
            add_product_inside(d, keys, 1, d, block.ds, count, lanes, block.t);
            block.template pass_values<true>(values, count, lanes, dv2);
          }
          add_outer(count, block.ds, BLOCK<A>, 1, block.folded_rows, BLOCK<A>,
                    block.dk2_part + (k - begin) * block.wide, block.wide);
        }
        block.finish_key(form, scale, to.dk1 + j * d, to.dv1 + j * dv);
        if ((j - js.begin) % APART == APART - 1 || j + 1 == js.end) {
          block.add_parts(end - begin, to.dk2 + begin * block.wide,
                          to.dv2 + begin * block.value_wide);
          block.clear_parts(end - begin);
        }
      }
    }
  }
};

// Adds the slices of one head in order and writes them where their keys came from.
template <class T>
void store_gradients(const arith_t<T>* sums, int64_t slices, int64_t slice_size, int64_t channels,
                     int64_t width, arith_t<T> scale, const int64_t* position, int64_t count,
                     const Operand& to, int64_t b, int64_t h) {
  using A = arith_t<T>;
  A row[MAX_CHANNELS];
  std::fill_n(row, MAX_CHANNELS, A(0));
  for (int64_t j = 0, next = 0; j < to.length; ++j) {
    const bool present = next < count && position[next] == j;
    std::fill_n(row, channels, A(0));
    for (int64_t s = 0; present && s < slices; ++s) {
      const A* from = sums + s * slice_size + next * width;
      for (int64_t c = 0; c < channels; ++c) row[c] += from[c];
    }
    next += present;
    store_row(row, channels, scale, row_to<T>(to, b, h, j));
  }
}

// Gradients of all operands. operands: q, k1, k2, v1, v2; gradients: theirs. `load` fills a block
// for query head h of batch b from query i on.
template <class T, class Weight, class Load>
int pairs_backward(const Shape& s, Form form, const KeySet<T>& first, const KeySet<T>& second,
                   const Operand* o, const Operand* gradients, int threads, const Load& load) {
  using A = arith_t<T>;
  const int64_t n = o[0].length, m1 = o[1].length, m2 = o[2].length, d = s.channels;
  const int64_t dv = s.value_channels, heads = s.batch * s.kv_heads;
  const int64_t group = s.heads / s.kv_heads, blocks = ceil_div(n, BLOCK<A>);
  const int64_t units = group * blocks;
  const int64_t slices = std::max<int64_t>(1, std::min(units, ceil_div(SLICES, heads)));
  const int64_t wide = round_up(d, LANES<A>), value_wide = round_up(dv, LANES<A>);
  const int64_t size1 = round_up(m1 * (d + dv), 16);
  const int64_t slice_size = size1 + m2 * (wide + value_wide);
  const Scratch<A> sums(heads * slices * slice_size + 1);
  if (!sums.get()) return kOutOfMemory;
  Failure failure;
  parallel_for(heads * slices, 1, 1, threads, [&](int64_t begin, int64_t end) {
    using Queries = BackwardBlock<A, Weight>;
    const int64_t size = Queries::size(d, dv, m2);
    const Scratch<A> memory(size);
    if (!memory.get()) return failure.raise();
    std::fill_n(memory.get(), size, A(0));  // the padding is read
    Queries block({}, memory.get(), d, dv, m2);
    const PairsBackward<T, Weight> pairs{s, form, first, second};
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / slices, b = head / s.kv_heads, kv = head % s.kv_heads;
      A* const at = sums.get() + item * slice_size;
      std::fill_n(at, slice_size, A(0));
      const KeyGradients<A> to{at, at + m1 * d, at + size1, at + size1 + m2 * wide};
      const Keys<A> k1 = first.at(b, kv), k2 = second.at(b, kv);
      // Every slices-th block, so that under a causal mask slices cost alike.
      for (int64_t u = item % slices; u < units; u += slices) {
        const int64_t h = kv * group + u / blocks, i = u % blocks * BLOCK<A>;
        load(pairs, block, b, h, i);
        pairs.run_block(block, k1, k2, to, i, std::min(n, i + BLOCK<A>) - 1);
        store_columns<T>(block.dq, gradients[0], b, h, i, d, A(s.scale));
      }
    }
  });
  if (failure.raised) return kOutOfMemory;
  parallel_for(heads, 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const int64_t b = head / s.kv_heads, kv = head % s.kv_heads;
      const Keys<A> k1 = first.at(b, kv), k2 = second.at(b, kv);
      const A* at = sums.get() + head * slices * slice_size;
      const auto store = [&](const A* from, int64_t channels, int64_t width, A scale,
                             const Keys<A>& k, const Operand& to) {
        store_gradients<T>(from, slices, slice_size, channels, width, scale, k.position, k.count,
                           to, b, kv);
      };
      store(at, d, d, A(1 / Weight::unit), k1, gradients[1]);
      store(at + size1, d, wide, A(1 / Weight::unit), k2, gradients[2]);
      store(at + m1 * d, dv, dv, A(1), k1, gradients[3]);
      store(at + size1 + m2 * wide, dv, value_wide, A(1), k2, gradients[4]);
    }
  });
  return kOk;
}

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
