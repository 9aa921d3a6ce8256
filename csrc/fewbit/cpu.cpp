// Few-bit activations on the CPU. Compiled once per instruction-set level (common/isa.h).
//
// A thread walks its elements in blocks of 512 that stay in L1: load and widen, f, narrow and store,
// then the codes. The codes of a block are found and packed in one pass: with AVX-512, comparisons
// are mask registers, which are the bit planes.

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

template <class A>
struct Tables {
  // Borders rounded to the element type, and what each changes: crossing border i flips the bits of
  // code[i] ^ code[i + 1], so code(x) = code[0] ^ (xor of flips of the borders below x).
  A border[MAX_BORDERS];
  uint32_t flip[MAX_BORDERS];
  uint32_t first;
  int count;
};

template <class T, class A>
Tables<A> read_tables(const Borders& table) {
  Tables<A> t;
  t.count = table.count;
  t.first = table.codes[0];
  for (int i = 0; i < table.count; ++i) {
    t.border[i] = round_to<T>(static_cast<const A*>(table.borders)[i]);
    t.flip[i] = table.codes[i] ^ table.codes[i + 1];
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

// code[0 .. n) to bit planes; code has room to the next multiple of 32 and is padded with zeros here.
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

// Codes of x[0 .. n) by the codebook, packed.
template <class A>
void encode_block(const A* x, int n, const Tables<A>& t, int bits, uint32_t* packed) {
  int done = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    // 64 elements at a time: four vectors of x against one border, codes kept in registers.
    for (; done + 64 <= n; done += 64) {
      __m512 v[4];
      __m512i c[4];
      for (int k = 0; k < 4; ++k) {
        v[k] = _mm512_loadu_ps(x + done + 16 * k);
        c[k] = _mm512_set1_epi32(int(t.first));
      }
      for (int i = 0; i < t.count; ++i) {
        const __m512 border = _mm512_set1_ps(t.border[i]);
        const __m512i flip = _mm512_set1_epi32(int(t.flip[i]));
        for (int k = 0; k < 4; ++k) {
          const __mmask16 above = _mm512_cmp_ps_mask(v[k], border, _CMP_NLE_UQ);
          c[k] = _mm512_mask_xor_epi32(c[k], above, c[k], flip);
        }
      }
      uint32_t* word = packed + done / GROUP * bits;
      for (int p = 0; p < bits; ++p) {
        const __m512i bit = _mm512_set1_epi32(1 << p);
        word[p] = uint32_t(_mm512_test_epi32_mask(c[0], bit)) |
                  uint32_t(_mm512_test_epi32_mask(c[1], bit)) << 16;
        word[bits + p] = uint32_t(_mm512_test_epi32_mask(c[2], bit)) |
                         uint32_t(_mm512_test_epi32_mask(c[3], bit)) << 16;
      }
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
  const uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
  for (int j = 0; j < (n + 3) / 4; ++j) {  // blocks start at multiples of 512
    const uint64_t counter = uint64_t(first) / 4 + uint64_t(j);
    const Philox4 r = philox4x32_10(uint32_t(counter), uint32_t(counter >> 32), 0, 0, k0, k1);
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

// ---------------------------------------------------------------------------------- words -> levels

// levels[code] of n elements; q has room to the next multiple of 32.
template <class A>
void decode_block(const uint32_t* packed, int n, int bits, const Levels<A>& levels, A* q) {
  for (int g = 0; g < words_of(n); ++g) {
    const uint32_t* word = packed + g * bits;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      const __m512 table = _mm512_loadu_ps(levels.value);
      __m512i low = _mm512_setzero_si512(), high = low;
      for (int p = 0; p < bits; ++p) {
        const __m512i bit = _mm512_set1_epi32(1 << p);
        low = _mm512_mask_or_epi32(low, __mmask16(word[p]), low, bit);
        high = _mm512_mask_or_epi32(high, __mmask16(word[p] >> 16), high, bit);
      }
      _mm512_storeu_ps(q + g * GROUP, _mm512_permutexvar_ps(low, table));
      _mm512_storeu_ps(q + g * GROUP + 16, _mm512_permutexvar_ps(high, table));
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

// ------------------------------------------------------------------------------------------ visitors

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

// ------------------------------------------------------------------------------------------- kernels

template <class T>
int forward_as(const Forward& k) {
  using A = arith_t<T>;
  const bool stochastic = k.bits > 0 && k.seed != nullptr;
  const bool exact = k.bits > 0 && is_exact(Fn(k.fn));
  const bool coded = k.bits > 0 && !stochastic && !exact;
  const Tables<A> table = coded ? read_tables<T, A>(k.table) : Tables<A>{};
  const Levels<A> levels = stochastic ? read_levels<A>(k.levels, k.bits) : Levels<A>{};
  const int64_t seed = stochastic ? *k.seed : 0;
  const A a = value_parameter<T>(k.fn, A(k.a)), b = A(k.b);
  const A a_bit = bit_parameter<T>(k.fn, A(k.a));
  const T* x = static_cast<const T*>(k.x);
  T* y = static_cast<T*>(k.y);

  parallel_for(k.n, BLOCK, GRAIN, k.exec.threads, [&](int64_t begin, int64_t end) {
    A xs[BLOCK], ys[BLOCK];
    for (int64_t base = begin; base < end; base += BLOCK) {
      const int n = int(std::min<int64_t>(BLOCK, end - base));
      const A* in = view_block(x + base, xs, n);
      if (y != nullptr) {
        if constexpr (std::is_same_v<T, A>) {
          visit(k.fn, ValueBlock<A>{in, y + base, n, a, b});
        } else {
          visit(k.fn, ValueBlock<A>{in, ys, n, a, b});
          store_block(ys, y + base, n);
        }
      }
      if (k.bits == 0) continue;
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
  });
  return kOk;
}

template <class T>
int backward_as(const Backward& k) {
  using A = arith_t<T>;
  const Levels<A> levels = read_levels<A>(k.levels, k.bits);
  const T* grad = static_cast<const T*>(k.grad);
  T* dx = static_cast<T*>(k.dx);
  parallel_for(k.n, BLOCK, GRAIN, k.exec.threads, [&](int64_t begin, int64_t end) {
    A q[BLOCK], gs[BLOCK];
    for (int64_t base = begin; base < end; base += BLOCK) {
      const int n = int(std::min<int64_t>(BLOCK, end - base));
      decode_block(k.packed + base / GROUP * k.bits, n, k.bits, levels, q);
      const A* g = view_block(grad + base, gs, n);
      if constexpr (std::is_same_v<T, A>) {
        for (int j = 0; j < n; ++j) dx[base + j] = q[j] * g[j];
      } else {
        for (int j = 0; j < n; ++j) q[j] *= g[j];
        store_block(q, dx + base, n);
      }
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
    table = k.scale ? read_tables<A, A>(k.table) : read_tables<T, A>(k.table);
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
      visit(k.fn, ValueBlock<A>{g, ys, n, A(0), A(0)});
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
          visit(k.fn, DerivativeBlock<A>{v, f, n, A(0), A(0)});
          for (int j = 0; j < n; ++j) q[j] = g[j] * f[j] * (q[j] * A(s[j]));
          store_block(q, dgate + base, n);
        }
        if (dup != nullptr) {
          visit(k.fn, ValueBlock<A>{v, f, n, A(0), A(0)});
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
