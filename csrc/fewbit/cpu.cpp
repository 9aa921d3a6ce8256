// Few-bit activations on the CPU. Compiled once per instruction-set level (common/isa.h).
//
// A thread walks its elements in blocks of 512 that stay in L1: load and widen, f, narrow and
// store, then the codes. The codes of a block are found and packed in one pass: with AVX-512,
// comparisons are mask registers, which are the bit planes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/error.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "fewbit/encode.h"
#include "fewbit/fewbit_math.h"
#include "fewbit/kernels.h"

SUBLIMATE_DECLARE_FEWBIT(SUBLIMATE_ISA)

namespace sublimate::fewbit::SUBLIMATE_ISA {
namespace {

constexpr int64_t GRAIN = 16384;  // elements below which a thread costs more than it brings

// ---------------------------------------------------------------------------------- words ->
// levels

#if defined(__AVX512F__)
// Codes of 32 elements into two vectors, from zero: a word of a plane is two lane masks.
SUBLIMATE_HD void codes32(const uint32_t* word, int bits, __m512i* code) {
  for (int p = 0; p < bits; ++p) {
    const __m512i bit = _mm512_set1_epi32(1 << p);
    code[0] = _mm512_mask_or_epi32(code[0], __mmask16(word[p]), code[0], bit);
    code[1] = _mm512_mask_or_epi32(code[1], __mmask16(word[p] >> 16), code[1], bit);
  }
}
#endif

// levels[code] of n elements; q has room to the next multiple of 32.
template <class A>
void decode_block(const uint32_t* packed, int n, int bits, const Levels<A>& levels, A* q) {
  for (int g = 0; g < words_of(n); ++g) {
    const uint32_t* word = packed + g * bits;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      const __m512 table = _mm512_loadu_ps(levels.value);
      __m512i c[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      codes32(word, bits, c);
      _mm512_storeu_ps(q + g * GROUP, _mm512_permutexvar_ps(c[0], table));
      _mm512_storeu_ps(q + g * GROUP + 16, _mm512_permutexvar_ps(c[1], table));
      continue;
    }
#endif
    uint32_t code[GROUP] = {};
    for (int p = 0; p < bits; ++p) {
      for (int lane = 0; lane < GROUP; ++lane) code[lane] |= ((word[p] >> lane) & 1u) << p;
    }
    for (int lane = 0; lane < GROUP; ++lane) q[g * GROUP + lane] = levels.value[code[lane]];
  }
}

// ------------------------------------------------------------------------------------------
// visitors

template <class A>
struct ValueBlock {
  const A* x;
  A* y;
  int n;
  A a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    for (int j = 0; j < n; ++j) y[j] = value<F>(x[j], a, b);
  }
};

template <class A>
struct DerivativeBlock {
  const A* x;
  A* d;
  int n;
  A a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    if constexpr (!is_exact(F)) {
      for (int j = 0; j < n; ++j) d[j] = derivative<F>(x[j], a, b);
    }
  }
};

template <class A>
struct ExactBlock {
  const A* x;
  uint32_t* code;
  int n;
  A a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    if constexpr (is_exact(F)) {
      for (int j = 0; j < n; ++j) code[j] = exact_bit<F>(x[j], a, b) ? 1u : 0u;
    }
  }
};

#if defined(__AVX512F__)
// f of x[0 .. n), n a multiple of 64: its constants stay in registers.
template <class T>
struct ValueRun {
  const T* x;
  T* y;
  int n;
  bool stream;
  Vec a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    for (int j = 0; j < n; j += 32) {
      const VecPair v = load_pair(x + j);
      store_pair(y + j, {value<F>(v.first, a, b), value<F>(v.second, a, b)}, stream);
    }
  }
};

template <class T>
struct ExactRun {
  const T* x;
  uint32_t* word;
  int n;
  Vec a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    if constexpr (is_exact(F)) {
      for (int j = 0; j < n; j += GROUP) {
        word[j / GROUP] = uint32_t(exact_bit<F>(load16(x + j), a, b).bits) |
                          uint32_t(exact_bit<F>(load16(x + j + 16), a, b).bits) << 16;
      }
    }
  }
};

// Zeroes the lanes from n on in the words of 64 elements.
inline void clear_lanes(uint32_t* word, int n, int bits) {
  for (int g = 0; g < 2; ++g) {
    const int used = n - g * GROUP;
    const uint32_t keep = used >= GROUP ? ~0u : used <= 0 ? 0u : (1u << used) - 1;
    for (int p = 0; p < bits; ++p) word[g * bits + p] &= keep;
  }
}
#endif

