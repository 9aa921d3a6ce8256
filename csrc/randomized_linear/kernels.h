// Signatures of the randomized linear kernels, declared once for every target (the CPU levels and
// CUDA).
//
// x is rows x columns, consecutive within a row, rows row_stride elements apart; results are dense.
// Products and sums are in the arithmetic type (fp64 for fp64 elements, else fp32), rounded once.
// Every function returns a status (common/error.h).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/error.h"
#include "common/exec.h"
#include "randomized_linear/randomized_linear_math.h"

namespace sublimate::randomized_linear {

// out = S^T x, k x columns; S is rows x k, a function of (seed, rows, k, sketch), never stored.
// With k > rows (srht: k > transformed rows) the outputs from there on are zero, except for the
// dense sketches.
struct Project {
  int dtype;
  int sketch;  // Sketch: gaussian, rademacher, srht, countsketch or rows
  const void* x;
  int64_t rows, columns, row_stride;
  void* out;
  int64_t k;
  const int64_t* seed;        // where x lives
  const float* normal_table;  // common/normal.h, read by gaussian; else may be null
  Exec exec;
};

// out[j] = scale[j] * x[index[j]], k x columns.
struct Gather {
  int dtype;
  const void* x;
  int64_t rows, columns, row_stride;
  const int32_t* index;  // (k,), each in [0, rows): not checked
  const void* scale;     // (k,) of the arithmetic type, or null: 1
  void* out;
  int64_t k;
  Exec exec;
};

// out = scale * H x along rows of `length` elements, zero-padded to `padded`, a power of two.
struct Hadamard {
  int dtype;
  const void* x;
  int64_t rows, length, row_stride;
  void* out;  // rows x padded
  int64_t padded;
  double scale;
  Exec exec;
};

// Every target refuses the same arguments before it reads anything.
inline bool bad_matrix(int64_t rows, int64_t columns, int64_t row_stride) {
  return rows < 0 || rows > MAX_ROWS || columns < 0 || row_stride < 0;
}
inline int check(const Project& p) {
  if (bad_matrix(p.rows, p.columns, p.row_stride) || p.k < 0 || p.k > MAX_ROWS || !p.seed) {
    return kBadArgument;
  }
  if (p.sketch == int(Sketch::gaussian) && !p.normal_table) return kBadArgument;
  return is_projection(p.sketch) ? kOk : kBadArgument;
}
inline int check(const Gather& g) {
  return bad_matrix(g.rows, g.columns, g.row_stride) || g.k < 0 || (g.k > 0 && g.rows == 0)
             ? kBadArgument
             : kOk;
}
inline int check(const Hadamard& h) {
  if (h.rows < 0 || h.row_stride < 0 || h.length < 0 || h.length > h.padded) return kBadArgument;
  const bool power = h.padded > 0 && (h.padded & (h.padded - 1)) == 0;
  return power && h.padded <= MAX_LENGTH ? kOk : kBadArgument;
}

}  // namespace sublimate::randomized_linear

// Calls kernel<T>(p) for the element type of p, after the checks.
#define SUBLIMATE_RANDOMIZED_LINEAR_RUN(kernel, p) \
  if (const int status = check(p)) return status;  \
  switch (DType((p).dtype)) {                      \
    case DType::f32:                               \
      return kernel<float>(p);                     \
    case DType::f16:                               \
      return kernel<half_t>(p);                    \
    case DType::bf16:                              \
      return kernel<bfloat_t>(p);                  \
    case DType::f64:                               \
      return kernel<double>(p);                    \
  }                                                \
  return kBadDtype

#define SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(target) \
  namespace sublimate::randomized_linear::target {  \
  int project(const Project&);                      \
  int gather(const Gather&);                        \
  int hadamard(const Hadamard&);                    \
  }
