// Elementary functions as branch-free arithmetic, written once for a scalar (loops over it
// vectorise) and for a vector register (common/vec.h). On a GPU the hardware library's functions
// are used instead. fp64 always takes the C library's. Coefficients: least-squares rational fits
// with Lawson weights, relative error given beside each; total error in fp32 is about 2 ulp.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/dtype.h"
#include "common/hd.h"
#include "common/vec.h"

namespace sublimate::math {

// ------------------------------------------------------------- primitives, overloaded for Vec
// there

template <class A>
SUBLIMATE_HD A pick(bool condition, A yes, A no) {
  return condition ? yes : no;
}
// min and max that keep a NaN of x.
template <class A>
SUBLIMATE_HD A at_most(A x, A bound) {
  return x > bound ? bound : x;
}
template <class A>
SUBLIMATE_HD A at_least(A x, A bound) {
  return x < bound ? bound : x;
}
// x cut to [-bound, bound]; what becomes of a NaN is open.
template <class A>
SUBLIMATE_HD A cut(A x, A bound) {
  return at_least(at_most(x, bound), -bound);
}
SUBLIMATE_HD float absolute(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
SUBLIMATE_HD double absolute(double x) { return x < 0 ? -x : x; }
// p * 2^k, given k + 1.5 * 2^23 too. Biased exponents 0 and 255 make 0 and inf.
SUBLIMATE_HD float times_power_of_two(float p, float, float shifted) {
  return p * float_of((bits_of(shifted) + 127u) << 23);
}
// a / b for normal b of moderate size; vectors have a cheaper way. `reciprocal` takes b = inf too.
template <class A>
SUBLIMATE_HD A quotient(A a, A b) {
  return a / b;
}
template <class A>
SUBLIMATE_HD A reciprocal(A b) {
  return A(1) / b;
}

// ------------------------------------------------------------------------------------- functions

// c[0] + c[1] u + ... by Horner.
template <class V, int N>
SUBLIMATE_HD V polynomial(const float (&c)[N], V u) {
  V p = V(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) p = p * u + V(c[i]);
  return p;
}

// e^x. NaN stays. In fp32, results below 2^-126 may be 0 and above 2^127.5 inf: one exponent
// insertion instead of two, and no caller can tell (the activations saturate long before).
SUBLIMATE_HD double exp(double x) { return ::exp(x); }
template <class V>
SUBLIMATE_HD V exp(V x) {
#if SUBLIMATE_ON_DEVICE
  return ::expf(x);
#else
  // A scalar's exponent field holds k in [-127, 128]; a vector's scaling instruction takes any k.
  constexpr float highest = std::is_same_v<V, float> ? 88.7f : 110.0f;
  constexpr float lowest = std::is_same_v<V, float> ? -88.0f : -110.0f;
  x = at_least(at_most(x, V(highest)), V(lowest));
  // k = round(x / ln 2) by the float adder: 1.5 * 2^23 leaves k in the low mantissa bits.
  const V shifted = x * V(1.44269504f) + V(12582912.0f);
  const V k = shifted - V(12582912.0f);
#if defined(__FMA__)
  // One fused step: k ln 2 is exact before the sum, and ln 2 in fp32 is off by 1.9e-9.
  const V r = x - k * V(0.693147181f);
#else
  const V r = (x - k * V(0.693145752f)) - k * V(1.42860677e-6f);
#endif
  constexpr float c[] = {1.0f,         1.0f,         0.4999999f,   0.1666642f,
                         0.041668225f, 0.008374818f, 0.0013836834f};  // 1.9e-9
  return times_power_of_two(polynomial(c, r), k, shifted);
#endif
}

// Standard normal distribution function minus one half: odd, +-1/2 exactly from |x| = 5.5 on.
SUBLIMATE_HD double centred_cdf(double x) { return 0.5 * ::erf(x * 0.70710678118654752440); }
template <class V>
SUBLIMATE_HD V centred_cdf(V x) {
#if SUBLIMATE_ON_DEVICE
  return 0.5f * ::erff(x * 0.70710678f);
#else
  const V u = at_most(x * x, V(30.25f));
  constexpr float p[] = {0.39894226f,    0.033458803f,  0.0046514766f,
                         0.00016457283f, 6.3015823e-6f, 2.2931209e-8f};  // 1.7e-8
  constexpr float q[] = {1.0f,          0.2505352f,   0.028416079f,
                         0.0018606407f, 7.216673e-5f, 1.1990293e-6f};
  // Beyond |x| = 5.5 the product grows past 1/2 and is cut there. A NaN may be cut too: whoever
  // calls multiplies by x.
  return cut(x * quotient(polynomial(p, u), polynomial(q, u)), V(0.5f));
#endif
}

// tanh as a ratio of numerator and denominator, for |x| <= 9.02 (beyond: saturated in fp32).
template <class V>
struct Ratio {
  V numerator, denominator;
};
template <class V>
SUBLIMATE_HD Ratio<V> tanh_ratio(V x) {
  x = at_least(at_most(x, V(9.02f)), V(-9.02f));
  const V u = x * x;
  constexpr float p[] = {1.0f, 0.13379712f, 0.0034940287f, 2.058339e-5f, 1.3318951e-8f};  // 2.1e-8
  constexpr float q[] = {1.0f, 0.46713027f, 0.025871051f, 0.00032830835f, 7.761968e-7f};
  return {x * polynomial(p, u), polynomial(q, u)};
}

SUBLIMATE_HD double tanh(double x) { return ::tanh(x); }
template <class V>
SUBLIMATE_HD V tanh(V x) {
#if SUBLIMATE_ON_DEVICE
  return ::tanhf(x);
#else
  const Ratio<V> r = tanh_ratio(x);
  const V t = quotient(r.numerator, r.denominator);
  return at_least(at_most(t, V(1.0f)), V(-1.0f));
#endif
}

// e^x - 1 for x <= 0, relative accuracy near 0: 2t / (1 - t) with t = tanh(x / 2).
SUBLIMATE_HD double expm1_negative(double x) { return ::expm1(x); }
template <class V>
SUBLIMATE_HD V expm1_negative(V x) {
#if SUBLIMATE_ON_DEVICE
  return ::expm1f(x);
#else
  const Ratio<V> r = tanh_ratio(V(0.5f) * x);
  const V inner = V(2.0f) * quotient(r.numerator, r.denominator - r.numerator);
  return pick(x < V(-17.5f), V(-1.0f), inner);
#endif
}

// log(1 + u) for 0 <= u <= 1, relative accuracy near 0.
SUBLIMATE_HD double log1p_unit(double u) { return ::log1p(u); }
template <class V>
SUBLIMATE_HD V log1p_unit(V u) {
#if SUBLIMATE_ON_DEVICE
  return ::log1pf(u);
#else
  constexpr float p[] = {1.0f, 1.0662173f, 0.23815688f, 0.0034172628f};  // 9.4e-10
  constexpr float q[] = {1.0f, 1.5662172f, 0.68793505f, 0.07528704f};
  return u * quotient(polynomial(p, u), polynomial(q, u));
#endif
}

}  // namespace sublimate::math
