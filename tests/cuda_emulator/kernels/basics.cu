// Correct kernels, one per capability of the emulator. They also compile with nvcc.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/error.h"
#include "common/launch.h"
#include "kernels.h"

namespace emulator_tests {
namespace {

using sublimate::ceil_div;
using sublimate::grid_for;
using sublimate::launch;

constexpr int kThreads = 256;
constexpr unsigned kFull = 0xffffffffu;

__device__ __forceinline__ int64_t global_rank() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ float warp_sum(float v) {
  for (int offset = 16; offset; offset /= 2) v += __shfl_down_sync(kFull, v, offset);
  return v;
}

__global__ void __launch_bounds__(kThreads)
    block_sum_kernel(const float* __restrict__ x, int64_t n, float* __restrict__ out) {
  __shared__ float partial[kThreads / 32];
  const int64_t i = global_rank();
  const float sum = warp_sum(i < n ? __ldg(x + i) : 0.0f);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    const float total = warp_sum(threadIdx.x < kThreads / 32 ? partial[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) out[blockIdx.x] = total;
  }
}

__global__ void ballot_kernel(const int* x, int64_t n, uint32_t* words) {
  const int64_t i = global_rank();
  const unsigned word = __ballot_sync(kFull, i < n && x[i] > 0);
  if (threadIdx.x % 32 == 0 && i < n) words[i / 32] = word;
}

__global__ void scan_kernel(const int* x, int64_t n, int* out) {
  __shared__ int warp_totals[kThreads / 32];
  const int64_t i = global_rank();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int v = i < n ? x[i] : 0;
  for (int delta = 1; delta < 32; delta *= 2) {
    const int before = __shfl_up_sync(kFull, v, delta);
    if (lane >= delta) v += before;
  }
  if (lane == 31) warp_totals[warp] = v;
  __syncthreads();
  for (int w = 0; w < warp; ++w) v += warp_totals[w];
  if (i < n) out[i] = v;
}

__global__ void histogram_kernel(const int* x, int64_t n, int bins, int* out) {
  SUBLIMATE_DYNAMIC_SHARED(int, table);
  for (int b = threadIdx.x; b < bins; b += blockDim.x) table[b] = 0;
  __syncthreads();
  for (int64_t i = global_rank(); i < n; i += int64_t(gridDim.x) * blockDim.x)
    atomicAdd(&table[x[i]], 1);
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x)
    if (table[b]) atomicAdd(&out[b], table[b]);
}

__global__ void grid_sum_kernel(const float* x, int64_t n, double* partial, double* out) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (int64_t i = global_rank(); i < n; i += int64_t(gridDim.x) * blockDim.x) sum += x[i];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
  cooperative_groups::this_grid().sync();
  // Every block still holds its own static shared memory after the grid barrier.
  if (threadIdx.x == 0) {
    double total = sums[0] - partial[blockIdx.x];
    for (unsigned b = 0; b < gridDim.x; ++b) total += partial[b];
    if (blockIdx.x == gridDim.x - 1) out[0] = total;
  }
}

template <class T>
__global__ void reverse_kernel(const T* x, T* out) {
  __shared__ T fixed[64];
  SUBLIMATE_DYNAMIC_SHARED(T, dynamic);
  const int c = threadIdx.x, row = blockIdx.x;
  fixed[c] = x[row * 64 + c];
  __syncthreads();
  dynamic[63 - c] = fixed[c];
  __syncthreads();
  out[row * 64 + c] = dynamic[c];
}
template <class T>
int reverse_rows(const T* x, int64_t rows, T* out) {
  return launch(reverse_kernel<T>, unsigned(rows), 64, 64 * sizeof(T), nullptr, x, out);
}

__global__ void ranks_kernel(int* out) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  const int z = blockIdx.z * blockDim.z + threadIdx.z;
  const int width = gridDim.x * blockDim.x, height = gridDim.y * blockDim.y;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[(z * height + y) * width + x] = block * int(blockDim.x * blockDim.y * blockDim.z) + thread;
}

