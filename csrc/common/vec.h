// Sixteen fp32 lanes as a number: lets the per-element mathematics, written once for scalars, run
// in AVX-512 registers with comparisons as mask registers. Only in sources compiled for that level.
#pragma once

#if defined(__AVX512F__)

#include <immintrin.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/hd.h"

// Everything here is always inlined: no symbol with wide instructions can leak (common/isa.h).
namespace sublimate {

struct Mask {
  __mmask16 bits;
};
SUBLIMATE_HD Mask operator|(Mask a, Mask b) { return {__mmask16(a.bits | b.bits)}; }
SUBLIMATE_HD Mask operator&(Mask a, Mask b) { return {__mmask16(a.bits & b.bits)}; }
SUBLIMATE_HD Mask operator!(Mask a) { return {__mmask16(~a.bits)}; }

struct Vec {
  __m512 lanes;
  SUBLIMATE_HD Vec() = default;
  SUBLIMATE_HD Vec(__m512 x) : lanes(x) {}
  SUBLIMATE_HD explicit Vec(float x) : lanes(_mm512_set1_ps(x)) {}
  SUBLIMATE_HD explicit Vec(double x) : lanes(_mm512_set1_ps(float(x))) {}
  SUBLIMATE_HD explicit Vec(int x) : lanes(_mm512_set1_ps(float(x))) {}
};

// Plain vector arithmetic, so that the compiler may contract a product and a sum into one FMA.
SUBLIMATE_HD Vec operator+(Vec a, Vec b) { return a.lanes + b.lanes; }
SUBLIMATE_HD Vec operator-(Vec a, Vec b) { return a.lanes - b.lanes; }
SUBLIMATE_HD Vec operator*(Vec a, Vec b) { return a.lanes * b.lanes; }
SUBLIMATE_HD Vec operator/(Vec a, Vec b) { return a.lanes / b.lanes; }
SUBLIMATE_HD Vec operator-(Vec a) {
  return _mm512_castsi512_ps(
      _mm512_xor_si512(_mm512_castps_si512(a.lanes), _mm512_set1_epi32(int(0x80000000u))));
}
SUBLIMATE_HD Mask operator<(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_LT_OQ)};
}
SUBLIMATE_HD Mask operator<=(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_LE_OQ)};
}
SUBLIMATE_HD Mask operator>(Vec a, Vec b) { return b < a; }
SUBLIMATE_HD Mask operator>=(Vec a, Vec b) { return b <= a; }
SUBLIMATE_HD Mask operator!=(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_NEQ_UQ)};
}
SUBLIMATE_HD Mask operator==(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_EQ_OQ)};
}

namespace math {

SUBLIMATE_HD Vec pick(Mask m, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(m.bits, no.lanes, yes.lanes);
}
// The minimum and maximum instructions return their second operand if either is NaN: x stays.
SUBLIMATE_HD Vec at_most(Vec x, Vec bound) { return _mm512_min_ps(bound.lanes, x.lanes); }
SUBLIMATE_HD Vec at_least(Vec x, Vec bound) { return _mm512_max_ps(bound.lanes, x.lanes); }
// The smaller of two magnitudes with the sign of x, in one instruction.
SUBLIMATE_HD Vec cut(Vec x, Vec bound) { return _mm512_range_ps(x.lanes, bound.lanes, 0x2); }
SUBLIMATE_HD Vec absolute(Vec x) { return _mm512_abs_ps(x.lanes); }
SUBLIMATE_HD Vec times_power_of_two(Vec p, Vec k, Vec) {
  return _mm512_scalef_ps(p.lanes, k.lanes);
}
// a / b for normal b of magnitude below 2^126: reciprocal estimate and one Newton step, which costs
// a third of the divider's time. Error at most 1.5 ulp.
SUBLIMATE_HD Vec quotient(Vec a, Vec b) {
  const __m512 r = _mm512_rcp14_ps(b.lanes);
  const __m512 e = _mm512_fnmadd_ps(b.lanes, r, _mm512_set1_ps(1.0f));
  return _mm512_mul_ps(a.lanes, _mm512_fmadd_ps(r, e, r));
}
// 1 / b, 0 for b = inf: there e would be 1 - inf * 0 = NaN, and the maximum takes its second
// operand.
SUBLIMATE_HD Vec reciprocal(Vec b) {
  const __m512 r = _mm512_rcp14_ps(b.lanes);
  const __m512 e = _mm512_fnmadd_ps(b.lanes, r, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(r, _mm512_max_ps(e, _mm512_set1_ps(-0.5f)), r);
}

// e^x as math.h's, by a table: x = (16 n + j) ln 2 / 16 + r, so that e^x = 2^n 2^(j/16) e^r, where
// the lookup is one permute and e^r takes three terms (9e-9): seven operations of the multipliers
// instead of ten. Error at most 2 ulp, more from |x| = 40 on, by 0.03 |x|, as ln 2 is off
// by 1.9e-9.
SUBLIMATE_HD Vec exp(Vec x) {
  alignas(64) static constexpr float power[16] = {
      1.0f,        1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f,
      1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
      1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
  // Lowest and highest make the biased exponents 0 and 255, which are 0 and inf.
  x = at_least(at_most(x, Vec(89.0f)), Vec(-87.9f));
  // The float adder rounds: the low bits of 1.5 * 2^23 + 16 * 127 + k hold k + 16 * 127.
  const Vec zero = Vec(12584944.0f), shifted = x * Vec(23.0831207f) + zero, k = shifted - zero;
  const Vec r = x - k * Vec(0.0433216988f);
  const __m512i bits = _mm512_castps_si512(shifted.lanes);
  const Vec t = _mm512_permutexvar_ps(bits, _mm512_load_ps(power));
  const Vec scale = _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_slli_epi32(bits, 19), _mm512_set1_epi32(0x7f800000)));
  return (t + t * r * (Vec(1.0f) + r * (Vec(0.5f) + r * Vec(0.16666667f)))) * scale;
}

}  // namespace math

