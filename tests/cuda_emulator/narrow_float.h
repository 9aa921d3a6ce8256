// What cuda_fp16.h and cuda_bf16.h share: a 16-bit float with correctly rounded arithmetic over the
// conversions of csrc/common/dtype.h.
//
// + - * / and sqrt of two such numbers, done in fp32 and rounded again, are correctly rounded:
// 24 >= 2 * 11 + 2 bits (half; bf16 needs fewer). The fused multiply-add and conversions from fp64
// go through round-to-odd, which makes the second rounding harmless.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "atomics.h"
#include "collectives.h"
#include "common/dtype.h"

namespace sublimate::emulator {

// fp64 to fp32, towards the neighbour with an odd last bit when inexact.
inline float round_to_odd(double x) {
  const float nearest = float(x);
  if (double(nearest) == x || x != x) return nearest;
  uint32_t u = bits_of(nearest);
  if (std::fabs(double(nearest)) > std::fabs(x)) --u;  // towards zero
  return float_of(u | 1u);
}

// a * b + c for a, b, c of at most 11 bits each: the product is exact, the sum rounded to odd.
inline double fma_to_odd(double a, double b, double c) {
  const double p = a * b, s = p + c;
  if (!std::isfinite(s)) return s;
  const double back = s - p, error = (p - (s - back)) + (c - back);
  if (error == 0) return s;
  uint64_t u;
  std::memcpy(&u, &s, sizeof u);
  if (!(u & 1)) (error < 0) == (s < 0) ? ++u : --u;
  double odd;
  std::memcpy(&odd, &u, sizeof odd);
  return odd;
}

template <class Bits>
struct Narrow {
  Bits raw;

  Narrow() = default;
  Narrow(float x) : raw(store_value<Bits>(x)) {}
  Narrow(double x) : raw(store_value<Bits>(round_to_odd(x))) {}
  template <class I, std::enable_if_t<std::is_integral<I>::value, int> = 0>
  Narrow(I x) : Narrow(sizeof(I) < 4 ? Narrow(float(x)) : from_integer(x)) {}
  explicit Narrow(Bits bits) : raw(bits) {}
  operator float() const { return load_value(raw); }
  template <class I,
            std::enable_if_t<std::is_integral<I>::value && !std::is_same<I, bool>::value, int> = 0>
  explicit operator I() const {
    return I(load_value(raw));
  }
  explicit operator bool() const { return load_value(raw) != 0; }

  friend Narrow operator+(const Narrow& a, const Narrow& b) { return float(a) + float(b); }
  friend Narrow operator-(const Narrow& a, const Narrow& b) { return float(a) - float(b); }
  friend Narrow operator*(const Narrow& a, const Narrow& b) { return float(a) * float(b); }
  friend Narrow operator/(const Narrow& a, const Narrow& b) { return float(a) / float(b); }
  friend Narrow operator+(const Narrow& a) { return a; }
  friend Narrow operator-(const Narrow& a) { return Narrow(Bits{uint16_t(a.raw.bits ^ 0x8000u)}); }
  Narrow& operator+=(const Narrow& b) { return *this = *this + b; }
  Narrow& operator-=(const Narrow& b) { return *this = *this - b; }
  Narrow& operator*=(const Narrow& b) { return *this = *this * b; }
  Narrow& operator/=(const Narrow& b) { return *this = *this / b; }
  friend bool operator==(const Narrow& a, const Narrow& b) { return float(a) == float(b); }
  friend bool operator!=(const Narrow& a, const Narrow& b) { return float(a) != float(b); }
  friend bool operator<(const Narrow& a, const Narrow& b) { return float(a) < float(b); }
  friend bool operator>(const Narrow& a, const Narrow& b) { return float(a) > float(b); }
  friend bool operator<=(const Narrow& a, const Narrow& b) { return float(a) <= float(b); }
  friend bool operator>=(const Narrow& a, const Narrow& b) { return float(a) >= float(b); }

