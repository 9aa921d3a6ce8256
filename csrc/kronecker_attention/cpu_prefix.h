// Polynomials under causality and windows. With every row i go the sums of each key set's features
// times values over the keys that i sees, S_m(i) [features, Dv + 1]; the row's answer is its own
// features times the product of the sets' sums. A few features at a time, rows pass in tiles.
//
// A window's sums are those of a chunk's keys up to the row, plus what the row still sees of the
// keys before the chunk, summed from the chunk backwards: nothing is ever subtracted, so nothing
// cancels and a NaN is gone when the window has passed. O(1 + window / SWEPT^2) additions a row.
//
// Features are shared out in slices by shape alone, with results of their own that are added in
// order: any number of threads gives the same bits.
#pragma once

#include <utility>

#include "kronecker_attention/cpu_factors.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

constexpr int64_t SWEPT = 32;         // rows of a tile, a multiple of every LANES
constexpr int AT_ONCE = 4;            // features that pass together
constexpr int64_t SLICES_IN_ALL = 8;  // of the features, over all heads
// Time of an addition to running sums by that of one to sums over pairs: 2.6 to 5 measured
// (AVX-512, two threads, D = 16 and 32, degrees 2 and 3, 256 and 1024 rows), least where the two
// are close.
constexpr double EXPENSE = 3.0;
#if defined(__AVX512F__)
constexpr int COLUMNS = 2;  // vectors whose running sums stay in registers
#else
constexpr int COLUMNS = 1;
#endif

// Calls body(first channel, Rows<vectors>) over the channels.
template <class A, class Body>
SUBLIMATE_HD void each_columns(int64_t wide, const Body& body) {
  int64_t c = 0;
  for (; c + COLUMNS * LANES<A> <= wide; c += COLUMNS * LANES<A>) body(c, Rows<COLUMNS>());
  for (; c < wide; c += LANES<A>) body(c, Rows<1>());
}

// ------------------------------------------------------------------------------ terms

// What row i adds to the sums of feature f: its feature times its values.
template <class A>
struct Products {
  const A* phi;  // [AT_ONCE, stride]
  int64_t stride;
  const A* values;  // [rows, wide]
  int64_t wide;
  SUBLIMATE_HD Vector<A> at(int64_t i, int f, int64_t c) const {
    return phi[f * stride + i] * tile::load(values + i * wide + c);
  }
};
// Terms in memory, [rows, AT_ONCE, wide], the last row first.
template <class A>
struct Backwards {
  const A* terms;
  int64_t last;  // row that counts as 0
  int64_t wide;
  SUBLIMATE_HD Vector<A> at(int64_t i, int f, int64_t c) const {
    return tile::load(terms + ((last - i) * AT_ONCE + f) * wide + c);
  }
};

// A block of sums in registers.
template <class A, int vectors>
struct Running {
  Vector<A> sum[AT_ONCE][vectors];

  SUBLIMATE_HD void clear() {
    each([](Vector<A>& s, int, int) { s = Vector<A>{}; });
  }
  template <class Terms>
  SUBLIMATE_HD void add(const Terms& terms, int64_t i, int64_t c) {
    each([&](Vector<A>& s, int f, int v)
             __attribute__((always_inline)) { s += terms.at(i, f, c + v * LANES<A>); });
  }
  // p [AT_ONCE, wide], from the block's first channel on.
  SUBLIMATE_HD void read(const A* p, int64_t wide) {
    each([&](Vector<A>& s, int f, int v)
             __attribute__((always_inline)) { s = tile::load(p + f * wide + v * LANES<A>); });
  }
  SUBLIMATE_HD void read_add(const A* p, int64_t wide) {
    each([&](Vector<A>& s, int f, int v)
             __attribute__((always_inline)) { s += tile::load(p + f * wide + v * LANES<A>); });
  }
  SUBLIMATE_HD void read_multiply(const A* p, int64_t wide) {
    each([&](Vector<A>& s, int f, int v)
             __attribute__((always_inline)) { s *= tile::load(p + f * wide + v * LANES<A>); });
  }
  SUBLIMATE_HD void write(A* p, int64_t wide) {
    each([&](Vector<A>& s, int f, int v)
             __attribute__((always_inline)) { tile::store(p + f * wide + v * LANES<A>, s); });
  }