// -------------------------------------------------------------------------------------------
// kernels

template <class T>
struct ForwardLoop {
  using A = arith_t<T>;
  const Forward& k;
  const Tables<A>& table;
  const Levels<A>& levels;
  bool coded, exact;
  int64_t seed;
  A a, a_bit, b;

  // Elements base .. base + n, n <= BLOCK.
  void step(int64_t base, int n) const {
    A xs[BLOCK], ys[BLOCK];
    const T* x = static_cast<const T*>(k.x);
    const A* in = view_block(x + base, xs, n);
    if (k.y != nullptr) values(in, x + base, static_cast<T*>(k.y) + base, n);
    if (k.bits == 0) return;
    uint32_t* packed = k.packed + base / GROUP * k.bits;
    if (coded) {
      encode_block(in, n, table, k.bits, packed);
    } else if (exact) {
      uint32_t code[BLOCK];
      visit(k.fn, ExactBlock<A>{in, code, n, a_bit, b});
      pack_block(code, n, k.bits, packed);
    } else {
      visit(k.fn, DerivativeBlock<A>{in, ys, n, a, b});
      encode_stochastic_block(ys, n, base, seed, levels, k.bits, packed);
    }
  }

  // f of n elements, given widened and as they are. The same numbers as the register path's, so
  // that a result does not depend on which codes are asked for with it.
  void values(const A* in, const T* x, T* y, int n) const {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      const int whole = n / 64 * 64, rest = n - whole;
      visit(k.fn, ValueRun<T>{x, y, whole, false, Vec(a), Vec(b)});
      if (rest > 0) {
        T padded[64] = {}, result[64];
        std::copy_n(x + whole, rest, padded);
        visit(k.fn, ValueRun<T>{padded, result, 64, false, Vec(a), Vec(b)});
        std::copy_n(result, rest, y + whole);
      }
      return;
    }
#endif
    (void)x;
    A ys[BLOCK];
    visit(k.fn, ValueBlock<A>{in, ys, n, a, b});
    store_block(ys, y, n);
  }

  void range(int64_t begin, int64_t end) const {
    int64_t base = begin;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      if (coded || exact || k.bits == 0) {
        const T* x = static_cast<const T*>(k.x);
        T* y = static_cast<T*>(k.y);
        const bool stream = y && worth_streaming(y, k.n * int64_t(sizeof(T)));
        while (base + 64 <= end) {
          const int n = int(std::min<int64_t>(BLOCK, (end - base) / 64 * 64));
          run(x + base, y ? y + base : nullptr, n, stream, k.packed + base / GROUP * k.bits);
          base += n;
        }
        if (stream) _mm_sfence();  // the writes must be seen by whoever waits for this thread
        // The rest goes through a padded copy, so that an element's result does not depend on where
        // it stands.
        if (const int n = int(end - base); n > 0) {
          alignas(64) T xs[64] = {}, ys[64];
          uint32_t words[2 * MAX_BITS];
          std::copy_n(x + base, n, xs);
          run(xs, ys, 64, false, words);
          if (y) std::copy_n(ys, n, y + base);
          clear_lanes(words, n, k.bits);
          std::copy_n(words, words_of(n) * k.bits, k.packed + base / GROUP * k.bits);
        }
        return;
      }
    }
#endif
    for (; base < end; base += BLOCK) step(base, int(std::min<int64_t>(BLOCK, end - base)));
  }

#if defined(__AVX512F__)
  // n elements, a multiple of 64, at most a block: first all values, then all codes, so that each
  // loop keeps its constants in registers; the block is read twice, the second time from L1.
  void run(const T* x, T* y, int n, bool stream, uint32_t* word) const {
    if (stream) fetch_block(x, n * sizeof(T));
    if (y) visit(k.fn, ValueRun<T>{x, y, n, stream, Vec(a), Vec(b)});
    // A whole block's words are whole cache lines, 64 bytes for each bit.
    alignas(64) uint32_t lines[BLOCK / GROUP * MAX_BITS];
    const bool aside = stream && n == BLOCK && reinterpret_cast<uintptr_t>(word) % 64 == 0;
    uint32_t* to = aside ? lines : word;
    if (coded) {
      encode_run(x, n, table, k.bits, to);
    } else if (exact) {
      visit(k.fn, ExactRun<T>{x, to, n, Vec(a_bit), Vec(b)});
    }
    if (!aside) return;
    for (int line = 0; line < k.bits; ++line) {
      store64bytes(word + 16 * line, _mm512_load_si512(lines + 16 * line), true);
    }
  }