template <class T>
__global__ void arithmetic_kernel(const T* a, const T* b, int64_t n, T* out) {
  const int64_t i = global_rank();
  if (i >= n) return;
  const T u = a[i], v = b[i];
  out[0 * n + i] = u + v;
  out[1 * n + i] = u - v;
  out[2 * n + i] = u * v;
  out[3 * n + i] = u / v;
  out[4 * n + i] = __hfma(u, v, u);
  out[5 * n + i] = __hmin(u, v);
  out[6 * n + i] = __hmax(u, v);
}
template <class T>
int arithmetic(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out) {
  return launch(arithmetic_kernel<T>, grid_for(n, kThreads), kThreads, 0, nullptr,
                reinterpret_cast<const T*>(a), reinterpret_cast<const T*>(b), n,
                reinterpret_cast<T*>(out));
}

__global__ void narrow_kernel(const float* x, const double* y, int64_t n, uint16_t* out) {
  const int64_t i = global_rank();
  if (i >= n) return;
  const __half2 pair = __floats2half2_rn(x[i], 0.0f);
  out[0 * n + i] = __half_as_ushort(__low2half(pair));
  out[1 * n + i] = __bfloat16_as_ushort(__float2bfloat16(x[i]));
  out[2 * n + i] = __half_as_ushort(__double2half(y[i]));
  out[3 * n + i] = __bfloat16_as_ushort(__double2bfloat16(y[i]));
}

__global__ void collectives_kernel(const int* x, int64_t* out) {
  const int lane = threadIdx.x, v = x[lane];
  int row = 0;
  auto put = [&](int64_t value) { out[32 * row++ + lane] = value; };
  put(__shfl_sync(kFull, v, lane + 3, 8));
  put(__shfl_up_sync(kFull, v, 3, 8));
  put(__shfl_down_sync(kFull, v, 3, 8));
  put(__shfl_xor_sync(kFull, v, 5, 8));
  put(__shfl_xor_sync(kFull, v, 16, 8));
  put(__double_as_longlong(__shfl_sync(kFull, double(v) * 0x1p40, 31 - lane)));
  put(__shfl_sync(kFull, (long long)(v) * 0x200000000, 7));
  put(__any_sync(kFull, v > 1000));
  put(__all_sync(kFull, v > -1000));
  put(__match_any_sync(kFull, v & 3));
  int same = 0;
  put(__match_all_sync(kFull, v - v, &same));
  put(same);
  // Half of the warp under its own mask while the other half does something else.
  if (lane < 16) {
    put(__reduce_add_sync(0x0000ffffu, v));
  } else {
    put(__reduce_min_sync(0xffff0000u, v));
  }
  put(__reduce_max_sync(kFull, v));
  put(__reduce_max_sync(kFull, unsigned(v)));
  put(__reduce_and_sync(kFull, unsigned(v)));
  put(__reduce_or_sync(kFull, unsigned(v)));
  put(__reduce_xor_sync(kFull, unsigned(v)));
  put(__syncthreads_count(v > 0));
  put(__syncthreads_and(v > -1000));
  put(__syncthreads_or(v > 1000));
  put(__popc(unsigned(v)) + 100 * __clz(v) + 10000 * __ffs(v));
  put(__brev(unsigned(v)));
  put(__umulhi(unsigned(v), 0x9e3779b9u));
}

__global__ void float_atomics_kernel(const float* x, int64_t n, float* out) {
  const int64_t i = global_rank();
  if (i >= n) return;
  atomicAdd(&out[0], x[i]);
  auto* slot = reinterpret_cast<unsigned*>(&out[1]);
  for (unsigned seen = __float_as_uint(0.0f); __uint_as_float(seen) < x[i];) {
    const unsigned found = atomicCAS(slot, seen, __float_as_uint(x[i]));
    if (found == seen) break;
    seen = found;
  }
  if (atomicExch(&out[2], 1.0f) == 0.0f) out[3] = 1.0f;
}

