// Polynomial attention of any order, forward. Without causality every key set enters through the
// sums of its features, r x (Dv + 1); their product is applied to the features of the queries.
// Under causality and windows those sums run along the rows; of order 3, pairs that are few are
// visited instead.

#include "kronecker_attention/cpu_factors.h"
#include "kronecker_attention/cpu_pairs.h"
#include "kronecker_attention/cpu_prefix.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

template <class T>
struct Whole : Plan<T, Polynomial> {
  using A = arith_t<T>;
  using Plan<T, Polynomial>::Plan;

  // Features of a chunk of the product of all sets' sums, weighted for one query head.
  void combine(int64_t chunk, A* factors, const A* coefficients, const Sums<A>& to) const {
    const int64_t wide = this->wide, begin = chunk * CHUNK, end = std::min(this->r, begin + CHUNK);
    for (int64_t f = begin; f < end; ++f) {
      const A w = this->weight.get()[f] * coefficients[this->degree.get()[f]];
      A one = w;
      std::fill_n(to.values + f * wide, wide, w);
      for (int m = 0; m < this->p.sets; ++m) {
        const Sums<A> from = this->sums(factors, m);
        one *= from.ones[f];
        multiply(to.values + f * wide, from.values + f * wide, wide, to.values + f * wide);
      }
      to.ones[f] = one;
    }
  }

  int64_t answer_memory() const {
    return (this->d + this->dv + 2) * ACROSS<A> + apply_memory<A>(this->p.degree);
  }
  void answer(int64_t query_head, int64_t first, const Sums<A>& weights, A* memory) const {
    const Shape& s = this->s;
    const int64_t n = this->n, dv = this->dv;
    A* const x = memory;
    A* const sums = x + (this->d + 1) * ACROSS<A>;
    A* const ones = sums + dv * ACROSS<A>;
    load_variables<T>(this->queries[0], query_head / s.heads, query_head % s.heads, first,
                      ACROSS<A>, this->d, nullptr, x);
    apply_features(this->place, x, dv, this->wide, weights, sums, ones, ones + ACROSS<A>);
    const int64_t row = query_head * n + first, count = std::min<int64_t>(ACROSS<A>, n - first);
    A* numerator = static_cast<A*>(this->p.numerator) + row * dv;
    std::copy_n(ones, count, static_cast<A*>(this->p.denominator) + row);
    for (int64_t l = 0; l < count; ++l) {
      for (int64_t c = 0; c < dv; ++c) *numerator++ = sums[c * ACROSS<A> + l];
    }
  }
};

template <class T>
int whole_as(const Polynomial& p) {
  using A = arith_t<T>;
  const Whole<T> w(p);
  if (!w.good()) return kOutOfMemory;
  const int threads = p.exec.threads;
  // A wave: heads of the key sets worked on together.
  const int64_t each = w.packed + (p.sets + w.group) * w.sums_size;
  const int64_t wave = std::max<int64_t>(1, std::min(w.heads, TOGETHER / each));
  const Scratch<A> memory(wave * each);
  if (!memory.get()) return kOutOfMemory;
  A* const rows = memory.get();                               // [wave, packed]
  A* const factors = rows + wave * w.packed;                  // [wave, sets] sums
  A* const products = factors + wave * p.sets * w.sums_size;  // [wave, group] sums
  Failure failure;
  for (int64_t first = 0; first < w.heads; first += wave) {
    const int64_t count = std::min(wave, w.heads - first);
    parallel_for(count * p.sets, 1, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        w.pack(rows + i / p.sets * w.packed, int(i % p.sets), first + i / p.sets);
      }
    });
    parallel_for(count * p.sets * w.chunks, 1, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch<A> own(sum_memory<A>(p.degree));
      if (!own.get()) return failure.raise();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / w.chunks, f = i % w.chunks * CHUNK;
        const auto set = w.set(rows + which / p.sets * w.packed, int(which % p.sets));
        sum_features(w.place, set, w.d, w.wide, f, std::min(CHUNK, w.r - f), w.sums(factors, which),
                     own.get());
      }
    });
    parallel_for(count * w.group * w.chunks, 1, 4, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / w.chunks;
        w.combine(i % w.chunks, factors + which / w.group * p.sets * w.sums_size,
                  w.coefficients(first * w.group + which), w.sums(products, which));
      }
    });
    const int64_t tiles = ceil_div(w.n, ACROSS<A>);
    parallel_for(count * w.group * tiles, 1, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch<A> own(w.answer_memory());
      if (!own.get()) return failure.raise();
      for (int64_t i = begin; i < end; ++i) {
        w.answer(first * w.group + i / tiles, i % tiles * ACROSS<A>, w.sums(products, i / tiles),
                 own.get());
      }
    });
    if (failure.raised) return kOutOfMemory;
  }
  return kOk;
}

template <class T>
int pairs_as(const Polynomial& p) {
  using A = arith_t<T>;
  using Queries = Block<A, Power<A>>;
  const Shape& s = p.shape;
  const Operand* o = p.operands;
  const int64_t n = o[0].length, blocks = ceil_div(n, BLOCK<A>), dv = s.value_channels;
  const int threads = p.exec.threads;
  const uint8_t* masks[2] = {};
  for (int m = 0; p.masks && m < 2; ++m) masks[m] = reinterpret_cast<const uint8_t*>(p.masks[m]);
  const Form form = Form::kronecker;
  const KeySet<T> first(s, form, o[1], o[3], masks[0], s.causal, p.windows[0], threads);
  const KeySet<T> second(s, form, o[2], o[4], masks[1], s.causal, p.windows[1], threads);
  if (!first.good() || !second.good()) return kOutOfMemory;
  Failure failure;
  parallel_for(s.batch * s.heads * blocks, 1, 1, threads, [&](int64_t begin, int64_t end) {
    const Scratch<A> memory(Queries::size(s.channels, dv));
    if (!memory.get()) return failure.raise();
    Queries block({}, memory.get(), s.channels, dv);
    const Pairs<T, Power<A>> pairs{s, form, first, second};
    for (int64_t w = begin; w < end; ++w) {
      const int64_t head = w / blocks, at = w % blocks;
      const int64_t i = (at % 2 ? blocks - 1 - at / 2 : at / 2) * BLOCK<A>;
      block.weight = {static_cast<const A*>(p.coefficients) + head * (p.degree + 1), p.degree};
      pairs.run_block(block, o[0], head / s.heads, head % s.heads, i);
      for (int64_t l = 0; l < std::min<int64_t>(BLOCK<A>, n - i); ++l) {
        const int64_t row = head * n + i + l;
        static_cast<A*>(p.denominator)[row] = block.total[l / LANES<A>][l % LANES<A>];
        A* const to = static_cast<A*>(p.numerator) + row * dv;
        for (int64_t c = 0; c < dv; ++c) to[c] = block.sums[c * BLOCK<A> + l];
      }
    }
  });
  return failure.raised ? kOutOfMemory : kOk;
}

template <class T>
int polynomial_as(const Polynomial& p) {
  if (p.shape.batch * p.shape.heads * p.operands[0].length == 0) return kOk;
  if (!is_bounded(p)) return whole_as<T>(p);
  return prefers_sums(p, EXPENSE) ? sweep_as<T>(p) : pairs_as<T>(p);
}

}  // namespace

int polynomial(const Polynomial& p) { SUBLIMATE_KRONECKER_ATTENTION_RUN(polynomial_as, p); }

}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