#endif
};

template <class T>
int forward_as(const Forward& k) {
  using A = arith_t<T>;
  const bool stochastic = k.bits > 0 && k.seed != nullptr;
  const bool exact = k.bits > 0 && is_exact(Fn(k.fn));
  const bool coded = k.bits > 0 && !stochastic && !exact;
  const Tables<A> table = coded ? read_tables<T, A>(k.table, k.bits) : Tables<A>{};
  const Levels<A> levels = stochastic ? read_levels<A>(k.levels, k.bits) : Levels<A>{};
  const ForwardLoop<T> loop{k,
                            table,
                            levels,
                            coded,
                            exact,
                            stochastic ? *k.seed : 0,
                            value_parameter<T>(k.fn, A(k.a)),
                            bit_parameter<T>(k.fn, A(k.a)),
                            A(k.b)};
  parallel_for(k.n, BLOCK, GRAIN, k.exec.threads,
               [&](int64_t begin, int64_t end) { loop.range(begin, end); });
  return kOk;
}

#if defined(__AVX512F__)
// levels[code] * grad of n elements, a multiple of 128. With the number of bits known here a word
// costs no loop.
template <int bits, class T>
inline void backward_run(const uint32_t* packed, const T* grad, T* dx, int n, __m512 table,
                         bool stream) {
  if (stream) {
    fetch_block(grad, n * int64_t(sizeof(T)));
    fetch_block(packed, n / GROUP * bits * int64_t(sizeof(uint32_t)));
  }
  // Four groups are read before one is written: a read of the next elements whose address agrees
  // with a pending write in its low 12 bits waits for it.
  constexpr int AHEAD = 4;
  for (int base = 0; base < n; base += AHEAD * GROUP) {
    Vec g[2 * AHEAD];
    for (int q = 0; q < 2 * AHEAD; ++q) g[q] = load16(grad + base + 16 * q);
    for (int q = 0; q < AHEAD; ++q) {
      __m512i code[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      codes32(packed + (base / GROUP + q) * bits, bits, code);
      const Vec low = _mm512_permutexvar_ps(code[0], table);
      const Vec high = _mm512_permutexvar_ps(code[1], table);
      store32(dx + base + q * GROUP, low * g[2 * q], high * g[2 * q + 1], stream);
    }
  }
}

template <class T>
using BackwardRun = void (*)(const uint32_t*, const T*, T*, int, __m512, bool);
#endif

template <class T>
int backward_as(const Backward& k) {
  using A = arith_t<T>;
  const Levels<A> levels = read_levels<A>(k.levels, k.bits);
  const T* grad = static_cast<const T*>(k.grad);
  T* dx = static_cast<T*>(k.dx);
  parallel_for(k.n, BLOCK, GRAIN, k.exec.threads, [&](int64_t begin, int64_t end) {
    int64_t base = begin;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      constexpr BackwardRun<T> runs[MAX_BITS] = {backward_run<1, T>, backward_run<2, T>,
                                                 backward_run<3, T>, backward_run<4, T>};
      const __m512 table = _mm512_loadu_ps(levels.value);
      const bool stream = worth_streaming(dx, k.n * int64_t(sizeof(T)));
      while (base + 128 <= end) {
        const int n = int(std::min<int64_t>(BLOCK, (end - base) / 128 * 128));
        runs[k.bits - 1](k.packed + base / GROUP * k.bits, grad + base, dx + base, n, table,
                         stream);
        base += n;
      }
      if (stream) _mm_sfence();
    }
#endif
    A q[BLOCK], gs[BLOCK];
    for (; base < end; base += BLOCK) {
      const int n = int(std::min<int64_t>(BLOCK, end - base));
      decode_block(k.packed + base / GROUP * k.bits, n, k.bits, levels, q);
      const A* g = view_block(grad + base, gs, n);
      for (int j = 0; j < n; ++j) q[j] *= g[j];
      store_block(q, dx + base, n);
    }
  });
  return kOk;
}

// scale[row] of elements base .. base + n, spread over a block; 0 stays 0 (its inverse is taken 0).
inline void spread_scale(const float* scale, int64_t inner, int64_t base, int n, float* s) {
  int64_t row = base / inner, left = inner - base % inner;
  for (int j = 0; j < n; ++j) {
    s[j] = scale[row];
    if (--left == 0) {
      ++row;
      left = inner;
    }
  }
}

