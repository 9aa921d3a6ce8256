// Elementary functions as branch-free arithmetic, so that a plain loop over them vectorises in C++.
// On a GPU the hardware library's functions are used instead. fp64 always takes the C library's.
// Coefficients: least-squares rational fits with Lawson weights, relative error given beside each;
// total error in fp32 is about 2 ulp.
#pragma once

#include <cmath>

#include "common/dtype.h"
#include "common/hd.h"

namespace sublimate::math {

SUBLIMATE_HD float absolute(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
SUBLIMATE_HD double absolute(double x) { return x < 0 ? -x : x; }
SUBLIMATE_HD float copy_sign(float magnitude, float sign) {
  return float_of((bits_of(magnitude) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u));
}

// e^x. Overflows to inf, underflows through subnormals to 0, NaN stays.
SUBLIMATE_HD double exp(double x) { return ::exp(x); }
SUBLIMATE_HD float exp(float x) {
#if SUBLIMATE_ON_DEVICE
  return ::expf(x);
#else
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  // n = round(x / ln 2) by the float adder: 1.5 * 2^23 leaves n in the low mantissa bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const int n = int(bits_of(shifted)) - 0x4b400000;
  const float k = shifted - 12582912.0f;
  const float r = (x - k * 0.693145752f) - k * 1.42860677e-6f;
  float p = 0.0013836834f;  // 1.9e-9
  p = p * r + 0.008374818f;
  p = p * r + 0.041668225f;
  p = p * r + 0.1666642f;
  p = p * r + 0.4999999f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors, each a normal number.
  const int half = n >> 1;
  return p * float_of(uint32_t(half + 127) << 23) * float_of(uint32_t(n - half + 127) << 23);
#endif
}

// Standard normal distribution function minus one half: odd, +-1/2 exactly from |x| = 5.5 on.
SUBLIMATE_HD double centred_cdf(double x) { return 0.5 * ::erf(x * 0.70710678118654752440); }
SUBLIMATE_HD float centred_cdf(float x) {
#if SUBLIMATE_ON_DEVICE
  return 0.5f * ::erff(x * 0.70710678f);
#else
  const float square = x * x;
  const float u = square > 30.25f ? 30.25f : square;
  float p = 2.2931209e-08f;  // 1.7e-8
  p = p * u + 6.3015823e-06f;
  p = p * u + 0.00016457283f;
  p = p * u + 0.0046514766f;
  p = p * u + 0.033458803f;
  p = p * u + 0.39894226f;
  float q = 1.1990293e-06f;
  q = q * u + 7.216673e-05f;
  q = q * u + 0.0018606407f;
  q = q * u + 0.028416079f;
  q = q * u + 0.2505352f;
  q = q * u + 1.0f;
  const float inner = x * (p / q);
  return square > 30.25f ? copy_sign(0.5f, x) : inner;
#endif
}

// tanh as a ratio of numerator and denominator, for |x| <= 9.02 (beyond: saturated in fp32).
struct Ratio {
  float numerator, denominator;
};
SUBLIMATE_HD Ratio tanh_ratio(float x) {
  x = x > 9.02f ? 9.02f : x;
  x = x < -9.02f ? -9.02f : x;
  const float u = x * x;
  float p = 1.3318951e-08f;  // 2.1e-8
  p = p * u + 2.058339e-05f;
  p = p * u + 0.0034940287f;
  p = p * u + 0.13379712f;
  p = p * u + 1.0f;
  float q = 7.761968e-07f;
  q = q * u + 0.00032830835f;
  q = q * u + 0.025871051f;
  q = q * u + 0.46713027f;
  q = q * u + 1.0f;
  return {x * p, q};
}

SUBLIMATE_HD double tanh(double x) { return ::tanh(x); }
SUBLIMATE_HD float tanh(float x) {
#if SUBLIMATE_ON_DEVICE
  return ::tanhf(x);
#else
  const Ratio r = tanh_ratio(x);
  const float t = r.numerator / r.denominator;
  return absolute(x) > 9.0f ? copy_sign(1.0f, x) : t;  // a comparison with NaN keeps t, which is NaN
#endif
}

// e^x - 1 for x <= 0, relative accuracy near 0: 2t / (1 - t) with t = tanh(x / 2).
SUBLIMATE_HD double expm1_negative(double x) { return ::expm1(x); }
SUBLIMATE_HD float expm1_negative(float x) {
#if SUBLIMATE_ON_DEVICE
  return ::expm1f(x);
#else
  const Ratio r = tanh_ratio(0.5f * x);
  const float inner = 2.0f * r.numerator / (r.denominator - r.numerator);
  return x < -17.5f ? -1.0f : inner;
#endif
}

// log(1 + u) for 0 <= u <= 1, relative accuracy near 0.
SUBLIMATE_HD double log1p_unit(double u) { return ::log1p(u); }
SUBLIMATE_HD float log1p_unit(float u) {
#if SUBLIMATE_ON_DEVICE
  return ::log1pf(u);
#else
  float p = 0.0034172628f;  // 9.4e-10
  p = p * u + 0.23815688f;
  p = p * u + 1.0662173f;
  p = p * u + 1.0f;
  float q = 0.07528704f;
  q = q * u + 0.68793505f;
  q = q * u + 1.5662172f;
  q = q * u + 1.0f;
  return u * (p / q);
#endif
}

}  // namespace sublimate::math