SUBLIMATE_HD Vec load16(const float* p) { return _mm512_loadu_ps(p); }
SUBLIMATE_HD Vec load16(const half_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SUBLIMATE_HD Vec load16(const bfloat_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
// Two vectors as 32 consecutive elements, narrowed: 1 or 2 registers of 64 bytes.
SUBLIMATE_HD void store32(float* p, Vec low, Vec high, bool stream) {
  if (stream) {
    _mm512_stream_ps(p, low.lanes);
    _mm512_stream_ps(p + 16, high.lanes);
  } else {
    _mm512_storeu_ps(p, low.lanes);
    _mm512_storeu_ps(p + 16, high.lanes);
  }
}
SUBLIMATE_HD void store64bytes(void* p, __m512i x, bool stream) {
  if (stream) {
    _mm512_stream_si512(static_cast<__m512i*>(p), x);
  } else {
    _mm512_storeu_si512(p, x);
  }
}
SUBLIMATE_HD void store32(half_t* p, Vec low, Vec high, bool stream) {
  const __m256i first = _mm512_cvtps_ph(low.lanes, _MM_FROUND_TO_NEAREST_INT);
  const __m256i second = _mm512_cvtps_ph(high.lanes, _MM_FROUND_TO_NEAREST_INT);
  store64bytes(p, _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1), stream);
}
SUBLIMATE_HD void store32(bfloat_t* p, Vec low, Vec high, bool stream) {
  // Round to nearest even in integers. A NaN stays one: those that arise from bf16 operands have
  // the low 16 bits clear, so the bias cannot carry out of the mantissa.
  const __m512i one = _mm512_set1_epi32(1), bias = _mm512_set1_epi32(0x7fff);
  __m512i u[2] = {_mm512_castps_si512(low.lanes), _mm512_castps_si512(high.lanes)};
  for (int k = 0; k < 2; ++k) {
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u[k], 16), one);
    u[k] = _mm512_add_epi32(_mm512_add_epi32(u[k], bias), odd);
  }
  // The upper half of every lane of both, in order: one permute over two registers.
  alignas(64) static constexpr uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                     23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                     45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  store64bytes(p, _mm512_permutex2var_epi16(u[0], _mm512_load_si512(upper), u[1]), stream);
}

// 32 consecutive elements as two vectors, in whatever split is cheapest: for elementwise work only.
struct VecPair {
  Vec first, second;
};
template <class T>
SUBLIMATE_HD VecPair load_pair(const T* p) {
  return {load16(p), load16(p + 16)};
}
template <class T>
SUBLIMATE_HD void store_pair(T* p, VecPair x, bool stream) {
  store32(p, x.first, x.second, stream);
}
// bf16: even elements and odd ones, which are the halves of 32-bit lanes.
SUBLIMATE_HD VecPair load_pair(const bfloat_t* p) {
  const __m512i u = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(u, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(int(0xffff0000u))))};
}
SUBLIMATE_HD void store_pair(bfloat_t* p, VecPair x, bool stream) {
  // Rounds to nearest even as store32 does, on the halves: up if the lower one, counting the last
  // kept bit as one more, is above a half. A NaN's lower half is zero and adds nothing.
  const __mmask32 odd = 0xaaaaaaaau;
  const __m512i even_bits = _mm512_castps_si512(x.first.lanes);
  const __m512i odd_bits = _mm512_castps_si512(x.second.lanes);
  const __m512i high = _mm512_mask_mov_epi16(_mm512_srli_epi32(even_bits, 16), odd, odd_bits);
  const __m512i low = _mm512_mask_mov_epi16(even_bits, odd, _mm512_slli_epi32(odd_bits, 16));
  const __m512i one = _mm512_set1_epi16(1), half = _mm512_set1_epi16(int16_t(0x8000));
  const __m512i tie = _mm512_adds_epu16(low, _mm512_and_si512(high, one));
  const __mmask32 up = _mm512_cmpgt_epu16_mask(tie, half);
  store64bytes(p, _mm512_mask_add_epi16(high, up, high, one), stream);
}

// Whether to write an output past the caches: it is larger than they are, so that nothing is lost
// for its reader, and a store that bypasses them need not read the line first (measured: 64 MiB
// written in two thirds of the time, read back as fast). The address must be aligned to a register.
SUBLIMATE_HD bool worth_streaming(const void* p, int64_t bytes) {
  return bytes >= (int64_t(8) << 20) && reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

// Asks for all lines of a block before any of it is used, so that memory is read in bursts between
// the writes of the block before: reads and writes that take turns line by line cost memory its
// time to turn round. Blocks of 1 to 2 KiB: a core cannot ask for more lines at once.
SUBLIMATE_HD void fetch_block(const void* p, int64_t bytes) {
  const char* line = static_cast<const char*>(p);
  for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(line + at, _MM_HINT_NTA);
}

}  // namespace sublimate

#endif
