// Codes of elements and their packing into bit planes. Part of cpu.cpp: compiled once per
// instruction-set level, everything in its anonymous namespace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/philox.h"
#include "common/simd.h"
#include "common/vec.h"
#include "fewbit/fewbit_math.h"
#include "fewbit/kernels.h"

namespace sublimate::fewbit::SUBLIMATE_ISA {
namespace {

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
  // For elements of 16 bits, whose bit patterns order as integers (order_key): twice the lanes.
  int16_t key[DEPTH][32];
  int16_t leaf16[1 << DEPTH];
  bool ordered;  // 2^bits intervals with codes 0, 1, 2 ...: depth == bits, outcomes are the bits
};

// Integer that orders as the 16-bit float does: magnitude with the sign applied. -0 is just below
// 0.
SUBLIMATE_HD int16_t order_key(uint16_t bits) {
  return int16_t(bits ^ (bits & 0x8000u ? 0x7fffu : 0u));
}

template <class T, class A>
Tables<A> read_tables(const Borders& table, int bits) {
  Tables<A> t{};
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
      if constexpr (sizeof(T) == 2) {
        const A positive_zero = t.node[level][path] + A(0);  // not (x <= -0) is not (x <= 0)
        t.key[level][path] = order_key(store_value<T>(positive_zero).bits);
      }
    }
  }
  for (int path = 0; path < (1 << t.depth); ++path) {
    t.leaf[path] = table.codes[std::min(interval(path, t.depth), t.count)];
    t.leaf16[path] = int16_t(t.leaf[path]);
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

// The same tree over 32 elements of 16 bits, given as order keys with every NaN the largest.
template <int depth, bool ordered>
SUBLIMATE_HD void search32(__m512i key, const Tables<float>& t, int bits, uint32_t* word) {
  __mmask32 above = _mm512_cmpgt_epi16_mask(key, _mm512_set1_epi16(t.key[0][0]));
  if (ordered) word[depth - 1] = above;
  __m512i path = _mm512_maskz_set1_epi16(above, 1);
  for (int level = 1; level < depth; ++level) {
    const __m512i border = _mm512_permutexvar_epi16(path, _mm512_loadu_si512(t.key[level]));
    above = _mm512_cmpgt_epi16_mask(key, border);
    if (ordered) word[depth - 1 - level] = above;
    if (!ordered || level + 1 < depth) {
      path = _mm512_mask_add_epi16(path, above, path, _mm512_set1_epi16(int16_t(1 << level)));
    }
  }
  if (ordered) return;
  const __m512i code = _mm512_permutexvar_epi16(path, _mm512_loadu_si512(t.leaf16));
  for (int p = 0; p < bits; ++p) {
    word[p] = _mm512_test_epi16_mask(code, _mm512_set1_epi16(int16_t(1 << p)));
  }
}

// Order keys of 32 elements whose infinity has the bits `infinite`.
SUBLIMATE_HD __m512i order_keys(const void* x, int infinite) {
  const __m512i bits = _mm512_loadu_si512(x), low = _mm512_set1_epi16(0x7fff);
  const __m512i sign = _mm512_srai_epi16(bits, 15);
  const __mmask32 nan =
      _mm512_cmpgt_epi16_mask(_mm512_and_si512(bits, low), _mm512_set1_epi16(int16_t(infinite)));
  const __m512i key = _mm512_ternarylogic_epi32(bits, sign, low, 0x78);  // bits ^ (sign & low)
  return _mm512_mask_mov_epi16(key, nan, low);
}

// Codes of x[0 .. n), n a multiple of 64, packed: the tree's tables stay in registers.
template <int depth, bool ordered, class T>
inline void search_run(const T* x, int n, const Tables<float>& t, int bits, uint32_t* word) {
  for (int j = 0; j < n; j += GROUP, word += bits) {
    if constexpr (std::is_same_v<T, float>) {
      const Vec v[2] = {load16(x + j), load16(x + j + 16)};
      search32<depth, ordered>(v, t, bits, word);
    } else {
      constexpr int infinite = std::is_same_v<T, half_t> ? 0x7c00 : 0x7f80;
      search32<depth, ordered>(order_keys(x + j, infinite), t, bits, word);
    }
  }
}

template <class T>
inline void scan_run(const T* x, int n, const Tables<float>& t, int bits, uint32_t* word) {
  for (int j = 0; j < n; j += GROUP, word += bits) {
    __m512i code[2];
    for (int half = 0; half < 2; ++half) {
      const Vec v = load16(x + j + 16 * half);
      code[half] = _mm512_set1_epi32(int(t.first));
      for (int i = 0; i < t.count; ++i) {
        const __mmask16 above =
            _mm512_cmp_ps_mask(v.lanes, _mm512_set1_ps(t.border[i]), _CMP_NLE_UQ);
        const __m512i flip = _mm512_set1_epi32(int(t.flip[i]));
        code[half] = _mm512_mask_xor_epi32(code[half], above, code[half], flip);
      }
    }
    pack32(code, bits, word);
  }
}

template <class T>
inline void encode_run(const T* x, int n, const Tables<float>& t, int bits, uint32_t* word) {
  switch (t.ordered ? -t.depth : t.depth) {
#define SUBLIMATE_SEARCH(depth)                    \
  case depth:                                      \
    search_run<depth, false>(x, n, t, bits, word); \
    break;                                         \
  case -depth:                                     \
    search_run<depth, true>(x, n, t, bits, word);  \
    break;
    SUBLIMATE_SEARCH(1)
    SUBLIMATE_SEARCH(2)
    SUBLIMATE_SEARCH(3)
    SUBLIMATE_SEARCH(4)
    SUBLIMATE_SEARCH(5)
#undef SUBLIMATE_SEARCH
    default:
      scan_run(x, n, t, bits, word);
  }
}
#endif

// Codes of x[0 .. n) by the codebook, packed.
template <class A>
inline void encode_block(const A* x, int n, const Tables<A>& t, int bits, uint32_t* packed) {
  int done = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    done = n / 64 * 64;
    encode_run(x, done, t, bits, packed);
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

}  // namespace
}  // namespace sublimate::fewbit::SUBLIMATE_ISA
