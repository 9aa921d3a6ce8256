// Polynomial attention of any order, backward. The gradient of a product of sums is, for each set,
// the sum over queries of features times upstream gradient, times the other sets' sums; applied to
// the features of the keys it gives the gradients of their values, and with the values those of the
// features, which the product tree passes on to the keys. Features are made again, none is stored.

#include "kronecker_attention/cpu_factors.h"
#include "kronecker_attention/cpu_pairs_backward.h"
#include "kronecker_attention/cpu_prefix_backward.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

template <class T>
struct WholeBackward : Plan<T, PolynomialBackward> {
  using A = arith_t<T>;
  const Operand* gradients;  // dq, then those of the keys, then of the values
  Operand upstream;          // dnumerator
  Summands<A> query_rows;
  int64_t queries_size;

  explicit WholeBackward(const PolynomialBackward& p) : Plan<T, PolynomialBackward>(p) {
    const int64_t n = this->n, dv = this->dv;
    gradients = this->values + p.sets;
    upstream = {int64_t(p.dnumerator), this->s.heads * n * dv, n * dv, dv, n};
    query_rows = Summands<A>::of(n);
    const int64_t rows = query_rows.tiles * query_rows.width;
    queries_size = query_rows.x_size(this->d) + query_rows.values_size(this->wide) + rows;
  }

  Summands<A> query_set(A* memory) const {
    Summands<A> found = query_rows;
    found.x = memory;
    found.values = found.x + found.x_size(this->d);
    found.extra = found.values + found.values_size(this->wide);
    return found;
  }
  const A* ddenominator(int64_t query_head) const {
    return static_cast<const A*>(this->p.ddenominator) + query_head * this->n;
  }
  void pack_queries(A* memory, int64_t query_head) const {
    const Summands<A> to = query_set(memory);
    const int64_t b = query_head / this->s.heads, h = query_head % this->s.heads;
    pack_rows<T, A>(to, this->queries[0], upstream, b, h, this->d, this->dv, this->wide, nullptr);
    std::fill_n(to.extra, to.tiles * to.width, A(0));
    std::copy_n(ddenominator(query_head), this->n, to.extra);
  }

  // Features of a chunk: for each set the gradient of its sums, and for each query head of the
  // group the weighted product of all sums. `common` is what the sets' gradients share.
  void combine(int64_t chunk, A* factors, A* query_sums, int64_t first_query_head, A* dfactors,
               A* products) const {
    const int64_t wide = this->wide, begin = chunk * CHUNK, end = std::min(this->r, begin + CHUNK);
    A row[MAX_CHANNELS];
    for (int64_t f = begin; f < end; ++f) {
      const A weight = this->weight.get()[f];
      const int degree = this->degree.get()[f];
      std::fill_n(row, wide, A(0));
      A one = 0;
      for (int64_t g = 0; g < this->group; ++g) {
        const A w = weight * this->coefficients(first_query_head + g)[degree];
        const Sums<A> from = this->sums(query_sums, g);
        for (int64_t c = 0; c < wide; ++c) row[c] += w * from.values[f * wide + c];
        one += w * from.ones[f];
        product_of_others(f, factors, -1, w, this->sums(products, g));
      }
      for (int m = 0; m < this->p.sets; ++m) {
        const Sums<A> to = this->sums(dfactors, m);
        product_of_others(f, factors, m, A(1), to);
        multiply(to.values + f * wide, row, wide, to.values + f * wide);
        to.ones[f] *= one;
      }
    }
  }
  // w times the product of the sums of all sets but one.
  void product_of_others(int64_t f, A* factors, int without, A w, const Sums<A>& to) const {
    const int64_t wide = this->wide;
    std::fill_n(to.values + f * wide, wide, w);
    to.ones[f] = w;
    for (int m = 0; m < this->p.sets; ++m) {
      if (m == without) continue;
      const Sums<A> from = this->sums(factors, m);
      multiply(to.values + f * wide, from.values + f * wide, wide, to.values + f * wide);
      to.ones[f] *= from.ones[f];
    }
  }

