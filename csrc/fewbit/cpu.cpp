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
#include "common/philox.h"
#include "common/simd.h"
#include "fewbit/fewbit_math.h"
#include "fewbit/kernels.h"

SUBLIMATE_DECLARE_FEWBIT(SUBLIMATE_ISA)

namespace sublimate::fewbit::SUBLIMATE_ISA {
namespace {

constexpr int64_t GRAIN = 16384;  // elements below which a thread costs more than it brings

// Most borders that the vector search below takes: a decision tree of depth 5.
constexpr int DEPTH = 5;

template <class A>
struct Tables {
  // Borders rounded to the element type, and what each changes: crossing border i flips the bits of
  // code[i] ^ code[i + 1], so code(x) = code[0] ^ (xor of flips of the borders below x).
  A border[MAX_BORDERS];
  uint32_t flip[MAX_BORDERS];
  uint32_t first;
  int count;
  // The same as a decision tree. Level l compares x with node[l][path], where bit k of path is the
  // outcome at level k, and leaf[path] is the code: each lookup is one vector permute.
  int depth;
  A node[DEPTH][16];
  uint32_t leaf[1 << DEPTH];
  bool ordered;  // 2^bits intervals with codes 0, 1, 2 ...: depth == bits, outcomes are the bits
};

template <class T, class A>
Tables<A> read_tables(const Borders& table, int bits) {
  Tables<A> t;
  t.count = table.count;
  t.first = table.codes[0];
  for (int i = 0; i < table.count; ++i) {
    t.border[i] = round_to<T>(static_cast<const A*>(table.borders)[i]);
    t.flip[i] = table.codes[i] ^ table.codes[i + 1];
  }
  t.ordered = table.count + 1 == 1 << bits;
  for (int i = 0; i <= table.count; ++i) t.ordered = t.ordered && table.codes[i] == i;
  t.depth = 0;
  while ((1 << t.depth) <= table.count) ++t.depth;
  if (t.depth > DEPTH) return t;
  // A path means the interval sum of bit_k << (depth - 1 - k); missing borders are +inf, above
  // which only NaN goes, and NaN belongs to the last interval.
  const auto interval = [&](int path, int levels) {
    int at = 0;
    for (int k = 0; k < levels; ++k) at += ((path >> k) & 1) << (t.depth - 1 - k);
    return at;
  };
  for (int level = 0; level < t.depth; ++level) {
    for (int path = 0; path < (1 << level); ++path) {
      const int i = interval(path, level) + (1 << (t.depth - 1 - level)) - 1;
      t.node[level][path] = i < t.count ? t.border[i] : A(INFINITY);
    }
  }
  for (int path = 0; path < (1 << t.depth); ++path) {
    t.leaf[path] = table.codes[std::min(interval(path, t.depth), t.count)];
  }
  return t;
}

// Levels padded to 16 so that a vector permute may read all of them.
template <class A>
struct Levels {
  A value[MAX_LEVELS];
};

template <class A>
Levels<A> read_levels(const void* levels, int bits) {
  Levels<A> t{};
  std::memcpy(t.value, levels, sizeof(A) << bits);
  return t;
}

inline int words_of(int n) { return (n + GROUP - 1) / GROUP; }

// ---------------------------------------------------------------------------------- codes -> words

// code[0 .. n) to bit planes; code has room to the next multiple of 32 and is padded with zeros
// here.
inline void pack_block(uint32_t* code, int n, int bits, uint32_t* packed) {
  if (n <= 0) return;
  const int groups = words_of(n);
  for (int j = n; j < groups * GROUP; ++j) code[j] = 0;
  for (int g = 0; g < groups; ++g) {
    const uint32_t* c = code + g * GROUP;
#if defined(__AVX512F__)
    const __m512i low = _mm512_loadu_si512(c), high = _mm512_loadu_si512(c + 16);
    for (int p = 0; p < bits; ++p) {
      const __m512i bit = _mm512_set1_epi32(1 << p);
      packed[g * bits + p] = uint32_t(_mm512_test_epi32_mask(low, bit)) |
                             uint32_t(_mm512_test_epi32_mask(high, bit)) << 16;
    }
#else
    for (int p = 0; p < bits; ++p) {
      uint32_t word = 0;
      for (int lane = 0; lane < GROUP; ++lane) word |= ((c[lane] >> p) & 1u) << lane;
      packed[g * bits + p] = word;
    }
#endif
  }
}

#if defined(__AVX512F__)
// Half a word of plane p: the mask goes to memory without passing through integer registers.
SUBLIMATE_HD void store_mask(uint32_t* word, int half, __mmask16 mask) {
  std::memcpy(reinterpret_cast<char*>(word) + 2 * half, &mask, sizeof mask);
}

// Bit planes of the 32 codes in two vectors.
SUBLIMATE_HD void pack32(const __m512i* code, int bits, uint32_t* word) {
  for (int p = 0; p < bits; ++p) {
    const __m512i bit = _mm512_set1_epi32(1 << p);
    for (int half = 0; half < 2; ++half) {
      store_mask(word + p, half, _mm512_test_epi32_mask(code[half], bit));
    }
  }
}

// Outcome of one level for lanes whose path so far is given.
SUBLIMATE_HD __mmask16 outcome(Vec x, const float* node, __m512i path) {
  const __m512 border = _mm512_permutexvar_ps(path, _mm512_loadu_ps(node));
  return _mm512_cmp_ps_mask(x.lanes, border, _CMP_NLE_UQ);
}

// Codes of 32 elements by the decision tree, packed; depth is a compile-time constant. With
// `ordered` the outcomes, first level to last, are the code's bits, highest to lowest: no leaves
// are read.
template <int depth, bool ordered>
SUBLIMATE_HD void search32(const Vec* x, const Tables<float>& t, int bits, uint32_t* word) {
  __m512i code[2];
  for (int half = 0; half < 2; ++half) {
    __mmask16 above = _mm512_cmp_ps_mask(x[half].lanes, _mm512_set1_ps(t.node[0][0]), _CMP_NLE_UQ);
    if (ordered) store_mask(word + depth - 1, half, above);
    __m512i path = _mm512_maskz_set1_epi32(above, 1);
    for (int level = 1; level < depth; ++level) {
      above = outcome(x[half], t.node[level], path);
      if (ordered) store_mask(word + depth - 1 - level, half, above);
      if (!ordered || level + 1 < depth) {
        path = _mm512_mask_or_epi32(path, above, path, _mm512_set1_epi32(1 << level));
      }
    }
    if (!ordered) {
      const __m512i low = _mm512_loadu_si512(t.leaf);
      code[half] = depth < 5
                       ? _mm512_permutexvar_epi32(path, low)
                       : _mm512_permutex2var_epi32(low, path, _mm512_loadu_si512(t.leaf + 16));
    }
  }
  if (!ordered) pack32(code, bits, word);
}

SUBLIMATE_HD void encode64(const Vec* x, const Tables<float>& t, int bits, uint32_t* word) {
  for (int g = 0; g < 2; ++g, x += 2, word += bits) {
    switch (t.ordered ? -t.depth : t.depth) {
#define SUBLIMATE_SEARCH(depth)               \
  case depth:                                 \
    search32<depth, false>(x, t, bits, word); \
    break;                                    \
  case -depth:                                \
    search32<depth, true>(x, t, bits, word);  \
    break;
      SUBLIMATE_SEARCH(1)
      SUBLIMATE_SEARCH(2)
      SUBLIMATE_SEARCH(3)
      SUBLIMATE_SEARCH(4)
      SUBLIMATE_SEARCH(5)
#undef SUBLIMATE_SEARCH
      default: {
        __m512i code[2];
        for (int half = 0; half < 2; ++half) {
          code[half] = _mm512_set1_epi32(int(t.first));
          for (int i = 0; i < t.count; ++i) {
            const __mmask16 above =
                _mm512_cmp_ps_mask(x[half].lanes, _mm512_set1_ps(t.border[i]), _CMP_NLE_UQ);
            code[half] = _mm512_mask_xor_epi32(code[half], above, code[half],
                                               _mm512_set1_epi32(int(t.flip[i])));
          }
        }
        pack32(code, bits, word);
      }
    }
  }
}
#endif

// Codes of x[0 .. n) by the codebook, packed.
template <class A>
inline void encode_block(const A* x, int n, const Tables<A>& t, int bits, uint32_t* packed) {
  int done = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    for (; done + 64 <= n; done += 64) {
      const float* from = x + done;
      const Vec v[4] = {load16(from), load16(from + 16), load16(from + 32), load16(from + 48)};
      encode64(v, t, bits, packed + done / GROUP * bits);
    }
    if (done == n) return;
  }
#endif
  uint32_t code[BLOCK];
  const int rest = n - done;
  for (int j = 0; j < rest; ++j) code[j] = t.first;
  for (int i = 0; i < t.count; ++i) {
    const A border = t.border[i];
    const uint32_t flip = t.flip[i];
    for (int j = 0; j < rest; ++j) code[j] ^= x[done + j] <= border ? 0u : flip;
  }
  pack_block(code, rest, bits, packed + done / GROUP * bits);
}

// Stochastic rounding of v[0 .. n) between adjacent levels. Element j has global index first + j.
template <class A>
void encode_stochastic_block(const A* v, int n, int64_t first, int64_t seed,
                             const Levels<A>& levels, int bits, uint32_t* packed) {
  uint32_t code[BLOCK], word[BLOCK];
  for (int j = 0; j < (n + 3) / 4; ++j) {  // blocks start at multiples of 512
    const Philox4 r = philox_words(uint64_t(seed), uint64_t(first) / 4 + uint64_t(j));
    for (int k = 0; k < 4; ++k) word[4 * j + k] = r.w[k];
  }
  const int inner = (1 << bits) - 2;
  for (int j = 0; j < n; ++j) code[j] = 0;
  for (int i = 1; i <= inner; ++i) {
    const A level = levels.value[i];
    for (int j = 0; j < n; ++j) code[j] += v[j] < level ? 0u : 1u;
  }
  for (int j = 0; j < n; ++j) {
    const A low = levels.value[code[j]], high = levels.value[code[j] + 1];
    code[j] += A(philox_uniform(word[j])) * (high - low) < v[j] - low ? 1u : 0u;
  }
  pack_block(code, n, bits, packed);
}

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
template <class T>
struct Value64 {
  const Vec* x;
  T* y;
  bool stream;
  Vec a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    for (int q = 0; q < 4; q += 2) {
      store32(y + 16 * q, value<F>(x[q], a, b), value<F>(x[q + 1], a, b), stream);
    }
  }
};