 private:
  template <class Body>
  SUBLIMATE_HD void each(const Body& body) {
#pragma GCC unroll 8
    for (int f = 0; f < AT_ONCE; ++f)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) body(sum[f][v], f, v);
  }
};

// sum [AT_ONCE, wide] += terms of rows begin .. end.
template <class A, class Terms>
void add_terms(const Terms& terms, int64_t begin, int64_t end, int64_t wide, A* sum) {
  each_columns<A>(wide, [&](int64_t c, auto vectors) __attribute__((always_inline)) {
    Running<A, decltype(vectors)::value> r;
    r.read(sum + c, wide);
    for (int64_t i = begin; i < end; ++i) r.add(terms, i, c);
    r.write(sum + c, wide);
  });
}

// to [SWEPT, AT_ONCE, wide]: for row first + a the terms of all rows up to it; `carry` holds those
// before the tile and moves on. The tile's own terms are summed apart: n / SWEPT + SWEPT roundings
// follow one another, not n.
template <class A, class Terms>
void prefix_tile(const Terms& terms, int64_t first, int64_t wide, A* carry, A* to) {
  each_columns<A>(wide, [&](int64_t c, auto vectors) __attribute__((always_inline)) {
    Running<A, decltype(vectors)::value> own, all;
    own.clear();
    for (int64_t a = 0; a < SWEPT; ++a) {
      own.add(terms, first + a, c);
      all = own;
      all.read_add(carry + c, wide);
      all.write(to + a * AT_ONCE * wide + c, wide);
    }
    all.write(carry + c, wide);
  });
}

// The same of the last `window` rows up to it. tile_sums [tiles before this, AT_ONCE, wide].
template <class A, class Terms>
void window_tile(const Terms& terms, int64_t first, int64_t window, int64_t wide,
                 const A* tile_sums, A* to) {
  const int64_t row = AT_ONCE * wide;
  const int64_t chunk = std::min(SWEPT, std::max<int64_t>(window - 1, 1));
  each_columns<A>(wide, [&](int64_t c, auto vectors) __attribute__((always_inline)) {
    Running<A, decltype(vectors)::value> r;
    for (int64_t begin = 0; begin < SWEPT; begin += chunk) {
      const int64_t count = std::min(chunk, SWEPT - begin), here = first + begin;
      A* const rows = to + begin * row + c;
      // Before the chunk: what its last row sees, and one more for each row before that.
      r.clear();
      for (int64_t j = std::max<int64_t>(0, here + count - window); j < here;) {
        if (j % SWEPT == 0 && j + SWEPT <= here) {
          r.read_add(tile_sums + j / SWEPT * row + c, wide);
          j += SWEPT;
        } else {
          r.add(terms, j++, c);
        }
      }
      for (int64_t a = count - 1; a >= 0; --a) {
        r.write(rows + a * row, wide);
        const int64_t next = here + a - window;
        if (a > 0 && next >= 0) r.add(terms, next, c);
      }
      r.clear();
      for (int64_t a = 0; a < count; ++a) {
        r.add(terms, here + a, c);
        Running<A, decltype(vectors)::value> both = r;
        both.read_add(rows + a * row, wide);
        both.write(rows + a * row, wide);
      }
    }
  });
}

// ------------------------------------------------------------------------------ one head

// Memory of the sums of one set on their way along the rows.
template <class A>
struct Track {
  bool bounded;     // else every row sees every key
  int64_t window;   // 0: none
  A *carry, *sums;  // [AT_ONCE, wide] before the tile; [tiles, AT_ONCE, wide] of the tiles passed

  // Sums of the rows of the tile from `first` on.
  template <class Terms>
  void run(const Terms& terms, int64_t first, int64_t wide, A* to) const {
    if (!bounded) {
      for (int64_t a = 0; a < SWEPT; ++a)
        std::copy_n(carry, AT_ONCE * wide, to + a * AT_ONCE * wide);
    } else if (window == 0) {
      prefix_tile(terms, first, wide, carry, to);
    } else {
      window_tile(terms, first, window, wide, sums, to);
      A* const own = sums + first / SWEPT * AT_ONCE * wide;
      std::fill_n(own, AT_ONCE * wide, A(0));
      if (window > SWEPT) add_terms(terms, first, first + SWEPT, wide, own);
    }
  }
};