__global__ void empty_kernel() {}

__global__ void fill_kernel(int* out, int64_t n) {
  const int64_t i = global_rank();
  if (i >= n) return;
  out[i] = int(i);
}

}  // namespace

int block_sum(const float* x, int64_t n, float* out) {
  return launch(block_sum_kernel, grid_for(n, kThreads), kThreads, 0, nullptr, x, n, out);
}
int ballot_pack(const int* x, int64_t n, uint32_t* words) {
  return launch(ballot_kernel, grid_for(n, kThreads), kThreads, 0, nullptr, x, n, words);
}
int block_scan(const int* x, int64_t n, int* out) {
  return launch(scan_kernel, grid_for(n, kThreads), kThreads, 0, nullptr, x, n, out);
}
int histogram(const int* x, int64_t n, int bins, int* out) {
  const size_t shared = size_t(bins) * sizeof(int);
  if (const int error = sublimate::allow_shared(histogram_kernel, shared)) return error;
  int count = 0;
  if (const int error = sublimate::multiprocessors(&count)) return error;
  return launch(histogram_kernel, grid_for(n, kThreads, count), kThreads, shared, nullptr, x, n,
                bins, out);
}
int grid_sum(const float* x, int64_t n, double* partial, double* out, int* blocks) {
  int resident = 0;
  if (const int error = sublimate::resident_blocks(grid_sum_kernel, kThreads, 0, &resident))
    return error;
  const unsigned grid = grid_for(n, kThreads, resident);
  *blocks = int(grid);
  return sublimate::launch_cooperative(grid_sum_kernel, grid, kThreads, 0, nullptr, x, n, partial,
                                       out);
}
int reverse_rows_float(const float* x, int64_t rows, float* out) {
  return reverse_rows(x, rows, out);
}
int reverse_rows_double(const double* x, int64_t rows, double* out) {
  return reverse_rows(x, rows, out);
}
int ranks(int* out, const int grid[3], const int block[3]) {
  return launch(ranks_kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                0, nullptr, out);
}
int half_arithmetic(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out) {
  return arithmetic<__half>(a, b, n, out);
}
int bfloat_arithmetic(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out) {
  return arithmetic<__nv_bfloat16>(a, b, n, out);
}
int narrow(const float* x, const double* y, int64_t n, uint16_t* out) {
  return launch(narrow_kernel, grid_for(n, kThreads), kThreads, 0, nullptr, x, y, n, out);
}
int collectives(const int* x, int64_t* out) {
  return launch(collectives_kernel, 1, 32, 0, nullptr, x, out);
}
int float_atomics(const float* x, int64_t n, float* out) {
  return launch(float_atomics_kernel, grid_for(n, 64), 64, 0, nullptr, x, n, out);
}
int configured(const int64_t grid[3], const int64_t block[3], int64_t shared_bytes, int64_t grant,
               bool cooperative) {
  const sublimate::DeviceGuard guard(0);
  if (guard.status() != cudaSuccess) return guard.status();
  auto size = [](const int64_t* n) { return dim3(unsigned(n[0]), unsigned(n[1]), unsigned(n[2])); };
  const dim3 g = size(grid), b = size(block);
  if (grant > 0)
    if (const int error = sublimate::allow_shared(empty_kernel, size_t(grant))) return error;
  const size_t shared = size_t(shared_bytes);
  return cooperative ? sublimate::launch_cooperative(empty_kernel, g, b, shared, nullptr)
                     : launch(empty_kernel, g, b, shared, nullptr);
}
int fill(int* out, int64_t n) {
  return launch(fill_kernel, grid_for(n, kThreads), kThreads, 0, nullptr, out, n);
}

}  // namespace emulator_tests
