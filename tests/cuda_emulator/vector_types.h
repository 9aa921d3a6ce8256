// dim3, the built-in vector types and their make_ functions.
#pragma once

#include <cstdint>

// Alignment as on the device: two and four elements are aligned to their size, at most 16 bytes.
#define SUBLIMATE_EMULATOR_VECTOR(name, T)                                      \
  struct name##1 { T x; };                                                      \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct name##3 { T x, y, z; };                                                \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##1 make_##name##1(T x) { return name##1 {x}; }                    \
  inline name##2 make_##name##2(T x, T y) { return name##2 {x, y}; }            \
  inline name##3 make_##name##3(T x, T y, T z) { return name##3 {x, y, z}; }    \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 {x, y, z, w}; }

SUBLIMATE_EMULATOR_VECTOR(char, signed char)
SUBLIMATE_EMULATOR_VECTOR(uchar, unsigned char)
SUBLIMATE_EMULATOR_VECTOR(short, short)
SUBLIMATE_EMULATOR_VECTOR(ushort, unsigned short)
SUBLIMATE_EMULATOR_VECTOR(int, int)
SUBLIMATE_EMULATOR_VECTOR(uint, unsigned)
SUBLIMATE_EMULATOR_VECTOR(long, long)
SUBLIMATE_EMULATOR_VECTOR(ulong, unsigned long)
SUBLIMATE_EMULATOR_VECTOR(longlong, long long)
SUBLIMATE_EMULATOR_VECTOR(ulonglong, unsigned long long)
SUBLIMATE_EMULATOR_VECTOR(float, float)
SUBLIMATE_EMULATOR_VECTOR(double, double)
#undef SUBLIMATE_EMULATOR_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return uint3{x, y, z}; }
};