template <class T, class P>
struct Sweep : Plan<T, P> {
  using A = arith_t<T>;
  using Plan<T, P>::Plan;
  static constexpr int F = AT_ONCE;
  const int sets = this->p.sets;
  const int64_t factors = sets + this->group;               // sets, then query heads
  const int64_t across = round_up(this->dv + 1, LANES<A>);  // values, then a 1
  const int64_t tiles = ceil_div(std::max<int64_t>(this->n, 1), SWEPT);
  const int64_t state = F * across;  // of one set: sums of the features at hand
  const int64_t slices = std::max<int64_t>(
      1, std::min(ceil_div(this->r, 4 * F), ceil_div(SLICES_IN_ALL, this->heads)));
  const int64_t slice = round_up(ceil_div(this->r, slices), F);

  bool bounded(int64_t m) const { return this->s.causal || this->p.windows[m] > 0; }
  int64_t window(int64_t m) const {
    return this->p.windows[m] < this->n ? this->p.windows[m] : 0;  // else it hides nothing
  }
  // Keys of a set that some row may see; the rows of a factor, in whole tiles.
  int64_t readable(int64_t m) const {
    return bounded(m) ? std::min(this->keys[m].length, this->n) : this->keys[m].length;
  }
  int64_t rows(int64_t factor) const {
    if (factor >= sets || bounded(factor)) return tiles * SWEPT;
    return ceil_div(std::max<int64_t>(readable(factor), 1), SWEPT) * SWEPT;
  }
  int64_t x_size(int64_t factor) const { return (this->d + 1) * rows(factor); }
  // Sum of size(factor) over the factors before this one.
  template <class Size>
  int64_t before(int64_t factor, const Size& size) const {
    int64_t sum = 0;
    for (int64_t f = 0; f < factor; ++f) sum += size(f);
    return sum;
  }
  int64_t all_rows(int64_t factor) const {
    return before(factor, [&](int64_t f) { return rows(f); });
  }

  // Inputs of one head: x [D + 1, rows] of every factor, then the sets' values [rows, across] with
  // a 1 after the last (0 where masked).
  int64_t inputs_size() const { return (this->d + 1 + across) * all_rows(factors); }
  const A* x(const A* inputs, int64_t factor) const {
    return inputs + (this->d + 1) * all_rows(factor);
  }
  const A* values_of(const A* inputs, int64_t factor) const {
    return inputs + (this->d + 1) * all_rows(factors) + all_rows(factor) * across;
  }
  void load(int64_t head, A* inputs) const {
    const int64_t b = head / this->s.kv_heads, h = head % this->s.kv_heads;
    std::fill_n(inputs, inputs_size(), A(0));
    for (int m = 0; m < sets; ++m) {
      Operand seen = this->keys[m];
      const uint8_t* mask = this->mask(m);
      if (mask) mask += b * (seen.length - readable(m));  // load_variables adds b * length
      seen.length = readable(m);
      load_variables<T>(seen, b, h, 0, rows(m), this->d, mask, const_cast<A*>(x(inputs, m)));
      A* to = const_cast<A*>(values_of(inputs, m));
      for (int64_t j = 0; j < seen.length; ++j, to += across) {
        if (mask && !mask[b * seen.length + j]) continue;
        load_row(row_of<T>(this->values[m], b, h, j), this->dv, A(1), to);
        to[this->dv] = 1;
      }
    }
    for (int64_t g = 0; g < this->group; ++g) {
      load_variables<T>(this->queries[0], b, h * this->group + g, 0, rows(sets), this->d, nullptr,
                        const_cast<A*>(x(inputs, sets + g)));
    }
  }

