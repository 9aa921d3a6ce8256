// Gradients of polynomials under causality and windows. With u_i the row's gradients of numerator
// and denominator, the gradient of set m's sums at row i is its features times u_i times the other
// sets' sums; a key is asked by the rows that see it, so that the same running sums, last row
// first, give what reaches it. Tiles pass forwards once for the sums before each tile, then
// backwards for everything else.
#pragma once

#include "kronecker_attention/cpu_prefix.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

// Lane x of the result: the sum of lanes 2 x and 2 x + 1 of a, then b.
template <class A, int... x>
SUBLIMATE_HD Vector<A> neighbours(Vector<A> a, Vector<A> b, std::integer_sequence<int, x...>) {
  return __builtin_shufflevector(a, b, 2 * x...) + __builtin_shufflevector(a, b, 2 * x + 1 ...);
}
// Lane l of the result: the sum of the lanes of the vector at from + l * LANES.
template <class A>
SUBLIMATE_HD Vector<A> sums_of_lanes(const A* from) {
  constexpr int L = LANES<A>;
  Vector<A> x[L];
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) x[l] = tile::load(from + l * L);
#pragma GCC unroll 4
  for (int n = L / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < n; ++l) {
      x[l] = neighbours<A>(x[2 * l], x[2 * l + 1], std::make_integer_sequence<int, L>());
    }
  }
  return x[0];
}

template <class T>
struct SweepBackward : Sweep<T, PolynomialBackward> {
  using Base = Sweep<T, PolynomialBackward>;
  using A = arith_t<T>;
  using Base::Base;
  static constexpr int F = AT_ONCE;
  static constexpr int64_t PARTIAL = SWEPT * LANES<A>;  // sums of one feature before the lanes'

  // Results of a slice: dx [D + 1, rows] of all factors, then gradients [rows, across] of the sets'
  // values.
  int64_t part() const {
    return (this->d + 1) * this->all_rows(this->factors) +
           this->across * this->all_rows(this->sets);
  }
  // Rows of a set's terms that are kept: all for a window, which looks back.
  int64_t kept(int64_t m) const { return this->window(m) > 0 ? this->tiles * SWEPT : SWEPT; }
  int64_t kept_before(int64_t m) const {
    return this->before(m, [&](int64_t s) { return kept(s); });
  }
  int64_t upstream_size() const { return this->group * this->tiles * SWEPT * this->across; }
  int64_t gradients_size() const {
    return 2 * std::max(this->p.degree, 1) * this->all_rows(this->factors);
  }
  int64_t memory() const {
    const int64_t phi = F * this->all_rows(this->factors);
    return this->inputs_size() + upstream_size() + Walks<T, PolynomialBackward>::size(*this) +
           gradients_size() + 2 * phi + F * this->group * this->tiles * SWEPT +
           2 * this->tracks_size() +
           (this->sets * (SWEPT + this->tiles) + SWEPT + kept_before(this->sets)) * this->state +
           this->factors * F * PARTIAL;
  }

  // dnumerator and ddenominator of a head's queries, [group, rows, across].
  void load_upstream(int64_t head, A* to) const {
    std::fill_n(to, upstream_size(), A(0));
    for (int64_t g = 0; g < this->group; ++g) {
      for (int64_t i = 0; i < this->n; ++i) {
        const int64_t row = (head * this->group + g) * this->n + i;
        A* const at = to + (g * this->tiles * SWEPT + i) * this->across;
        std::copy_n(static_cast<const A*>(this->p.dnumerator) + row * this->dv, this->dv, at);
        at[this->dv] = static_cast<const A*>(this->p.ddenominator)[row];
      }
    }
  }

