// Key sets packed for the exact kernels: keys and values of each head in the arithmetic type,
// masked ones left out, so that a mask costs nothing later.
#pragma once

#include "kronecker_attention/cpu.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

struct Range {
  int64_t begin, end;
};

// One head of a key set.
template <class A>
struct Keys {
  const A *keys, *values;   // [count, channels], [count, value_channels], a vector readable beyond
  const int64_t* position;  // [count], ascending: where they came from
  int64_t count;
  bool bounded;    // only keys at or before the query
  int64_t window;  // 0: none
  bool finite;     // nothing is infinite or NaN
  A longest;       // largest norm of a key: 3-norm (kronecker) or 2-norm (strassen); NaN stays

  // Keys that some query of [first, last] reads.
  Range near(int64_t first, int64_t last) const {
    Range r{0, count};
    if (bounded) r.end = std::upper_bound(position, position + count, last) - position;
    if (window > 0) {
      r.begin = std::upper_bound(position, position + r.end, first - window) - position;
    }
    return r;
  }
  Interval readers_of(int64_t key, int64_t first, int64_t lanes) const {
    return readers(position[key] - first, bounded, window, lanes);
  }
};

template <class A>
A norm(const A* x, int64_t n, Form form) {
  A sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    const A a = std::abs(x[c]);
    sum += form == Form::kronecker ? a * a * a : a * a;
  }
  return form == Form::kronecker ? std::cbrt(sum) : std::sqrt(sum);
}

template <class T>
class KeySet {
  using A = arith_t<T>;

 public:
  KeySet(const Shape& s, Form form, const Operand& keys, const Operand& values, const uint8_t* mask,
         bool bounded, int64_t window, int threads)
      : shape_(s),
        length_(keys.length),
        bounded_(bounded || window > 0),
        window_(window),
        keys_(s.batch * s.kv_heads * keys.length * s.channels),
        values_(s.batch * s.kv_heads * keys.length * s.value_channels + LANES<A>),
        longest_(s.batch * s.kv_heads),
        finite_(s.batch * s.kv_heads),
        position_(s.batch * keys.length),
        count_(s.batch) {
    if (!good()) return;
    for (int64_t b = 0; b < s.batch; ++b) {
      int64_t* to = position_.get() + b * length_;
      int64_t n = 0;
      for (int64_t j = 0; j < length_; ++j) {
        if (!mask || mask[b * length_ + j]) to[n++] = j;
      }
      count_.get()[b] = n;
    }
    const int64_t grain = std::max<int64_t>(1, 65536 / (length_ * s.channels + 1));
    parallel_for(s.batch * s.kv_heads, 1, grain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) pack(head, form, keys, values);
    });
  }

  bool good() const {
    return keys_.get() && values_.get() && longest_.get() && finite_.get() && position_.get() &&
           count_.get();
  }

  Keys<A> at(int64_t b, int64_t h) const {
    const int64_t head = b * shape_.kv_heads + h;
    return {keys_.get() + head * length_ * shape_.channels,
            values_.get() + head * length_ * shape_.value_channels,
            position_.get() + b * length_,
            count_.get()[b],
            bounded_,
            window_,
            finite_.get()[head],
            longest_.get()[head]};
  }

 private:
  void pack(int64_t head, Form form, const Operand& keys, const Operand& values) {
    const int64_t b = head / shape_.kv_heads, h = head % shape_.kv_heads;
    const int64_t d = shape_.channels, dv = shape_.value_channels;
    A* to_keys = keys_.get() + head * length_ * d;
    A* to_values = values_.get() + head * length_ * dv;
    A longest = 0;
    for (int64_t i = 0; i < count_.get()[b]; ++i, to_keys += d, to_values += dv) {
      const int64_t j = position_.get()[b * length_ + i];
      load_row(row_of<T>(keys, b, h, j), d, A(1), to_keys);
      load_row(row_of<T>(values, b, h, j), dv, A(1), to_values);
      const A size = norm(to_keys, d, form);
      if (size > longest || size != size) longest = size;
    }
    longest_.get()[head] = longest;
    A sum = 0;  // of zeros, unless something is not finite
    const int64_t n = count_.get()[b];
    for (A* at = to_keys - n * d; at < to_keys; ++at) sum += *at * A(0);
    for (A* at = to_values - n * dv; at < to_values; ++at) sum += *at * A(0);
    finite_.get()[head] = sum == A(0);
  }

  Shape shape_;
  int64_t length_;
  bool bounded_;
  int64_t window_;
  Scratch<A> keys_, values_, longest_;
  Scratch<bool> finite_;
  Scratch<int64_t> position_, count_;
};

// ------------------------------------------------------------------------------ folding

// folded [channels, BLOCK]: the queries of a block together with key j, so that a logit is its
// product with a key of the second set, and a start that is added to it. Both include scale and
// log2 e, as `queries` do.
template <class A>
struct Fold {
  Form form;
  int64_t channels;
  A scale;  // of the keys in Strassen's sum

  SUBLIMATE_HD void run(const A* queries, const A* key, A* folded, Vector<A>* start) const {
    start[0] = start[1] = Vector<A>{};
    if (form == Form::kronecker) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int half = 0; half < 2; ++half) {
          const int64_t at = c * BLOCK<A> + half * LANES<A>;
          tile::store(folded + at, key[c] * tile::load(queries + at));
        }
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        for (int half = 0; half < 2; ++half) {
          const int64_t at = c * BLOCK<A> + half * LANES<A>;
          const Vector<A> q = tile::load(queries + at);
          start[half] += key[c] * q;
          tile::store(folded + at, q + splat(scale * key[c]));
        }
      }
    }
  }
};

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
