// What the CUDA sources of this family share: their entry points, packs of elements, launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/launch.h"
#include "randomized_linear/kernels.h"

namespace sublimate::randomized_linear::cuda {

// Each takes arguments that check() accepted, with rows, columns and k above 0.
int project_dense(const Project&);
int project_srht(const Project&);
int project_select(const Project&);  // countsketch and rows

// The 16 bytes of one access.
template <class T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T item[SIZE];
};

// One access: the compiler would take the struct apart and store its items.
template <class T>
__device__ void store_pack(T* to, const Pack<T>& pack) {
#if SUBLIMATE_ON_DEVICE
  uint4 whole;
  memcpy(&whole, &pack, sizeof whole);
  __stcg(reinterpret_cast<uint4*>(to), whole);
#else
  *reinterpret_cast<Pack<T>*>(to) = pack;
#endif
}

// Whether every row begins at a multiple of 16 bytes, so that rows can be read in packs.
inline bool aligned_rows(const void* base, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(base) | uintptr_t(row_bytes)) % 16 == 0;
}

inline size_t element_size(int dtype) {
  return DType(dtype) == DType::f64 ? 8 : DType(dtype) == DType::f32 ? 4 : 2;
}

// Rows of out from `first` to k are zero.
inline int clear_rows(void* out, int64_t first, int64_t k, int64_t columns, int dtype,
                      const Exec& exec) {
  const size_t row = size_t(columns) * element_size(dtype);
  return cudaMemsetAsync(static_cast<char*>(out) + size_t(first) * row, 0, size_t(k - first) * row,
                         cudaStream_t(exec.stream));
}

}  // namespace sublimate::randomized_linear::cuda