  void run(int64_t head, int64_t slice, A* to, A* memory) const {
    const int64_t across = this->across, state = this->state, rows = this->rows(this->sets);
    const int64_t all = this->all_rows(this->factors);
    const int sets = this->sets;
    A* const inputs = memory;
    A* const upstream = inputs + this->inputs_size();
    A* const walk = upstream + upstream_size();
    A* const back = walk + Walks<T, PolynomialBackward>::size(*this);
    A* const phi = back + gradients_size();  // [factors, F, rows]
    A* const dphi = phi + F * all;           // likewise
    A* const weighted = dphi + F * all;      // [group, F, rows]: queries' features, weighted
    A* const tracks = weighted + F * this->group * rows;
    A* const back_tracks = tracks + this->tracks_size();
    A* const sums = back_tracks + this->tracks_size();           // [sets, SWEPT, F, across]
    A* const carried = sums + sets * SWEPT * state;              // [sets, tiles, F, across]
    A* const asked = carried + sets * this->tiles * state;       // [SWEPT, F, across]
    A* const terms = asked + SWEPT * state;                      // of each set: [kept, F, across]
    A* const partial = terms + kept_before(this->sets) * state;  // [factors, F, SWEPT, LANES]
    A* const dvalues = to + (this->d + 1) * all;
    this->load(head, inputs);
    load_upstream(head, upstream);
    std::fill_n(to, part(), A(0));
    const Walks<T, PolynomialBackward> walks{*this, inputs, walk};
    const int64_t begin = slice * this->slice, end = std::min(this->r, begin + this->slice);
    Track<A> track[MAX_SETS], back_track[MAX_SETS];
    for (int64_t at = begin; at < end; at += F) {
      const int64_t count = std::min<int64_t>(F, end - at);
      walks.make(at, count, phi);
      const A* const queries = phi + F * this->all_rows(sets);
      for (int64_t i = 0; i < this->group * F; ++i) {
        const A weight = this->weight_of(at + i % F, head * this->group + i / F);
        for (int64_t l = 0; l < rows; ++l) weighted[i * rows + l] = weight * queries[i * rows + l];
      }
      // Forwards: what each tile's rows find.
      this->make_tracks(tracks, track);
      this->make_tracks(back_tracks, back_track);
      for (int m = 0; m < sets; ++m) {
        const auto own = this->products(phi, inputs, m);
        if (!track[m].bounded) {
          add_terms(own, 0, this->rows(m), across, track[m].carry);
          continue;
        }
        for (int64_t t = 0; t < this->tiles; ++t) {
          if (track[m].window == 0) {
            std::copy_n(track[m].carry, state, carried + (m * this->tiles + t) * state);
            add_terms(own, t * SWEPT, (t + 1) * SWEPT, across, track[m].carry);
          } else if (track[m].window > SWEPT) {
            add_terms(own, t * SWEPT, (t + 1) * SWEPT, across, track[m].sums + t * state);
          }
        }
      }
      // Backwards.
      for (int64_t first = rows - SWEPT; first >= 0; first -= SWEPT) {
        const int64_t t = first / SWEPT;
        for (int m = 0; m < sets; ++m) {
          if (track[m].bounded && track[m].window == 0) {
            std::copy_n(carried + (m * this->tiles + t) * state, state, track[m].carry);
          }
          track[m].run(this->products(phi, inputs, m), first, across, sums + m * SWEPT * state);
        }
        std::fill_n(partial, this->factors * F * PARTIAL, A(0));
        queries_of(weighted + first, upstream + first * across, rows, sums, first, terms,
                   partial + sets * F * PARTIAL);
        for (int64_t i = 0; i < this->group * F; ++i) {
          const A weight = this->weight_of(at + i % F, head * this->group + i / F);
          reduce(partial + (sets * F + i) * PARTIAL, weight,
                 dphi + F * this->all_rows(sets) + i * rows + first);
        }
        for (int m = 0; m < sets; ++m) {
          const Backwards<A> own = backwards(terms, m, first);
          if (!track[m].bounded) {
            add_terms(own, rows - SWEPT - first, rows - first, across, back_track[m].carry);
            continue;
          }
          back_track[m].run(own, rows - SWEPT - first, across, asked);
          keys_of(m, inputs, phi, asked, first, dvalues, partial, dphi);
        }
      }
      for (int m = 0; m < sets; ++m) {
        if (track[m].bounded) continue;
        back_track[m].run(backwards(terms, m, 0), 0, across, asked);
        for (int64_t first = 0; first < this->rows(m); first += SWEPT) {
          keys_of(m, inputs, phi, asked, first, dvalues, partial, dphi);
        }
      }
      A* own = back;
      for (int64_t f = 0; f < this->factors; ++f) {
        const int64_t offset = this->all_rows(f), width = this->rows(f);
        FeatureGradients<A> gradients(this->place, this->x(inputs, f), width,
                                      to + (this->d + 1) * offset, own);
        gradients.seek(at);
        gradients.next(count, dphi + F * offset);
        gradients.finish();
        own += 2 * std::max(this->p.degree, 1) * width;
      }
    }
  }

  // Writes the gradients of one head.
  void store(int64_t head, const A* from) const {
    const int sets = this->sets;
    const Operand* to = this->values + sets;  // dq, gradients of the keys, of the values
    const int64_t b = head / this->s.kv_heads, h = head % this->s.kv_heads;
    for (int64_t f = 0; f < this->factors; ++f) {
      const bool is_set = f < sets;
      const Operand& o = to[is_set ? 1 + f : 0];
      const int64_t head_at = is_set ? h : h * this->group + f - sets;
      const int64_t width = this->rows(f), count = is_set ? this->readable(f) : this->n;
      const uint8_t* mask = is_set ? this->mask(int(f)) : nullptr;
      const A* dx = from + (this->d + 1) * this->all_rows(f) + width;
      for (int64_t i = 0; i < o.length; ++i) {
        // What no row sees or the mask hides is 0 whatever the others hold.
        const bool counts = i < count && (!mask || mask[b * o.length + i]);
        T* const row = row_to<T>(o, b, head_at, i);
        for (int64_t c = 0; c < this->d; ++c) {
          row[c] = store_value<T>(counts ? dx[c * width + i] : A(0));
        }
        if (!is_set) continue;
        const A* dvalue = from + (this->d + 1) * this->all_rows(this->factors) +
                          (this->all_rows(f) + i) * this->across;
        T* const value = row_to<T>(to[1 + sets + f], b, h, i);
        for (int64_t c = 0; c < this->dv; ++c) value[c] = store_value<T>(counts ? dvalue[c] : A(0));
      }
    }
  }

