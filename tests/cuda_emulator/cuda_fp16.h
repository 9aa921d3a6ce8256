// Stands in for CUDA's header of this name: half precision on the host, correctly rounded.
#pragma once

#include "cuda_runtime.h"
#include "narrow_float.h"

using __half = sublimate::emulator::Narrow<sublimate::half_t>;
using __half2 = sublimate::emulator::NarrowPair<sublimate::half_t>;
using half = __half;
using half2 = __half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __int2half_rn(int x) { return x; }
inline __half __uint2half_rn(unsigned x) { return x; }
inline int __half2int_rn(__half x) { return __float2int_rn(x); }
inline int __half2int_rz(__half x) { return __float2int_rz(x); }
inline unsigned short __half_as_ushort(__half x) { return x.raw.bits; }
inline short __half_as_short(__half x) { return short(x.raw.bits); }
inline __half __ushort_as_half(unsigned short x) { return __half(sublimate::half_t{x}); }
inline __half __short_as_half(short x) { return __half(sublimate::half_t{uint16_t(x)}); }
inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
inline __half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
inline float2 __half22float2(__half2 x) { return make_float2(x.x, x.y); }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline __half2 make_half2(__half low, __half high) { return {low, high}; }