  int64_t row_memory() const {
    return (2 * (this->d + 1) + 2 * (this->dv + 1)) * ACROSS<A> +
           std::max(apply_memory<A>(this->p.degree), gradient_memory<A>(this->p.degree));
  }
  // Gradients of ACROSS keys and values of set m.
  void keys_of(int64_t head, int m, int64_t first, const Sums<A>& dsums, A* memory) const {
    const int64_t b = head / this->s.kv_heads, h = head % this->s.kv_heads;
    const Operand &keys = this->keys[m], &values = this->values[m];
    const uint8_t* mask = this->mask(m);
    A* const x = memory;
    A* const dx = x + (this->d + 1) * ACROSS<A>;
    A* const columns = dx + (this->d + 1) * ACROSS<A>;  // a row of ones, then the values
    A* const dvalues = columns + (this->dv + 1) * ACROSS<A>;
    A* const rest = dvalues + (this->dv + 1) * ACROSS<A>;
    load_variables<T>(keys, b, h, first, ACROSS<A>, this->d, mask, x);
    load_variables<T>(values, b, h, first, ACROSS<A>, this->dv, mask, columns);
    apply_features(this->place, x, this->dv, this->wide, dsums, dvalues + ACROSS<A>, dvalues, rest);
    feature_gradients(this->place, x, this->dv, this->wide, this->d, dsums, columns + ACROSS<A>,
                      columns, dx, rest);
    store_rows(dx + ACROSS<A>, gradients[1 + m], b, h, first, this->d, mask);
    store_rows(dvalues + ACROSS<A>, gradients[1 + this->p.sets + m], b, h, first, this->dv, mask);
  }
  // Gradients of ACROSS queries.
  void queries_of(int64_t query_head, int64_t first, const Sums<A>& product, A* memory) const {
    const int64_t b = query_head / this->s.heads, h = query_head % this->s.heads;
    A* const x = memory;
    A* const dx = x + (this->d + 1) * ACROSS<A>;
    A* const columns = dx + (this->d + 1) * ACROSS<A>;
    A* const rest = columns + 2 * (this->dv + 1) * ACROSS<A>;
    load_variables<T>(this->queries[0], b, h, first, ACROSS<A>, this->d, nullptr, x);
    load_variables<A>(upstream, b, h, first, ACROSS<A>, this->dv, nullptr, columns);
    std::copy_n(ddenominator(query_head) + first, std::min<int64_t>(ACROSS<A>, this->n - first),
                columns);
    feature_gradients(this->place, x, this->dv, this->wide, this->d, product, columns + ACROSS<A>,
                      columns, dx, rest);
    store_rows(dx + ACROSS<A>, gradients[0], b, h, first, this->d, nullptr);
  }
  // Columns to rows; a masked row is 0 whatever the others hold.
  void store_rows(const A* from, const Operand& to, int64_t b, int64_t h, int64_t first,
                  int64_t channels, const uint8_t* mask) const {
    for (int64_t l = 0; l < std::min<int64_t>(ACROSS<A>, to.length - first); ++l) {
      T* const at = row_to<T>(to, b, h, first + l);
      const bool counts = !mask || mask[b * to.length + first + l];
      for (int64_t c = 0; c < channels; ++c) {
        at[c] = store_value<T>(counts ? from[c * ACROSS<A> + l] : A(0));
      }
    }
  }
};