  // Tracks of all sets, in `memory`.
  int64_t tracks_size() const { return sets * (1 + tiles) * state; }
  void make_tracks(A* memory, Track<A>* to) const {
    std::fill_n(memory, sets * (1 + tiles) * state, A(0));
    for (int m = 0; m < sets; ++m, memory += (1 + tiles) * state) {
      to[m] = {bounded(m), window(m), memory, memory + state};
    }
  }
  Products<A> products(const A* phi, const A* inputs, int64_t m) const {
    return {phi + F * all_rows(m), rows(m), values_of(inputs, m), across};
  }
  // Weight of feature f for a query head; 0 past the end.
  A weight_of(int64_t f, int64_t query_head) const {
    if (f >= this->r) return A(0);
    return this->weight.get()[f] * this->coefficients(query_head)[this->degree.get()[f]];
  }
};

// Walks of all factors over the features of a slice.
template <class T, class P>
struct Walks {
  using A = arith_t<T>;
  const Sweep<T, P>& w;
  const A* inputs;
  A* memory;  // [factors], of Features

  static int64_t size(const Sweep<T, P>& w) {
    return std::max(w.p.degree, 1) * w.all_rows(w.factors);
  }
  // phi [factors, AT_ONCE, rows]: `count` features from `at` on, then zeros.
  void make(int64_t at, int64_t count, A* phi) const {
    A* own = memory;
    for (int64_t f = 0; f < w.factors; ++f) {
      const int64_t rows = w.rows(f);
      Features<A> features(w.place, w.x(inputs, f), rows, own);
      features.seek(at);
      features.next(count, phi);
      std::fill_n(phi + count * rows, (AT_ONCE - count) * rows, A(0));
      phi += AT_ONCE * rows;
      own += std::max(w.p.degree, 1) * rows;
    }
  }
};

template <class T>
struct SweepForward : Sweep<T, Polynomial> {
  using Base = Sweep<T, Polynomial>;
  using A = arith_t<T>;
  using Base::Base;
  static constexpr int F = AT_ONCE;

  int64_t part() const { return this->group * this->tiles * SWEPT * this->across; }
  int64_t memory() const {
    return this->inputs_size() + Walks<T, Polynomial>::size(*this) +
           F * this->all_rows(this->factors) + this->tracks_size() +
           this->sets * SWEPT * this->state;
  }
  // to [group, rows, across]: sums over the slice's features.
  void run(int64_t head, int64_t slice, A* to, A* memory) const {
    const int64_t across = this->across, state = this->state, rows = this->rows(this->sets);
    A* const inputs = memory;
    A* const walk = inputs + this->inputs_size();
    A* const phi = walk + Walks<T, Polynomial>::size(*this);
    A* const tracks = phi + F * this->all_rows(this->factors);
    A* const sums = tracks + this->tracks_size();  // [sets, SWEPT, F, across]
    this->load(head, inputs);
    std::fill_n(to, part(), A(0));
    const Walks<T, Polynomial> walks{*this, inputs, walk};
    const int64_t begin = slice * this->slice, end = std::min(this->r, begin + this->slice);
    Track<A> track[MAX_SETS];
    for (int64_t at = begin; at < end; at += F) {
      const int64_t count = std::min<int64_t>(F, end - at);
      walks.make(at, count, phi);
      A* const queries = phi + F * this->all_rows(this->sets);
      for (int64_t i = 0; i < this->group * F; ++i) {
        const A weight = this->weight_of(at + i % F, head * this->group + i / F);
        for (int64_t l = 0; l < rows; ++l) queries[i * rows + l] *= weight;
      }
      this->make_tracks(tracks, track);
      for (int m = 0; m < this->sets; ++m) {
        if (track[m].bounded) continue;
        add_terms(this->products(phi, inputs, m), 0, this->rows(m), across, track[m].carry);
      }
      for (int64_t first = 0; first < rows; first += SWEPT) {
        for (int m = 0; m < this->sets; ++m) {
          track[m].run(this->products(phi, inputs, m), first, across, sums + m * SWEPT * state);
        }
        answer(queries + first, rows, sums, to + first * across);
      }
    }
  }