struct Exact64 {
  const Vec* x;
  uint32_t* word;
  Vec a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    if constexpr (is_exact(F)) {
      for (int q = 0; q < 4; q += 2) {
        word[q / 2] = uint32_t(exact_bit<F>(x[q], a, b).bits) |
                      uint32_t(exact_bit<F>(x[q + 1], a, b).bits) << 16;
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
      for (int j = 0; j < n; j += 64) {
        if (j + 64 <= n) {
          values64(x + j, y + j);
        } else {
          T padded[64] = {}, result[64];
          std::copy_n(x + j, n - j, padded);
          values64(padded, result);
          std::copy_n(result, n - j, y + j);
        }
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
        for (; base + 64 <= end; base += 64) {
          step64(x + base, y ? y + base : nullptr, stream, k.packed + base / GROUP * k.bits);
        }
        if (stream) _mm_sfence();  // the writes must be seen by whoever waits for this thread
        // The rest goes through a padded copy, so that an element's result does not depend on where
        // it stands.
        if (const int n = int(end - base); n > 0) {
          alignas(64) T xs[64] = {}, ys[64];
          uint32_t words[2 * MAX_BITS];
          std::copy_n(x + base, n, xs);
          step64(xs, ys, false, words);
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
  void values64(const T* x, T* y) const {
    const Vec v[4] = {load16(x), load16(x + 16), load16(x + 32), load16(x + 48)};
    visit(k.fn, Value64<T>{v, y, false, Vec(a), Vec(b)});
  }

  // 64 elements in registers: short enough for the out-of-order window to span several, so that the
  // arithmetic of one overlaps the comparisons and permutes of another.
  SUBLIMATE_HD void step64(const T* x, T* y, bool stream, uint32_t* word) const {
    const Vec v[4] = {load16(x), load16(x + 16), load16(x + 32), load16(x + 48)};
    if (y) visit(k.fn, Value64<T>{v, y, stream, Vec(a), Vec(b)});
    if (coded) {
      encode64(v, table, k.bits, word);
    } else if (exact) {
      visit(k.fn, Exact64{v, word, Vec(a_bit), Vec(b)});
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
      const __m512 table = _mm512_loadu_ps(levels.value);
      const bool stream = worth_streaming(dx, k.n * int64_t(sizeof(T)));
      // Four groups are read before one is written: a read of the next elements whose address
      // agrees with a pending write in its low 12 bits waits for it.
      constexpr int AHEAD = 4;
      for (; base + AHEAD * GROUP <= end; base += AHEAD * GROUP) {
        Vec g[2 * AHEAD];
        for (int q = 0; q < 2 * AHEAD; ++q) g[q] = load16(grad + base + 16 * q);
        for (int q = 0; q < AHEAD; ++q) {
          __m512i code[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
          codes32(k.packed + (base / GROUP + q) * k.bits, k.bits, code);
          const Vec low = _mm512_permutexvar_ps(code[0], table);
          const Vec high = _mm512_permutexvar_ps(code[1], table);
          store32(dx + base + q * GROUP, low * g[2 * q], high * g[2 * q + 1], stream);
        }
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