 private:
  // Terms of set m, of which the tile from `first` on is in memory (of a window all later ones).
  Backwards<A> backwards(A* terms, int64_t m, int64_t first) const {
    const int64_t last = this->tiles * SWEPT - 1;
    return {terms + kept_before(m) * this->state, kept(m) == SWEPT ? last - first : last,
            this->across};
  }

  // Of a tile's queries: partial [group, F, SWEPT, LANES] += u times the product of all sums; terms
  // of each set = weighted features times u times the product of the others' sums.
  void queries_of(const A* weighted, const A* upstream, int64_t rows, const A* sums, int64_t first,
                  A* terms, A* partial) const {
    const int64_t across = this->across, state = this->state;
    A* to[MAX_SETS];
    for (int m = 0; m < this->sets; ++m) {
      to[m] = terms + (kept_before(m) + (kept(m) == SWEPT ? 0 : first)) * state;
    }
    each_columns<A>(across, [&](int64_t c, auto vectors) __attribute__((always_inline)) {
      constexpr int V = decltype(vectors)::value;
      for (int64_t a = 0; a < SWEPT; ++a) {
        Running<A, V> r, y;
        r.read(sums + a * state + c, across);
        for (int m = 1; m < this->sets; ++m) {
          r.read_multiply(sums + (m * SWEPT + a) * state + c, across);
        }
        y.clear();
        for (int64_t g = 0; g < this->group; ++g) {
          const A* u = upstream + (g * rows + a) * across + c;
#pragma GCC unroll 8
          for (int f = 0; f < F; ++f) {
            A* const at = partial + (g * F + f) * PARTIAL + a * LANES<A>;
            Vector<A> sum = tile::load(at);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
              const Vector<A> x = tile::load(u + v * LANES<A>);
              sum += x * r.sum[f][v];
              y.sum[f][v] += weighted[(g * F + f) * rows + a] * x;
            }
            tile::store(at, sum);
          }
        }
        for (int m = 0; m < this->sets; ++m) {
          Running<A, V> term = y;
          for (int other = 0; other < this->sets; ++other) {
            if (other == m) continue;
            term.read_multiply(sums + (other * SWEPT + a) * state + c, across);
          }
          term.write(to[m] + a * state + c, across);
        }
      }
    });
  }

  // Of a tile of keys, from what is asked of them (the last key first): adds to the gradients of
  // their values, and sets those of their features.
  void keys_of(int64_t m, const A* inputs, const A* phi, const A* asked, int64_t first, A* dvalues,
               A* partial, A* dphi) const {
    const int64_t across = this->across, rows = this->rows(m), offset = this->all_rows(m);
    const A* const features = phi + F * offset + first;
    const A* const values = this->values_of(inputs, m) + first * across;
    A* const to = dvalues + (offset + first) * across;
    std::fill_n(partial, F * PARTIAL, A(0));
    each_columns<A>(across, [&](int64_t c, auto vectors) __attribute__((always_inline)) {
      constexpr int V = decltype(vectors)::value;
      for (int64_t a = 0; a < SWEPT; ++a) {
        Running<A, V> r;
        r.read(asked + (SWEPT - 1 - a) * this->state + c, across);
#pragma GCC unroll 8
        for (int f = 0; f < F; ++f) {
          A* const at = partial + f * PARTIAL + a * LANES<A>;
          Vector<A> sum = tile::load(at);
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) {
            sum += r.sum[f][v] * tile::load(values + a * across + c + v * LANES<A>);
          }
          tile::store(at, sum);
        }
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          A* const at = to + a * across + c + v * LANES<A>;
          Vector<A> sum{};
#pragma GCC unroll 8
          for (int f = 0; f < F; ++f) sum += features[f * rows + a] * r.sum[f][v];
          tile::store(at, tile::load(at) + sum);
        }
      }
    });
    for (int f = 0; f < F; ++f) {
      reduce(partial + f * PARTIAL, A(1), dphi + F * offset + f * rows + first);
    }
  }

  // to [SWEPT] = weight times the lanes' sums of partial [SWEPT, LANES].
  static void reduce(const A* partial, A weight, A* to) {
    for (int64_t a = 0; a < SWEPT; a += LANES<A>) {
      tile::store(to + a, weight * sums_of_lanes<A>(partial + a * LANES<A>));
    }
  }
};

template <class T>
int sweep_backward_as(const PolynomialBackward& p) {
  using A = arith_t<T>;
  const SweepBackward<T> w(p);
  return sweep(w, p.exec.threads, [&](int64_t head, const A* from) { w.store(head, from); });
}

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