 private:
  // 64-bit integers do not fit fp64 either: the bits that fall off become one sticky odd bit.
  template <class I>
  static Narrow from_integer(I x) {
    const bool negative = x < I(0);
    uint64_t magnitude = negative ? 0 - uint64_t(x) : uint64_t(x);
    int shift = 0;
    while (magnitude >> 53) magnitude = magnitude >> 1 | (magnitude & 1), ++shift;
    const double value = std::ldexp(double(magnitude), shift);
    return Narrow(negative ? -value : value);
  }
};

// Two of them, aligned to four bytes as on the device.
template <class Bits>
struct alignas(4) NarrowPair {
  Narrow<Bits> x, y;
  NarrowPair() = default;
  NarrowPair(const Narrow<Bits>& low, const Narrow<Bits>& high) : x(low), y(high) {}

  friend NarrowPair operator+(const NarrowPair& a, const NarrowPair& b) {
    return {a.x + b.x, a.y + b.y};
  }
  friend NarrowPair operator-(const NarrowPair& a, const NarrowPair& b) {
    return {a.x - b.x, a.y - b.y};
  }
  friend NarrowPair operator*(const NarrowPair& a, const NarrowPair& b) {
    return {a.x * b.x, a.y * b.y};
  }
  friend NarrowPair operator/(const NarrowPair& a, const NarrowPair& b) {
    return {a.x / b.x, a.y / b.y};
  }
};

template <class Bits>
struct Shuffled<Narrow<Bits>, false> {
  using type = Narrow<Bits>;
};
template <class Bits>
struct Shuffled<NarrowPair<Bits>, false> {
  using type = NarrowPair<Bits>;
};

}  // namespace sublimate::emulator

// Device functions common to both formats. Templates deduce the format, so nothing converts
// silently.
#define SUBLIMATE_NARROW \
  template <class Bits>  \
  inline sublimate::emulator::Narrow<Bits>
#define SUBLIMATE_NARROW_BOOL \
  template <class Bits>       \
  inline bool
#define SUBLIMATE_PAIR  \
  template <class Bits> \
  inline sublimate::emulator::NarrowPair<Bits>
#define N const sublimate::emulator::Narrow<Bits>&
#define P const sublimate::emulator::NarrowPair<Bits>&

