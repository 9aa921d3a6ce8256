// Sixteen fp32 lanes as a number: lets the per-element mathematics, written once for scalars, run in
// AVX-512 registers with comparisons as mask registers. Only in sources compiled for that level.
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
SUBLIMATE_HD Vec absolute(Vec x) { return _mm512_abs_ps(x.lanes); }
SUBLIMATE_HD Vec copy_sign(Vec magnitude, Vec sign) {
  // Bitwise: sign bit from `sign`, the rest from `magnitude` (truth table of mask ? sign : value).
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_set1_epi32(int(0x80000000u)), _mm512_castps_si512(sign.lanes),
      _mm512_castps_si512(magnitude.lanes), 0xCA));
}
SUBLIMATE_HD Vec times_power_of_two(Vec p, Vec k, Vec) {
  return _mm512_scalef_ps(p.lanes, k.lanes);
}
// a / b for normal b of magnitude below 2^126: reciprocal estimate and one Newton step, which costs
// a third of the divider's time. Error at most 1.5 ulp.
SUBLIMATE_HD Vec quotient(Vec a, Vec b) {
  const __m512 r = _mm512_rcp14_ps(b.lanes);
  const __m512 e = _mm512_fnmadd_ps(b.lanes, r, _mm512_set1_ps(1.0f));
  const __m512 better = _mm512_fmadd_ps(r, e, r);
  const __m512 q = _mm512_mul_ps(a.lanes, better);
  return q;
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
SUBLIMATE_HD void store16(float* p, Vec x) { _mm512_storeu_ps(p, x.lanes); }
SUBLIMATE_HD void store16(half_t* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.lanes, _MM_FROUND_TO_NEAREST_INT));
}
SUBLIMATE_HD void store16(bfloat_t* p, Vec x) {
  // As store_value<bfloat_t>: round to nearest even in integers; NaN keeps its sign and goes quiet.
  const __m512i u = _mm512_castps_si512(x.lanes), high = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.lanes, x.lanes, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(kept));
}

}  // namespace sublimate

#endif
