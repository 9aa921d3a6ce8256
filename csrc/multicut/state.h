// Arithmetic on the fp64 state of clusters. Included by per-level sources only (common/isa.h).
#pragma once

#include <cstdint>

#include "multicut/pairs.h"

namespace sublimate::multicut {
namespace {

// Sums run in eight lanes at every level, so that levels agree.
typedef double Eight __attribute__((vector_size(64)));
template <class T>
struct EightOf {
  typedef T type __attribute__((vector_size(8 * sizeof(T)), aligned(sizeof(T)), may_alias));
};

template <class T>
SUBLIMATE_HD Eight eight(const T* p) {
  return __builtin_convertvector(*reinterpret_cast<const typename EightOf<T>::type*>(p), Eight);
}

template <class A, class B>
inline double dot(const A* a, const B* b, int64_t n) {
  Eight lanes{};
  int64_t p = 0;
  for (; p + 8 <= n; p += 8) lanes += eight(a + p) * eight(b + p);
  double sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
               ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  for (; p < n; ++p) sum += double(a[p]) * double(b[p]);
  return sum;
}

// <a, b>_q
template <class A, class B>
inline double product(const A* a, const B* b, int64_t dims, int64_t negative) {
  const int64_t plain = dims - negative;
  const double sum = dot(a, b, plain);
  return negative ? sum - dot(a + plain, b + plain, negative) : sum;
}

template <class T>
inline double weight(const T* weights, int64_t i) {
  return weights ? double(weights[i]) : 1.0;
}

template <class T>
inline void accumulate(double* sum, const T* x, int64_t dims, double sign) {
  for (int64_t p = 0; p < dims; ++p) sum[p] += sign * double(x[p]);
}

}  // namespace
}  // namespace sublimate::multicut
