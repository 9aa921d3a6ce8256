// Arithmetic of one element, one source for CPU and CUDA.
#pragma once

#include <cstdint>

#include "common/hd.h"
#include "common/normal.h"
#include "common/philox.h"
#include "path_integral/kernels.h"

namespace sublimate::path_integral {

// Linear interpolation with corners on corners: large position i lies between small positions `low`
// and `high`, `part` of the way.
template <class A>
struct Between {
  int64_t low, high;
  A part;
};
template <class A>
SUBLIMATE_HD Between<A> between(int64_t i, int64_t large, int64_t small) {
  if (large <= 1 || small <= 1) return {0, 0, A(0)};
  // i (small - 1) / (large - 1), exact in integers before the one rounding.
  const int64_t whole = i * (small - 1), low = whole / (large - 1);
  const A part = A(whole - low * (large - 1)) / A(large - 1);
  return {low, low + 1 < small ? low + 1 : low, part};
}
template <class A>
SUBLIMATE_HD A upsampled(const A* mask, const Between<A>& y, const Between<A>& x, int64_t width) {
  const A* low = mask + y.low * width;
  const A* high = mask + y.high * width;
  const A top = low[x.low] + x.part * (low[x.high] - low[x.low]);
  const A bottom = high[x.low] + x.part * (high[x.high] - high[x.low]);
  return top + y.part * (bottom - top);
}

// Range of large positions whose interpolation reads small position j: [begin, end).
SUBLIMATE_HD void readers(int64_t j, int64_t large, int64_t small, int64_t* begin, int64_t* end) {
  *begin = 0;
  *end = large;
  if (large <= 1 || small <= 1) return;
  const int64_t n = large - 1, m = small - 1;
  const int64_t below = (j - 1) * n;
  if (j > 0) *begin = below < 0 ? 0 : below / m;
  if (j < m) *end = ((j + 1) * n + m - 1) / m + 1;
  if (*end > large) *end = large;
}
// Its weight in large position i.
template <class A>
SUBLIMATE_HD A weight_of(int64_t j, int64_t i, int64_t large, int64_t small) {
  const Between<A> at = between<A>(i, large, small);
  A w = A(0);
  if (at.low == j) w += A(1) - at.part;
  if (at.high == j) w += at.part;
  return w;
}

template <class A>
SUBLIMATE_HD A weight_at(const Weights& w, int64_t k, int64_t b, int64_t samples) {
  return static_cast<const A*>(w.data)[w.each_sample ? k * samples + b : k];
}
template <class A>
SUBLIMATE_HD const A* start_of(const Starts& s, int64_t k, int64_t b, int64_t samples,
                               int64_t size) {
  const int64_t row = s.index ? s.index[k * samples + b] : s.rows == 1 ? 0 : b;
  return static_cast<const A*>(s.data) + row * size;
}

// Derivative of the penalty of one mask at (y, x), given what arrives for each part.
template <class A>
SUBLIMATE_HD A penalty_slope(const A* mask, int64_t y, int64_t x, int64_t height, int64_t width,
                             A variation, A area) {
  const A m = mask[y * width + x];
  A vertical = A(0), horizontal = A(0);
  if (y > 0) vertical += m - mask[(y - 1) * width + x];
  if (y + 1 < height) vertical -= mask[(y + 1) * width + x] - m;
  if (x > 0) horizontal += m - mask[y * width + x - 1];
  if (x + 1 < width) horizontal -= mask[y * width + x + 1] - m;
  A slope = A(0);
  if (height > 1) slope += A(2) * variation * vertical / A((height - 1) * width);
  if (width > 1) slope += A(2) * variation * horizontal / A(height * (width - 1));
  const A side = m > A(1) ? A(1) : m < A(1) ? A(-1) : m == A(1) ? A(0) : m;  // NaN stays
  return slope + area * side / A(height * width);
}

}  // namespace sublimate::path_integral