SUBLIMATE_NARROW __hadd(N a, N b) { return a + b; }
SUBLIMATE_NARROW __hsub(N a, N b) { return a - b; }
SUBLIMATE_NARROW __hmul(N a, N b) { return a * b; }
SUBLIMATE_NARROW __hdiv(N a, N b) { return a / b; }
SUBLIMATE_NARROW __hadd_rn(N a, N b) { return a + b; }
SUBLIMATE_NARROW __hsub_rn(N a, N b) { return a - b; }
SUBLIMATE_NARROW __hmul_rn(N a, N b) { return a * b; }
SUBLIMATE_NARROW __hneg(N a) { return -a; }
SUBLIMATE_NARROW __habs(N a) {
  return sublimate::emulator::Narrow<Bits>(Bits{uint16_t(a.raw.bits & 0x7fffu)});
}
SUBLIMATE_NARROW __hfma(N a, N b, N c) {
  return sublimate::emulator::Narrow<Bits>(
      sublimate::emulator::fma_to_odd(float(a), float(b), float(c)));
}
SUBLIMATE_NARROW_BOOL __heq(N a, N b) { return a == b; }
SUBLIMATE_NARROW_BOOL __hne(N a, N b) { return a < b || a > b; }  // ordered: false for NaN
SUBLIMATE_NARROW_BOOL __hlt(N a, N b) { return a < b; }
SUBLIMATE_NARROW_BOOL __hle(N a, N b) { return a <= b; }
SUBLIMATE_NARROW_BOOL __hgt(N a, N b) { return a > b; }
SUBLIMATE_NARROW_BOOL __hge(N a, N b) { return a >= b; }
SUBLIMATE_NARROW_BOOL __hisnan(N a) { return float(a) != float(a); }
template <class Bits>
inline int __hisinf(N a) {
  return std::isinf(float(a)) ? (float(a) > 0 ? 1 : -1) : 0;
}
// The number when the other is NaN; -0 counts as less than +0.
SUBLIMATE_NARROW __hmin(N a, N b) {
  if (__hisnan(a)) return b;
  if (__hisnan(b)) return a;
  if (float(a) == float(b)) return a.raw.bits & 0x8000u ? a : b;
  return a < b ? a : b;
}
SUBLIMATE_NARROW __hmax(N a, N b) {
  if (__hisnan(a)) return b;
  if (__hisnan(b)) return a;
  if (float(a) == float(b)) return a.raw.bits & 0x8000u ? b : a;
  return a < b ? b : a;
}
SUBLIMATE_NARROW __hmin_nan(N a, N b) { return __hisnan(a) || __hisnan(b) ? a + b : __hmin(a, b); }
SUBLIMATE_NARROW __hmax_nan(N a, N b) { return __hisnan(a) || __hisnan(b) ? a + b : __hmax(a, b); }
SUBLIMATE_NARROW hsqrt(N a) { return std::sqrt(float(a)); }
SUBLIMATE_NARROW hrsqrt(N a) { return 1.0 / std::sqrt(double(float(a))); }
SUBLIMATE_NARROW hrcp(N a) { return 1.0f / float(a); }
SUBLIMATE_NARROW hexp(N a) { return std::exp(double(float(a))); }
SUBLIMATE_NARROW hexp2(N a) { return std::exp2(double(float(a))); }
SUBLIMATE_NARROW hlog(N a) { return std::log(double(float(a))); }
SUBLIMATE_NARROW hlog2(N a) { return std::log2(double(float(a))); }
SUBLIMATE_NARROW hfloor(N a) { return std::floor(float(a)); }
SUBLIMATE_NARROW hceil(N a) { return std::ceil(float(a)); }
SUBLIMATE_NARROW hrint(N a) { return std::nearbyint(float(a)); }
SUBLIMATE_NARROW htrunc(N a) { return std::trunc(float(a)); }

SUBLIMATE_PAIR __hadd2(P a, P b) { return a + b; }
SUBLIMATE_PAIR __hsub2(P a, P b) { return a - b; }
SUBLIMATE_PAIR __hmul2(P a, P b) { return a * b; }
SUBLIMATE_PAIR __h2div(P a, P b) { return a / b; }
SUBLIMATE_PAIR __hneg2(P a) { return {-a.x, -a.y}; }
SUBLIMATE_PAIR __habs2(P a) { return {__habs(a.x), __habs(a.y)}; }
SUBLIMATE_PAIR __hfma2(P a, P b, P c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
SUBLIMATE_PAIR __hmin2(P a, P b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
SUBLIMATE_PAIR __hmax2(P a, P b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
template <class Bits>
inline float __low2float(P a) {
  return float(a.x);
}
template <class Bits>
inline float __high2float(P a) {
  return float(a.y);
}

template <class Bits>
inline sublimate::emulator::Narrow<Bits> atomicAdd(sublimate::emulator::Narrow<Bits>* address,
                                                   sublimate::emulator::Narrow<Bits> value) {
  return sublimate::emulator::atomic_update(address, [=](N old) { return old + value; });
}
template <class Bits>
inline sublimate::emulator::NarrowPair<Bits> atomicAdd(
    sublimate::emulator::NarrowPair<Bits>* address, sublimate::emulator::NarrowPair<Bits> value) {
  return sublimate::emulator::atomic_update(address, [=](P old) { return old + value; });
}

#undef SUBLIMATE_NARROW
#undef SUBLIMATE_NARROW_BOOL
#undef SUBLIMATE_PAIR
#undef N
#undef P