template <class T>
int gated_forward_as(const GatedForward& k) {
  using A = arith_t<T>;
  // Codes of up are found on the fp32 quotient, so their borders are not rounded to T.
  Tables<A> table{};
  if (k.bits > 0) {
    table = k.scale ? read_tables<A, A>(k.table, k.bits) : read_tables<T, A>(k.table, k.bits);
  }
  const T* gate = static_cast<const T*>(k.gate);
  const T* up = static_cast<const T*>(k.up);
  T* y = static_cast<T*>(k.y);
  parallel_for(k.n, BLOCK, GRAIN, k.exec.threads, [&](int64_t begin, int64_t end) {
    A gs[BLOCK], us[BLOCK], ys[BLOCK];
    float s[BLOCK];
    for (int64_t base = begin; base < end; base += BLOCK) {
      const int n = int(std::min<int64_t>(BLOCK, end - base));
      const A* g = view_block(gate + base, gs, n);
      const A* u = view_block(up + base, us, n);
      visit_gated(k.fn, ValueBlock<A>{g, ys, n, A(0), A(0)});
      for (int j = 0; j < n; ++j) ys[j] *= u[j];
      store_block(ys, y + base, n);
      if (k.bits == 0) continue;
      uint32_t* packed = k.packed + base / GROUP * k.bits;
      if (k.scale == nullptr) {
        encode_block(g, n, table, k.bits, packed);
      } else {
        spread_scale(k.scale, k.inner, base, n, s);
        for (int j = 0; j < n; ++j) ys[j] = s[j] == 0.0f ? A(0) : u[j] / A(s[j]);
        encode_block(ys, n, table, k.bits, packed);
      }
    }
  });
  return kOk;
}

template <class T>
int gated_backward_as(const GatedBackward& k) {
  using A = arith_t<T>;
  const Levels<A> levels = read_levels<A>(k.levels, k.bits);
  const Levels<A> values = k.scale ? Levels<A>{} : read_levels<A>(k.values, k.bits);
  const T* dy = static_cast<const T*>(k.dy);
  const T* kept = static_cast<const T*>(k.kept);
  T* dgate = static_cast<T*>(k.dgate);
  T* dup = static_cast<T*>(k.dup);
  parallel_for(k.n, BLOCK, GRAIN, k.exec.threads, [&](int64_t begin, int64_t end) {
    A gs[BLOCK], ks[BLOCK], q[BLOCK], f[BLOCK];
    float s[BLOCK];
    for (int64_t base = begin; base < end; base += BLOCK) {
      const int n = int(std::min<int64_t>(BLOCK, end - base));
      const A* g = view_block(dy + base, gs, n);
      const A* v = view_block(kept + base, ks, n);
      const uint32_t* packed = k.packed + base / GROUP * k.bits;
      if (k.scale == nullptr) {
        if (dgate != nullptr) {
          decode_block(packed, n, k.bits, levels, q);
          for (int j = 0; j < n; ++j) q[j] = g[j] * v[j] * q[j];
          store_block(q, dgate + base, n);
        }
        if (dup != nullptr) {
          decode_block(packed, n, k.bits, values, q);
          for (int j = 0; j < n; ++j) q[j] = g[j] * q[j];
          store_block(q, dup + base, n);
        }
      } else {
        if (dgate != nullptr) {
          decode_block(packed, n, k.bits, levels, q);
          spread_scale(k.scale, k.inner, base, n, s);
          visit_gated(k.fn, DerivativeBlock<A>{v, f, n, A(0), A(0)});
          for (int j = 0; j < n; ++j) q[j] = g[j] * f[j] * (q[j] * A(s[j]));
          store_block(q, dgate + base, n);
        }
        if (dup != nullptr) {
          visit_gated(k.fn, ValueBlock<A>{v, f, n, A(0), A(0)});
          for (int j = 0; j < n; ++j) f[j] *= g[j];
          store_block(f, dup + base, n);
        }
      }
    }
  });
  return kOk;
}

}  // namespace

int forward(const Forward& k) { SUBLIMATE_FEWBIT_RUN(forward_as, k); }
int backward(const Backward& k) { SUBLIMATE_FEWBIT_RUN(backward_as, k); }
int gated_forward(const GatedForward& k) { SUBLIMATE_FEWBIT_RUN(gated_forward_as, k); }
int gated_backward(const GatedBackward& k) { SUBLIMATE_FEWBIT_RUN(gated_backward_as, k); }

}  // namespace sublimate::fewbit::SUBLIMATE_ISA
