// Arithmetic of one element or one block: one source for every target.
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace sublimate::kronecker_attention {

constexpr double LOG2_E = 1.44269504088896340736, LN_2 = 0.69314718055994530942;

// Queries begin <= lane < end of a block may read a key; lanes count from the block's first query.
struct Interval {
  int64_t begin, end;
};
SUBLIMATE_HD Interval both(Interval a, Interval b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}
// For the key at `position`, relative to the first query: bounded says whether j <= i is asked, a
// window (0: none) asks i < j + window too.
SUBLIMATE_HD Interval readers(int64_t position, bool bounded, int64_t window, int64_t lanes) {
  Interval r{0, lanes};
  if (bounded && position > 0) r.begin = position;
  if (window > 0 && position + window < lanes) r.end = position + window;
  return r;
}

// A row's logits may go without a maximum while their bound, in powers of two, is below this: then
// sums of up to 2^68 terms and every term stay in fp32's range.
constexpr double STATIC_BOUND = 58.0;

// Number of monomials of degree <= g in d variables, C(d + g, g).
SUBLIMATE_HD int64_t monomials(int64_t d, int64_t g) {
  int64_t r = 1;
  for (int64_t i = 1; i <= g; ++i) r = r * (d + i) / i;
  return r;
}

}  // namespace sublimate::kronecker_attention
