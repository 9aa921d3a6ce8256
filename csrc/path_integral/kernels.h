// Signatures of the path-integral kernels, declared once for every target (the CPU levels, CUDA).
//
// A chunk of a path is [points, samples, size], dense; a sample is a row of `size` numbers. x,
// base, weights and sums are in the arithmetic type A of `dtype` (fp64 for fp64, else fp32);
// `dtype` is the element type of the points written or the gradients read. Sums over points run in
// their order. Every function returns a status (common/error.h).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/error.h"
#include "common/exec.h"

namespace sublimate::path_integral {

// A weight for each point, or for each point and sample.
struct Weights {
  const void* data;  // (points,) or (points, samples)
  bool each_sample;
};

// Row of base that point k of sample b starts from: index[k, b], or b, or 0 if base has one row.
struct Starts {
  const void* data;      // (rows, size)
  int64_t rows;          // samples, or 1, or any with index
  const int64_t* index;  // (points, samples) in [0, rows), or null; not checked
};

// Normal numbers: element e of point k of sample b is word row[b] + k step + e of the normal stream
// under the seed, by the table of common/normal.h. No noise if stdev is null.
struct Noise {
  const void* stdev;  // (samples,) or null
  const int64_t* seed;
  const int64_t* row;  // (samples,) >= 0
  int64_t step;
  const float* table;
};

// out = start + weight (x - start) + stdev normal.
struct Points {
  int dtype;  // of out
  const void* x;
  Starts starts;
  Weights alpha;
  Noise noise;
  void* out;
  int64_t points, samples, size;
  Exec exec;
};

// first = acc + sum_k w_k t_k, second = square + sum_k w_k t_k^2, where t = grads, or with x not
// null t = grads (x - start).
struct Accumulate {
  int dtype;  // of grads
  const void* grads;
  Weights weight;
  const void* x;             // or null
  Starts starts;             // read if x is
  const void *acc, *square;  // (samples, size) or null: zero
  void *first, *second;      // (samples, size); second may be null
  int64_t points, samples, size;
  Exec exec;
};

// out = w (up (x - start)).
struct Difference {
  int dtype;  // of out
  const void* up;
  Weights weight;
  const void* x;
  Starts starts;
  void* out;
  int64_t points, samples, size;
  Exec exec;
};

// out = (x - base) acc and its sum over each row; base has `base_rows` rows, samples or 1.
struct Scale {
  int dtype;  // fp32 or fp64
  const void *acc, *x, *base;
  int64_t base_rows;
  void *out, *sums;
  int64_t samples, size;
  Exec exec;
};

// out = base + a_k U (image - base) + noise, with U the mask [images, mask_height, mask_width]
// upsampled bilinearly to [height, width], corners on corners; image [images, channels, ...].
struct MaskPoints {
  int dtype;  // of out
  const void *image, *base, *mask, *alpha;
  int64_t base_images;  // images or 1
  Noise noise;          // a sample is an image
  void* out;            // [points, images, channels, height, width]
  int64_t points, images, channels, height, width, mask_height, mask_width;
  Exec exec;
};

// Gradient with respect to the mask. pixels: scratch of A, images * height * width.
struct MaskGrad {
  int dtype;  // of grads
  const void *grads, *image, *base, *alpha;
  int64_t base_images;
  void *pixels, *out;
  int64_t points, images, channels, height, width, mask_height, mask_width;
  Exec exec;
};

// Total variation (mean squared vertical plus mean squared horizontal difference) and area
// (mean |1 - m|) of each mask; or, with grad not null, grad = variation_up dTV + area_up dArea.
struct MaskPenalty {
  int dtype;  // fp32 or fp64
  const void* mask;
  void *variation, *area;  // (images,): results, or the incoming gradients
  void* grad;              // [images, height, width] or null
  int64_t images, height, width;
  Exec exec;
};

inline bool bad_chunk(int64_t points, int64_t samples, int64_t size) {
  return points < 0 || samples < 0 || size < 0;
}
// Without points there is no index either: an empty tensor has no address.
inline bool bad_starts(const Starts& s, int64_t points, int64_t samples) {
  return points > 0 && !s.index && s.rows != 1 && s.rows != samples;
}
inline bool bad_noise(const Noise& n) { return n.stdev && (!n.seed || !n.row || !n.table); }
inline int check(const Points& p) {
  const bool bad =
      bad_chunk(p.points, p.samples, p.size) || bad_starts(p.starts, p.points, p.samples);
  return bad || bad_noise(p.noise) ? kBadArgument : kOk;
}
inline int check(const Accumulate& a) {
  const bool bad = bad_chunk(a.points, a.samples, a.size);
  return bad || (a.x && bad_starts(a.starts, a.points, a.samples)) ? kBadArgument : kOk;
}
inline int check(const Difference& d) {
  const bool bad =
      bad_chunk(d.points, d.samples, d.size) || bad_starts(d.starts, d.points, d.samples);
  return bad ? kBadArgument : kOk;
}
inline int check(const Scale& s) {
  const bool bad = s.samples < 0 || s.size < 0;
  return bad || (s.base_rows != 1 && s.base_rows != s.samples) ? kBadArgument : kOk;
}
inline bool bad_mask(int64_t images, int64_t base_images, int64_t height, int64_t width,
                     int64_t mask_height, int64_t mask_width) {
  return images < 0 || height < 0 || width < 0 || mask_height < 1 || mask_width < 1 ||
         (base_images != 1 && base_images != images);
}
inline int check(const MaskPoints& m) {
  const bool bad = m.points < 0 || m.channels < 0 || bad_noise(m.noise);
  return bad || bad_mask(m.images, m.base_images, m.height, m.width, m.mask_height, m.mask_width)
             ? kBadArgument
             : kOk;
}
inline int check(const MaskGrad& m) {
  const bool bad = m.points < 0 || m.channels < 0;
  return bad || bad_mask(m.images, m.base_images, m.height, m.width, m.mask_height, m.mask_width)
             ? kBadArgument
             : kOk;
}
inline int check(const MaskPenalty& m) {
  return m.images < 0 || m.height < 1 || m.width < 1 ? kBadArgument : kOk;
}

}  // namespace sublimate::path_integral

// Calls kernel<T>(k) for the element type of k, after the checks.
#define SUBLIMATE_PATH_RUN(kernel, k)             \
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

#define SUBLIMATE_PATH_RUN_WIDE(kernel, k)                     \
  if (const int status = check(k)) return status;              \
  if (DType((k).dtype) == DType::f32) return kernel<float>(k); \
  return DType((k).dtype) == DType::f64 ? kernel<double>(k) : kBadDtype

#define SUBLIMATE_DECLARE_PATH_INTEGRAL(target) \
  namespace sublimate::path_integral::target {  \
  int points(const Points&);                    \
  int accumulate(const Accumulate&);            \
  int difference(const Difference&);            \
  int scale(const Scale&);                      \
  int mask_points(const MaskPoints&);           \
  int mask_grad(const MaskGrad&);               \
  int mask_penalty(const MaskPenalty&);         \
  }
