// What the CUDA kernels of dense multicut share: the value of a pair as one chain of fused
// multiply-adds, the order of candidates, and where instances begin.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "common/launch.h"
#include "multicut/kernels.h"

namespace sublimate::multicut::cuda {

constexpr int NONE = 0x7fffffff;  // index of no candidate: after every real one
constexpr unsigned WARP = 0xffffffffu;

__device__ inline float chain(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double chain(double a, double b, double c) { return fma(a, b, c); }

// Whether candidate (a, i) goes before (b, j): NaN before numbers, larger values, lower index.
template <class T>
__device__ bool precedes(T a, int64_t i, T b, int64_t j) {
  const bool odd_a = a != a, odd_b = b != b;
  if (odd_a != odd_b) return odd_a;
  return a > b || ((a == b || odd_a) && i < j);
}

// The best of a segment of `width` lanes, in all of them.
template <class T, class I>
__device__ void best_of_lanes(T& value, I& index, int width) {
  for (int step = width / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(WARP, value, step, 32);
    const I at = __shfl_xor_sync(WARP, index, step, 32);
    if (precedes(other, int64_t(at), value, int64_t(index))) {
      value = other;
      index = at;
    }
  }
}

// The factors of the term of alpha: s = chain over coordinates, then chain(row(w_i), column(w_j),
// s). Each is sqrt |alpha| times a weight; the row's has the sign, so that both orders of a pair
// have the same bits.
template <class T>
struct Alpha {
  T root, sign;
  __device__ T column(T w) const { return root * w; }
  __device__ T row(T w) const { return sign * (root * w); }
};
template <class T>
Alpha<T> alpha_of(const Nodes& nodes) {
  return {T(std::sqrt(std::fabs(nodes.alpha))), T(nodes.alpha < 0 ? 1 : -1)};
}

template <class T>
__device__ T weight_of(const void* weights, int64_t i) {
  return weights ? static_cast<const T*>(weights)[i] : T(1);
}

// Instance b with offsets[b] <= i < offsets[b + 1]; the last of several that begin at one place.
__device__ inline int64_t instance_of(const int64_t* offsets, int64_t instances, int64_t i) {
  int64_t low = 0, high = instances;  // offsets[low] <= i < offsets[high]
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (offsets[middle] <= i) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Sum over the block in a fixed order, in every thread. `room`: a word for each warp.
__device__ inline double block_sum(double x, double* room) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(WARP, x, step);
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  __syncthreads();  // the last use of the room is over
  if (threadIdx.x % 32 == 0) room[warp] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < warps; ++w) x += room[w];
  return x;
}

}  // namespace sublimate::multicut::cuda