template <class T>
int whole_backward_as(const PolynomialBackward& p) {
  using A = arith_t<T>;
  const WholeBackward<T> w(p);
  if (!w.good()) return kOutOfMemory;
  const int threads = p.exec.threads;
  const int64_t sets = p.sets, inputs = sets + w.group;
  const int64_t each = w.packed + w.group * w.queries_size + 2 * inputs * w.sums_size;
  const int64_t wave = std::max<int64_t>(1, std::min(w.heads, TOGETHER / each));
  const Scratch<A> memory(wave * each);
  if (!memory.get()) return kOutOfMemory;
  A* const rows = memory.get();  // [wave]: packed sets, then packed query heads
  const int64_t row_size = w.packed + w.group * w.queries_size;
  A* const sums = rows + wave * row_size;               // [wave, inputs]: sets, query heads
  A* const dsums = sums + wave * inputs * w.sums_size;  // [wave, inputs]: likewise
  int64_t tiles[MAX_SETS + 1], all = 0;                 // of each set; then of a query head
  for (int m = 0; m < sets; ++m) all += tiles[m] = ceil_div(w.keys[m].length, ACROSS<A>);
  all += w.group * (tiles[sets] = ceil_div(w.n, ACROSS<A>));
  Failure failure;
  for (int64_t first = 0; first < w.heads; first += wave) {
    const int64_t count = std::min(wave, w.heads - first);
    parallel_for(count * inputs, 1, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / inputs, which = i % inputs;
        A* const at = rows + head * row_size;
        if (which < sets) {
          w.pack(at, int(which), first + head);
        } else {
          const int64_t g = which - sets;
          w.pack_queries(at + w.packed + g * w.queries_size, (first + head) * w.group + g);
        }
      }
    });
    parallel_for(count * inputs * w.chunks, 1, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch<A> own(sum_memory<A>(p.degree));
      if (!own.get()) return failure.raise();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i / w.chunks, which = at % inputs, f = i % w.chunks * CHUNK;
        A* const from = rows + at / inputs * row_size;
        const Summands<A> set =
            which < sets ? w.set(from, int(which))
                         : w.query_set(from + w.packed + (which - sets) * w.queries_size);
        sum_features(w.place, set, w.d, w.wide, f, std::min(CHUNK, w.r - f), w.sums(sums, at),
                     own.get());
      }
    });
    if (failure.raised) return kOutOfMemory;
    parallel_for(count * w.chunks, 1, 4, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / w.chunks, at = head * inputs * w.sums_size;
        w.combine(i % w.chunks, sums + at, sums + at + sets * w.sums_size, (first + head) * w.group,
                  dsums + at, dsums + at + sets * w.sums_size);
      }
    });
    parallel_for(count * all, 1, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch<A> own(w.row_memory());
      if (!own.get()) return failure.raise();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / all;
        int64_t t = i % all;
        int m = 0;
        while (m < sets && t >= tiles[m]) t -= tiles[m++];
        if (m < sets) {
          w.keys_of(first + head, m, t * ACROSS<A>, w.sums(dsums, head * inputs + m), own.get());
        } else {
          const int64_t g = t / tiles[sets];
          w.queries_of((first + head) * w.group + g, t % tiles[sets] * ACROSS<A>,
                       w.sums(dsums, head * inputs + sets + g), own.get());
        }
      }
    });
    if (failure.raised) return kOutOfMemory;
  }
  return kOk;
}

template <class T>
int pairs_backward_as(const PolynomialBackward& p) {
  using A = arith_t<T>;
  const Shape& s = p.shape;
  const Operand* o = p.operands;
  const int64_t n = o[0].length, dv = s.value_channels;
  const int threads = p.exec.threads;
  const uint8_t* masks[2] = {};
  for (int m = 0; p.masks && m < 2; ++m) masks[m] = reinterpret_cast<const uint8_t*>(p.masks[m]);
  const Form form = Form::kronecker;
  const KeySet<T> first(s, form, o[1], o[3], masks[0], s.causal, p.windows[0], threads);
  const KeySet<T> second(s, form, o[2], o[4], masks[1], s.causal, p.windows[1], threads);
  if (!first.good() || !second.good()) return kOutOfMemory;
  const Operand upstream{int64_t(p.dnumerator), s.heads * n * dv, n * dv, dv, n};
  const auto load = [&](const auto& pairs, auto& block, int64_t b, int64_t h, int64_t i) {
    const A* c = static_cast<const A*>(p.coefficients) + (b * s.heads + h) * (p.degree + 1);
    block.weight = {c, p.degree};
    // The gradient of a weight is that of the numerator plus that of the denominator.
    pairs.template load<A>(block, o[0], upstream, nullptr, static_cast<const A*>(p.ddenominator),
                           A(-1), b, h, i);
  };
  return pairs_backward<T, Power<A>>(s, form, first, second, o, o + 5, threads, load);
}

template <class T>
int polynomial_backward_as(const PolynomialBackward& p) {
  if (p.shape.batch * p.shape.kv_heads == 0) return kOk;
  if (!is_bounded(p)) return whole_backward_as<T>(p);
  return prefers_sums(p, EXPENSE) ? sweep_backward_as<T>(p) : pairs_backward_as<T>(p);
}

}  // namespace

int polynomial_backward(const PolynomialBackward& p) {
  SUBLIMATE_KRONECKER_ATTENTION_RUN(polynomial_backward_as, p);
}

}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