 private:
  // The tile's queries times the products of its sums.
  void answer(const A* queries, int64_t rows, const A* sums, A* to) const {
    const int64_t across = this->across, state = this->state;
    each_columns<A>(across, [&](int64_t c, auto vectors) __attribute__((always_inline)) {
      constexpr int V = decltype(vectors)::value;
      for (int64_t a = 0; a < SWEPT; ++a) {
        Running<A, V> r;
        r.read(sums + a * state + c, across);
        for (int m = 1; m < this->sets; ++m) {
          r.read_multiply(sums + (m * SWEPT + a) * state + c, across);
        }
        for (int64_t g = 0; g < this->group; ++g) {
          A* const at = to + (g * rows + a) * across + c;
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) {
            Vector<A> sum{};
#pragma GCC unroll 8
            for (int f = 0; f < F; ++f) sum += queries[(g * F + f) * rows + a] * r.sum[f][v];
            tile::store(at + v * LANES<A>, tile::load(at + v * LANES<A>) + sum);
          }
        }
      }
    });
  }
};

// Runs run(head, slice, results, memory) for every slice, then store(head, results, stride between
// those of its slices).
template <class W, class Store>
int sweep(const W& w, int threads, const Store& store) {
  using A = typename W::A;
  if (!w.good()) return kOutOfMemory;
  const bool apart = w.slices > 1;
  const Scratch<A> parts(apart ? w.heads * w.slices * w.part() : 1);
  if (!parts.get()) return kOutOfMemory;
  Failure failure;
  parallel_for(w.heads * w.slices, 1, 1, threads, [&](int64_t begin, int64_t end) {
    const Scratch<A> own(w.memory()), results(apart ? 1 : w.part());
    if (!own.get() || !results.get()) return failure.raise();
    for (int64_t i = begin; i < end; ++i) {
      A* const to = apart ? parts.get() + i * w.part() : results.get();
      w.run(i / w.slices, i % w.slices, to, own.get());
      if (!apart) store(i, to);
    }
  });
  if (failure.raised) return kOutOfMemory;
  if (apart) {
    parallel_for(w.heads, 1, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        A* const to = parts.get() + h * w.slices * w.part();
        for (int64_t s = 1; s < w.slices; ++s) {
          const A* from = to + s * w.part();
          for (int64_t i = 0; i < w.part(); ++i) to[i] += from[i];
        }
        store(h, to);
      }
    });
  }
  return kOk;
}

template <class T>
int sweep_as(const Polynomial& p) {
  using A = arith_t<T>;
  const SweepForward<T> w(p);
  return sweep(w, p.exec.threads, [&](int64_t head, const A* from) {
    const int64_t rows = w.tiles * SWEPT;
    for (int64_t g = 0; g < w.group; ++g) {
      for (int64_t i = 0; i < w.n; ++i) {
        const A* at = from + (g * rows + i) * w.across;
        const int64_t row = (head * w.group + g) * w.n + i;
        std::copy_n(at, w.dv, static_cast<A*>(p.numerator) + row * w.dv);
        static_cast<A*>(p.denominator)[row] = at[w.dv];
      }
    }
  });
}

// Whether running sums cost less than the pairs that rows see: in multiplications and additions of
// a query head, where those of sums take `expense` times as long as those of pairs.
template <class P>
bool prefers_sums(const P& p, double expense) {
  if (p.sets != 2) return true;
  const int64_t n = p.operands[0].length;
  double pairs = 0;
  for (int64_t i = 0; i < n; ++i) {
    double seen = 1;
    for (int m = 0; m < 2; ++m) {
      const int64_t window = p.windows[m], length = p.operands[1 + m].length;
      const bool bounded = p.shape.causal || window > 0;
      const int64_t end = bounded ? std::min(length, i + 1) : length;
      seen *= double(end - (window > 0 ? std::min(end, std::max<int64_t>(0, i + 1 - window)) : 0));
    }
    pairs += seen;
  }
  const double d = double(p.shape.channels), dv = double(p.shape.value_channels);
  const double r = double(monomials(p.shape.channels, p.degree));
  const double additions = double(p.shape.kv_heads) / double(p.shape.heads) * 2 + 2;
  return expense * double(n) * r * (dv + 1) * additions < pairs * (d + dv);
}

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
