// Barriers, votes, shuffles and warp reductions, as the CUDA headers declare them.
#pragma once

#include <type_traits>

#include "emulator.h"

namespace sublimate::emulator {

template <class To, class From>
inline To bit_copy(const From& from) {
  To to{};
  std::memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return to;
}

// What a shuffle of T returns: small integers become int, as overload resolution does on the
// device.
template <class T, bool = std::is_arithmetic<T>::value>
struct Shuffled {
  using type = decltype(+T());
};
template <class T>
struct Shuffled<T, false> {};  // cuda_fp16.h and cuda_bf16.h add theirs
template <class T>
using shuffled_t = typename Shuffled<T>::type;

template <class T>
inline shuffled_t<T> shuffle(Op op, unsigned mask, T value, int source, const Site& site) {
  using R = shuffled_t<T>;
  static_assert(sizeof(R) <= 8, "shuffles move at most 8 bytes");
  const uint64_t bits = bit_copy<uint64_t>(R(value));
  return bit_copy<R>(warp_collective(op, mask, bits, unsigned(source), site));
}

inline int lane() { return int(current().lane); }
inline void check_width(Op op, int width, const Site& site) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(std::string(name_of(op)) + " at " + text(site) + ": width " + std::to_string(width) +
         " is no power of two up to 32");
}

}  // namespace sublimate::emulator

#define SUBLIMATE_SITE const ::sublimate::emulator::Site& site = ::sublimate::emulator::Site::here()

inline void __syncthreads(SUBLIMATE_SITE) {
  sublimate::emulator::block_barrier(sublimate::emulator::Op::syncthreads, false, site);
}
inline int __syncthreads_count(int predicate, SUBLIMATE_SITE) {
  return sublimate::emulator::block_barrier(sublimate::emulator::Op::syncthreads_count,
                                            predicate != 0, site);
}
inline int __syncthreads_and(int predicate, SUBLIMATE_SITE) {
  return sublimate::emulator::block_barrier(sublimate::emulator::Op::syncthreads_and,
                                            predicate != 0, site);
}
inline int __syncthreads_or(int predicate, SUBLIMATE_SITE) {
  return sublimate::emulator::block_barrier(sublimate::emulator::Op::syncthreads_or, predicate != 0,
                                            site);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, SUBLIMATE_SITE) {
  sublimate::emulator::warp_collective(sublimate::emulator::Op::syncwarp, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SUBLIMATE_SITE) {
  return unsigned(sublimate::emulator::warp_collective(sublimate::emulator::Op::ballot, mask,
                                                       predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, SUBLIMATE_SITE) {
  return int(sublimate::emulator::warp_collective(sublimate::emulator::Op::any, mask,
                                                  predicate != 0, 0, site));
}
inline int __all_sync(unsigned mask, int predicate, SUBLIMATE_SITE) {
  return int(sublimate::emulator::warp_collective(sublimate::emulator::Op::all, mask,
                                                  predicate != 0, 0, site));
}
// Nothing says that lanes run together outside a collective: the least that may be returned.
inline unsigned __activemask() { return 1u << sublimate::emulator::lane(); }

// Source lanes by the device's rules: a segment of `width` lanes, own value beyond its ends.
template <class T>
inline sublimate::emulator::shuffled_t<T> __shfl_sync(unsigned mask, T value, int source,
                                                      int width = 32, SUBLIMATE_SITE) {
  using namespace sublimate::emulator;
  check_width(Op::shfl, width, site);
  const int from = (lane() & -width) | (source & (width - 1));
  return shuffle(Op::shfl, mask, value, from, site);
}
template <class T>
inline sublimate::emulator::shuffled_t<T> __shfl_up_sync(unsigned mask, T value, unsigned delta,
                                                         int width = 32, SUBLIMATE_SITE) {
  using namespace sublimate::emulator;
  check_width(Op::shfl_up, width, site);
  const int from = lane() - int(delta & 31);
  return shuffle(Op::shfl_up, mask, value, from >= (lane() & -width) ? from : lane(), site);
}
template <class T>
inline sublimate::emulator::shuffled_t<T> __shfl_down_sync(unsigned mask, T value, unsigned delta,
                                                           int width = 32, SUBLIMATE_SITE) {
  using namespace sublimate::emulator;
  check_width(Op::shfl_down, width, site);
  const int from = lane() + int(delta & 31);
  return shuffle(Op::shfl_down, mask, value, from <= (lane() | (width - 1)) ? from : lane(), site);
}
template <class T>
inline sublimate::emulator::shuffled_t<T> __shfl_xor_sync(unsigned mask, T value, int lane_mask,
                                                          int width = 32, SUBLIMATE_SITE) {
  using namespace sublimate::emulator;
  check_width(Op::shfl_xor, width, site);
  // An earlier segment may be read, a later one may not.
  const int from = lane() ^ (lane_mask & 31);
  return shuffle(Op::shfl_xor, mask, value, from <= (lane() | (width - 1)) ? from : lane(), site);
}

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, SUBLIMATE_SITE) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4, "matches 4 or 8 bytes");
  return unsigned(sublimate::emulator::warp_collective(
      sublimate::emulator::Op::match_any, mask, sublimate::emulator::bit_copy<uint64_t>(value), 0,
      site));
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* predicate, SUBLIMATE_SITE) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4, "matches 4 or 8 bytes");
  const auto lanes = unsigned(sublimate::emulator::warp_collective(
      sublimate::emulator::Op::match_all, mask, sublimate::emulator::bit_copy<uint64_t>(value), 0,
      site));
  *predicate = lanes != 0;
  return lanes;
}

// Values travel sign- or zero-extended to 64 bits, so one comparison serves both.
#define SUBLIMATE_REDUCE(name, T)                                                      \
  inline T __##name##_sync(unsigned mask, T value, SUBLIMATE_SITE) {                   \
    return T(sublimate::emulator::warp_collective(sublimate::emulator::Op::name, mask, \
                                                  uint64_t(int64_t(value)), 0, site)); \
  }
SUBLIMATE_REDUCE(reduce_add, int)
SUBLIMATE_REDUCE(reduce_min, int)
SUBLIMATE_REDUCE(reduce_max, int)
SUBLIMATE_REDUCE(reduce_add, unsigned)
SUBLIMATE_REDUCE(reduce_min, unsigned)
SUBLIMATE_REDUCE(reduce_max, unsigned)
SUBLIMATE_REDUCE(reduce_and, unsigned)
SUBLIMATE_REDUCE(reduce_or, unsigned)
SUBLIMATE_REDUCE(reduce_xor, unsigned)
#undef SUBLIMATE_REDUCE

inline void __threadfence() {
  sublimate::emulator::Runtime runtime;
  sublimate::emulator::racecheck::fence();
}
inline void __threadfence_block() {}
inline void __threadfence_system() { __threadfence(); }
inline void __nanosleep(unsigned) { sublimate::emulator::yield(); }
[[noreturn]] inline void __trap() {
  sublimate::emulator::Runtime runtime;
  sublimate::emulator::fail(sublimate::emulator::text(sublimate::emulator::current()) +
                            " called __trap");
}
