// Device functions on single values: bits, conversions, arithmetic, cached loads.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "collectives.h"

inline constexpr int warpSize = 32;

// --- min and max: every pairing of types the device overloads -----------------------------------
namespace sublimate::emulator {
template <class R>
constexpr R lesser(R a, R b) {
  return b < a ? b : a;
}
template <class R>
constexpr R greater(R a, R b) {
  return a < b ? b : a;
}
}  // namespace sublimate::emulator
#define SUBLIMATE_MINMAX(A, B, R)                                            \
  constexpr R min(A a, B b) { return sublimate::emulator::lesser<R>(a, b); } \
  constexpr R max(A a, B b) { return sublimate::emulator::greater<R>(a, b); }
SUBLIMATE_MINMAX(int, int, int)
SUBLIMATE_MINMAX(unsigned, unsigned, unsigned)
SUBLIMATE_MINMAX(int, unsigned, unsigned)
SUBLIMATE_MINMAX(unsigned, int, unsigned)
SUBLIMATE_MINMAX(long, long, long)
SUBLIMATE_MINMAX(unsigned long, unsigned long, unsigned long)
SUBLIMATE_MINMAX(long, unsigned long, unsigned long)
SUBLIMATE_MINMAX(unsigned long, long, unsigned long)
SUBLIMATE_MINMAX(long long, long long, long long)
SUBLIMATE_MINMAX(unsigned long long, unsigned long long, unsigned long long)
SUBLIMATE_MINMAX(long long, unsigned long long, unsigned long long)
SUBLIMATE_MINMAX(unsigned long long, long long, unsigned long long)
#undef SUBLIMATE_MINMAX
// Floating ones return the operand that is a number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

// --- bits
// -----------------------------------------------------------------------------------------
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline unsigned long long __brevll(unsigned long long x) {
  return (unsigned long long)(__brev(unsigned(x))) << 32 | __brev(unsigned(x >> 32));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 0xfu;
    unsigned byte = unsigned(bytes >> (8 * (s & 7))) & 0xffu;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // replicates the sign
    r |= byte << (8 * i);
  }
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
__extension__ typedef unsigned __int128 sublimate_uint128;
__extension__ typedef __int128 sublimate_int128;
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(sublimate_uint128(a) * b >> 64);
}
inline long long __mul64hi(long long a, long long b) {
  return (long long)(sublimate_int128(a) * b >> 64);
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int8_t(a >> (8 * i)) * int8_t(b >> (8 * i));
  return c;
}

// --- the same bits as another type
// ------------------------------------------------------------------
inline unsigned __float_as_uint(float x) { return sublimate::emulator::bit_copy<unsigned>(x); }
inline int __float_as_int(float x) { return sublimate::emulator::bit_copy<int>(x); }
inline float __uint_as_float(unsigned x) { return sublimate::emulator::bit_copy<float>(x); }
inline float __int_as_float(int x) { return sublimate::emulator::bit_copy<float>(x); }
inline long long __double_as_longlong(double x) {
  return sublimate::emulator::bit_copy<long long>(x);
}
inline double __longlong_as_double(long long x) { return sublimate::emulator::bit_copy<double>(x); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double((long long)(uint64_t(unsigned(high)) << 32 | unsigned(low)));
}

// --- conversions: round first, then saturate; NaN becomes 0, as on the device
// ----------------------
namespace sublimate::emulator {
template <class To, class From>
inline To saturate(From rounded) {
  constexpr To low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
  if (rounded != rounded) return 0;
  if (rounded <= From(low)) return low;
  return rounded >= From(high) ? high : To(rounded);
}
}  // namespace sublimate::emulator
#define SUBLIMATE_TO_INTEGER(name, To, From)                                                       \
  inline To __##name##_rn(From x) { return sublimate::emulator::saturate<To>(std::nearbyint(x)); } \
  inline To __##name##_rz(From x) { return sublimate::emulator::saturate<To>(std::trunc(x)); }     \
  inline To __##name##_rd(From x) { return sublimate::emulator::saturate<To>(std::floor(x)); }     \
  inline To __##name##_ru(From x) { return sublimate::emulator::saturate<To>(std::ceil(x)); }
SUBLIMATE_TO_INTEGER(float2int, int, float)
SUBLIMATE_TO_INTEGER(float2uint, unsigned, float)
SUBLIMATE_TO_INTEGER(float2ll, long long, float)
SUBLIMATE_TO_INTEGER(float2ull, unsigned long long, float)
SUBLIMATE_TO_INTEGER(double2int, int, double)
SUBLIMATE_TO_INTEGER(double2uint, unsigned, double)
SUBLIMATE_TO_INTEGER(double2ll, long long, double)
SUBLIMATE_TO_INTEGER(double2ull, unsigned long long, double)
#undef SUBLIMATE_TO_INTEGER
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline double __ll2double_rn(long long x) { return double(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

// --- arithmetic that must not be contracted, and the fast approximations (here: the accurate ones)
// -
namespace sublimate::emulator {
// The value passes through memory as far as the compiler knows, so it fuses with nothing.
template <class T>
inline T opaque(T x) {
  asm("" : "+m"(x));
  return x;
}
}  // namespace sublimate::emulator
inline float __fadd_rn(float a, float b) { return sublimate::emulator::opaque(a + b); }
inline float __fsub_rn(float a, float b) { return sublimate::emulator::opaque(a - b); }
inline float __fmul_rn(float a, float b) { return sublimate::emulator::opaque(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return sublimate::emulator::opaque(a + b); }
inline double __dsub_rn(double a, double b) { return sublimate::emulator::opaque(a - b); }
inline double __dmul_rn(double a, double b) { return sublimate::emulator::opaque(a * b); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return float(std::pow(10.0, double(x))); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / std::sqrt(double(x))); }
inline float rsqrtf(float x) noexcept { return __frsqrt_rn(x); }
inline double rsqrt(double x) noexcept { return 1.0 / std::sqrt(x); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return float(normcdf(double(x))); }

// --- loads and stores with a cache hint
// ---------------------------------------------------------------
#define SUBLIMATE_LOAD(name)        \
  template <class T>                \
  inline T name(const T* address) { \
    return *address;                \
  }
#define SUBLIMATE_STORE(name)                    \
  template <class T>                             \
  inline void name(T* address, const T& value) { \
    *address = value;                            \
  }
SUBLIMATE_LOAD(__ldg)
SUBLIMATE_LOAD(__ldca)
SUBLIMATE_LOAD(__ldcg)
SUBLIMATE_LOAD(__ldcs)
SUBLIMATE_LOAD(__ldcv)
SUBLIMATE_LOAD(__ldlu)
SUBLIMATE_STORE(__stcg)
SUBLIMATE_STORE(__stcs)
SUBLIMATE_STORE(__stwb)
SUBLIMATE_STORE(__stwt)
#undef SUBLIMATE_LOAD
#undef SUBLIMATE_STORE

inline long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
