// Atomics. Fibers switch only where they ask to, so a plain read-modify-write is atomic here.
#pragma once

#include "emulator.h"

namespace sublimate::emulator {

// Applies `change` to *address and returns what was there.
template <class T, class Change>
inline T atomic_update(T* address, Change change) {
  Runtime runtime;
  maybe_yield();
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T))
    fail("misaligned atomic by " + text(current()));
  racecheck::access(address, sizeof(T), racecheck::Kind::atomic, __builtin_return_address(0));
  T old, now;
  std::memcpy(&old, address, sizeof old);
  now = change(old);
  std::memcpy(address, &now, sizeof now);
  return old;
}

template <class T>
inline T atomic_cas(T* address, T compare, T value) {
  const T old = atomic_update(address, [=](T v) { return v == compare ? value : v; });
  if (old != compare) yield();  // so that a spinning thread does not lock out the others
  return old;
}

}  // namespace sublimate::emulator

// Plain functions, not templates: arguments convert as they do on the device. Integer addition
// wraps, so it is done in the unsigned type.
#define SUBLIMATE_ATOMIC(name, T, expression)                              \
  inline T name(T* address, T value) {                                     \
    return sublimate::emulator::atomic_update(                             \
        address, [=]([[maybe_unused]] T old) -> T { return expression; }); \
  }
#define SUBLIMATE_ATOMIC_INTEGER(T, U)                                                        \
  SUBLIMATE_ATOMIC(atomicAdd, T, static_cast<T>(static_cast<U>(old) + static_cast<U>(value))) \
  SUBLIMATE_ATOMIC(atomicExch, T, value)                                                      \
  SUBLIMATE_ATOMIC(atomicMin, T, value < old ? value : old)                                   \
  SUBLIMATE_ATOMIC(atomicMax, T, value > old ? value : old)                                   \
  SUBLIMATE_ATOMIC(atomicAnd, T, old& value)                                                  \
  SUBLIMATE_ATOMIC(atomicOr, T, old | value)                                                  \
  SUBLIMATE_ATOMIC(atomicXor, T, old ^ value)                                                 \
  inline T atomicCAS(T* address, T compare, T value) {                                        \
    return sublimate::emulator::atomic_cas(address, compare, value);                          \
  }
SUBLIMATE_ATOMIC_INTEGER(int, unsigned)
SUBLIMATE_ATOMIC_INTEGER(unsigned, unsigned)
SUBLIMATE_ATOMIC_INTEGER(unsigned long long, unsigned long long)
#undef SUBLIMATE_ATOMIC_INTEGER

SUBLIMATE_ATOMIC(atomicMin, long long, value < old ? value : old)
SUBLIMATE_ATOMIC(atomicMax, long long, value > old ? value : old)
SUBLIMATE_ATOMIC(atomicAnd, long long, old& value)
SUBLIMATE_ATOMIC(atomicOr, long long, old | value)
SUBLIMATE_ATOMIC(atomicXor, long long, old ^ value)
SUBLIMATE_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(value)))
SUBLIMATE_ATOMIC(atomicSub, unsigned, old - value)
SUBLIMATE_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
SUBLIMATE_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
SUBLIMATE_ATOMIC(atomicAdd, float, old + value)
SUBLIMATE_ATOMIC(atomicAdd, double, old + value)
SUBLIMATE_ATOMIC(atomicExch, float, value)
#undef SUBLIMATE_ATOMIC

inline unsigned short atomicCAS(unsigned short* address, unsigned short compare,
                                unsigned short value) {
  return sublimate::emulator::atomic_cas(address, compare, value);
}
