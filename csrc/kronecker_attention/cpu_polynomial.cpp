// Polynomial attention of any order, forward. Without causality every key set enters through the
// sums of its features, r x (Dv + 1); their product is applied to the features of the queries.

#include "kronecker_attention/cpu_factors.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

template <class T>
struct Whole {
  using A = arith_t<T>;
  const Polynomial& p;
  const Shape& s = p.shape;
  const Operand *queries = p.operands, *keys = queries + 1, *values = keys + p.sets;
  const Place place{s.channels, p.degree};
  const int64_t r = place.count(), wide = round_up(s.value_channels, LANES<A>);
  const int64_t n = queries[0].length, group = s.heads / s.kv_heads;
  const int64_t chunks = divide_up(r, CHUNK);
  const int64_t sums_size = r * wide + round_up(r, 16);
  const A* weight = nullptr;
  const uint8_t* degree = nullptr;

  // Sums that begin at `memory`.
  Sums<A> sums(A* memory, int64_t which) const {
    A* const at = memory + which * sums_size;
    return {at, at + r * wide};
  }

  // Features of `chunk` of the product of all sets' sums, weighted for query head h.
  void combine(int64_t chunk, const A* factors, const A* coefficients, const Sums<A>& to) const {
    const int64_t begin = chunk * CHUNK, end = std::min(r, begin + CHUNK);
    for (int64_t f = begin; f < end; ++f) {
      const A w = weight[f] * coefficients[degree[f]];
      A one = w;
      for (int64_t c = 0; c < wide; ++c) to.values[f * wide + c] = w;
      for (int m = 0; m < p.sets; ++m) {
        const A* from = factors + m * sums_size;
        one *= from[r * wide + f];
        for (int64_t c = 0; c < wide; ++c) to.values[f * wide + c] *= from[f * wide + c];
      }
      to.ones[f] = one;
    }
  }

  void answer(int64_t b, int64_t h, int64_t first, const Sums<A>& weights, A* memory) const {
    A* const x = memory;
    A* const sums = x + (s.channels + 1) * ACROSS<A>;
    A* const ones = sums + s.value_channels * ACROSS<A>;
    load_variables<T>(queries[0], b, h, first, ACROSS<A>, s.channels, nullptr, x);
    apply_features(place, x, s.value_channels, wide, weights, sums, ones, ones + ACROSS<A>);
    const int64_t row = (b * s.heads + h) * n + first;
    const int64_t count = std::min<int64_t>(ACROSS<A>, n - first);
    A* numerator = static_cast<A*>(p.numerator) + row * s.value_channels;
    std::copy_n(ones, count, static_cast<A*>(p.denominator) + row);
    for (int64_t l = 0; l < count; ++l) {
      for (int64_t c = 0; c < s.value_channels; ++c) *numerator++ = sums[c * ACROSS<A> + l];
    }
  }
  int64_t answer_memory() const {
    return (s.channels + s.value_channels + 2) * ACROSS<A> + apply_memory<A>(p.degree);
  }
};

template <class T>
int polynomial_as(const Polynomial& p) {
  using A = arith_t<T>;
  const Shape& s = p.shape;
  const int64_t heads = s.batch * s.kv_heads;
  if (heads == 0 || p.operands[0].length == 0) return kOk;
  bool bounded = s.causal;
  for (int m = 0; m < p.sets; ++m) bounded |= p.windows[m] > 0;
  if (bounded) return kUnsupported;
  const Place place(s.channels, p.degree);
  const Scratch<A> weight(place.count());
  const Scratch<uint8_t> degree(place.count());
  if (!weight.get() || !degree.get()) return kOutOfMemory;
  monomial_weights(place, s.scale, 0, place.count(), weight.get(), degree.get());
  Whole<T> w{p};
  w.weight = weight.get();
  w.degree = degree.get();
  const int threads = p.exec.threads;

  // A wave: heads of the key sets worked on together.
  Summands<A> rows[MAX_SETS];
  int64_t packed = 0;
  for (int m = 0; m < p.sets; ++m) {
    rows[m] = Summands<A>::of(w.keys[m].length);
    packed += rows[m].x_size(s.channels) + rows[m].values_size(w.wide);
  }
  const int64_t each = packed + (p.sets + w.group) * w.sums_size;
  const int64_t wave = std::max<int64_t>(1, std::min(heads, TOGETHER / each));
  const Scratch<A> memory(wave * each);
  if (!memory.get()) return kOutOfMemory;
  A* const factors = memory.get() + wave * packed;            // [wave, sets] sums
  A* const products = factors + wave * p.sets * w.sums_size;  // [wave, group] sums
  const auto at = [&](int64_t head, int m) {
    Summands<A> r = rows[m];
    r.x = memory.get() + head * packed;
    for (int i = 0; i < m; ++i) r.x += rows[i].x_size(s.channels) + rows[i].values_size(w.wide);
    r.values = r.x + r.x_size(s.channels);
    return r;
  };
  const A* coefficients = static_cast<const A*>(p.coefficients);
  Failure failure;
  for (int64_t first = 0; first < heads; first += wave) {
    const int64_t count = std::min(wave, heads - first);
    parallel_for(count * p.sets, 1, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = first + i / p.sets;
        const int m = int(i % p.sets);
        pack_rows<T>(at(i / p.sets, m), w.keys[m], w.values[m], head / s.kv_heads,
                     head % s.kv_heads, s.channels, s.value_channels, w.wide,
                     p.masks ? reinterpret_cast<const uint8_t*>(p.masks[m]) : nullptr);
      }
    });
    parallel_for(count * p.sets * w.chunks, 1, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch<A> own(sum_memory<A>(p.degree));
      if (!own.get()) return failure.raise();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / w.chunks, f = i % w.chunks * CHUNK;
        sum_features(place, at(which / p.sets, int(which % p.sets)), s.channels, w.wide, f,
                     std::min(CHUNK, w.r - f), w.sums(factors, which), own.get());
      }
    });
    if (failure.raised) return kOutOfMemory;
    parallel_for(count * w.group * w.chunks, 1, 4, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / w.chunks, head = which / w.group;
        const int64_t query_head = (first + head) * w.group + which % w.group;
        w.combine(i % w.chunks, factors + head * p.sets * w.sums_size,
                  coefficients + query_head * (p.degree + 1), w.sums(products, which));
      }
    });
    const int64_t tiles = divide_up(w.n, ACROSS<A>);
    parallel_for(count * w.group * tiles, 1, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch<A> own(w.answer_memory());
      if (!own.get()) return failure.raise();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / tiles, query_head = first * w.group + which;
        w.answer(query_head / s.heads, query_head % s.heads, i % tiles * ACROSS<A>,
                 w.sums(products, which), own.get());
      }
    });
    if (failure.raised) return kOutOfMemory;
  }
  return kOk;
}

}  // namespace

int polynomial(const Polynomial& p) { SUBLIMATE_KRONECKER_ATTENTION_RUN(polynomial_as, p); }

}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
