// Signatures of the few-bit kernels, declared once for every target (the CPU levels and CUDA).
//
// Elements are walked in memory order: x, y, grad are dense and share one layout, n elements.
// Packed codes: int32 words, word[g * bits + p] holds bit p of the codes of elements 32g .. 32g+31;
// ceil(n / 32) * bits words, unused lanes zero. Tables are in the arithmetic type (fp64 for fp64
// elements, else fp32) and live where the elements live. Every function returns a status
// (common/error.h).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/error.h"
#include "common/exec.h"
#include "fewbit/fewbit_math.h"

namespace sublimate::fewbit {

// The searchable form of a codebook. Interval of x: number of borders s with not (x <= s).
struct Borders {
  const void* borders;   // (count,) ascending
  const uint8_t* codes;  // (count + 1,)
  int count;
};

struct Forward {
  int dtype;         // DType of x and y
  int fn;            // Fn
  double a, b;       // parameters of fn
  const void* x;     // (n,)
  void* y;           // (n,) or null: codes only
  uint32_t* packed;  // or null with bits == 0: value only
  int64_t n;
  Borders table;
  const void* levels;   // (2^bits,) ascending; read in stochastic mode only
  int bits;             // 0 .. 4
  const int64_t* seed;  // null: deterministic code; else stochastic rounding of f'(x)
  Exec exec;
};

struct Backward {
  int dtype;
  const void* grad;  // (n,)
  const uint32_t* packed;
  const void* levels;  // (2^bits,)
  void* dx;            // (n,)
  int64_t n;
  int bits;
  Exec exec;
};

// y = f(gate) * up. With scale == null the codes are of gate; otherwise of up / scale[row],
// row = i / inner.
struct GatedForward {
  int dtype, fn;
  const void* gate;
  const void* up;
  void* y;
  uint32_t* packed;
  int64_t n;
  Borders table;
  int bits;            // 0: value only
  const float* scale;  // (n / inner,) or null
  int64_t inner;
  Exec exec;
};

// scale == null: kept is up,   dgate = dy up levels[code],              dup = dy values[code].
// otherwise:     kept is gate, dgate = dy f'(gate) levels[code] scale,  dup = dy f(gate).
struct GatedBackward {
  int dtype, fn;
  const void* dy;
  const void* kept;
  const uint32_t* packed;
  const void* levels;
  const void* values;  // (2^bits,), read when scale == null
  const float* scale;
  int64_t inner;
  void* dgate;  // or null: not needed
  void* dup;    // or null
  int64_t n;
  int bits;
  Exec exec;
};

// Every target refuses the same arguments before it reads anything.
inline bool bad_bits(int bits, int lowest) { return bits < lowest || bits > MAX_BITS; }
inline bool bad_table(const Borders& t) { return t.count < 0 || t.count > MAX_BORDERS || !t.codes; }
inline bool gated_function(int fn) {
  return Fn(fn) == Fn::gelu || Fn(fn) == Fn::gelu_tanh || Fn(fn) == Fn::silu;
}

inline int check(const Forward& k) {
  if (bad_bits(k.bits, 0) || k.fn < 0 || k.fn > int(Fn::given) || k.n < 0) return kBadArgument;
  const bool exact = is_exact(Fn(k.fn));
  if (k.bits > 0 && k.seed && (!k.levels || exact)) return kBadArgument;
  if (k.bits > 0 && !k.seed && !exact && bad_table(k.table)) return kBadArgument;
  return kOk;
}
inline int check(const Backward& k) { return bad_bits(k.bits, 1) || k.n < 0 ? kBadArgument : kOk; }
inline int check(const GatedForward& k) {
  if (bad_bits(k.bits, 0) || !gated_function(k.fn) || k.n < 0) return kBadArgument;
  if (k.bits > 0 && bad_table(k.table)) return kBadArgument;
  return k.scale && k.inner <= 0 && k.n > 0 ? kBadArgument : kOk;
}
inline int check(const GatedBackward& k) {
  if (bad_bits(k.bits, 1) || !gated_function(k.fn) || k.n < 0) return kBadArgument;
  if (!k.scale && !k.values) return kBadArgument;
  return k.scale && k.inner <= 0 && k.n > 0 ? kBadArgument : kOk;
}

}  // namespace sublimate::fewbit

// Calls kernel<T>(k) for the element type of k, after the checks.
#define SUBLIMATE_FEWBIT_RUN(kernel, k)           \
  if (const int status = check(k)) return status; \
  switch (DType((k).dtype)) {                     \
    case DType::f32:                              \
      return kernel<float>(k);                    \
    case DType::f16:                              \
      return kernel<half_t>(k);                   \
    case DType::bf16:                             \
      return kernel<bfloat_t>(k);                 \
    case DType::f64:                              \
      return kernel<double>(k);                   \
  }                                               \
  return kBadDtype

#define SUBLIMATE_DECLARE_FEWBIT(target)    \
  namespace sublimate::fewbit::target {     \
  int forward(const Forward&);              \
  int backward(const Backward&);            \
  int gated_forward(const GatedForward&);   \
  int gated_backward(const GatedBackward&); \
  }
