// Element types at the binding, and exact conversions written with integer arithmetic only, so that
// loops over them vectorise in plain C++ and behave the same on host, device and emulator.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/hd.h"

namespace sublimate {

// The numbers are the binding's: python/sublimate/_native/__init__.py DTYPES.
enum class DType : int { f32 = 0, f16 = 1, bf16 = 2, f64 = 3 };

struct half_t {
  uint16_t bits;
};
struct bfloat_t {
  uint16_t bits;
};

SUBLIMATE_HD uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
SUBLIMATE_HD float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// Arithmetic type of an element type: fp64 stays, everything else computes in fp32.
template <class T>
struct Arith {
  using type = float;
};
template <>
struct Arith<double> {
  using type = double;
};
template <class T>
using arith_t = typename Arith<T>::type;

SUBLIMATE_HD float load_value(float x) { return x; }
SUBLIMATE_HD double load_value(double x) { return x; }
SUBLIMATE_HD float load_value(bfloat_t x) { return float_of(uint32_t(x.bits) << 16); }
SUBLIMATE_HD float load_value(half_t x) {
  // Exponent and mantissa moved into place and rescaled by 2^112: exact, subnormals included.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const float scaled = float_of(magnitude) * 0x1p112f;
  // Half inf/NaN scale to a finite number; give them the fp32 exponent of inf/NaN instead.
  const uint32_t special = magnitude | 0x7f800000u;
  return float_of((magnitude >= 0x0f800000u ? special : bits_of(scaled)) | sign);
}

template <class T, class A>
SUBLIMATE_HD T store_value(A x);

template <>
SUBLIMATE_HD float store_value<float, float>(float x) {
  return x;
}
template <>
SUBLIMATE_HD double store_value<double, double>(double x) {
  return x;
}
template <>
SUBLIMATE_HD bfloat_t store_value<bfloat_t, float>(float x) {
  // Round to nearest even on the upper 16 bits; NaN stays a quiet NaN of its sign.
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return bfloat_t{uint16_t((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}
template <>
SUBLIMATE_HD half_t store_value<half_t, float>(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  // Normal range: rebias by -112 and round to nearest even at bit 13.
  const uint32_t normal = (a - 0x38000000u + 0x0fffu + ((a >> 13) & 1u)) >> 13;
  // Below 2^-14 the float adder rounds: 0.5 + a has its last bit worth 2^-24, the half subnormal.
  const uint32_t subnormal = bits_of(float_of(a) + 0.5f) - 0x3f000000u;
  const uint32_t finite = a < 0x38800000u ? subnormal : normal;
  const uint32_t special = a > 0x7f800000u ? (0x7e00u | ((a >> 13) & 0x3ffu)) : 0x7c00u;
  return half_t{uint16_t(sign | (a >= 0x477ff000u ? special : finite))};
}

// Value of x after rounding to T and back: how a constant compares with elements of type T.
template <class T, class A>
SUBLIMATE_HD A round_to(A x) {
  return load_value(store_value<T>(x));
}

}  // namespace sublimate
