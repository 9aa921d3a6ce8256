// Gaussian and Rademacher sketches on CUDA: a tiled product out = S^T x whose tiles of S are drawn
// into shared memory and never leave the multiprocessor.
//
// A block computes SKETCH x COLUMNS of out, DEPTH rows of x at a time, each thread 8 x 4 of it in
// registers. A thread draws one Philox counter per step: 4 entries of S, of the next step while the
// present one is multiplied, and reads 8 elements of x. No tensor cores: fp32 must not be rounded
// to tf32; for 16-bit elements the Triton kernel uses them.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/normal.h"
#include "common/philox.h"
#include "randomized_linear/cuda.h"

namespace sublimate::randomized_linear::cuda {
namespace {

constexpr int SKETCH = 64, COLUMNS = 128, DEPTH = 16;
constexpr int THREADS = 256;
constexpr int TALL = 8, WIDE = 4;      // of a thread's part of out
constexpr int LANES = COLUMNS / WIDE;  // a warp spans the columns: its reads of S are broadcasts
constexpr int RUN = COLUMNS / (THREADS / DEPTH);  // elements of x that a thread reads in a step
static_assert(LANES == 32 && THREADS / LANES * TALL == SKETCH, "warps tile the result");
static_assert(DEPTH * SKETCH == 4 * THREADS, "one counter per thread and step");

template <class A>
struct Tiles {
  __align__(16) A x[2][DEPTH][COLUMNS];
  __align__(16) float s[2][DEPTH][SKETCH];
};

// Entries first + 4 * quad .. + 3 of row n of S, without the scale.
template <bool GAUSSIAN>
__device__ void draw(uint64_t seed, int64_t n, int64_t k, int64_t first, int quad,
                     const float* table, float* s) {
  if (GAUSSIAN) {
    const Philox4 r = gaussian_words(seed, n, k, first / 4 + quad);
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = normal_of(r.w[i], table);
  } else {
    const int64_t j = first + 4 * quad;
    const Philox4 r = rademacher_words(seed, n, k, j / 128);
    const int lane = int(j / 32 % 4);
    const uint32_t low = lane & 1 ? r.w[1] : r.w[0], high = lane & 1 ? r.w[3] : r.w[2];
    const uint32_t bits = (lane & 2 ? high : low) >> (j % 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = bits >> i & 1u ? -1.0f : 1.0f;
  }
}

// RUN elements of row n from column c on; what lies outside of x is 0.
template <class T>
__device__ void read_run(const Project& p, int64_t n, int64_t c, bool aligned, T* run) {
  const T* x = static_cast<const T*>(p.x) + n * p.row_stride + c;
  constexpr int SIZE = Pack<T>::SIZE;
  if (n < p.rows && aligned && c + RUN <= p.columns) {
#pragma unroll
    for (int i = 0; i < RUN; i += SIZE) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(x + i);
#pragma unroll
      for (int v = 0; v < SIZE; ++v) run[i + v] = pack.item[v];
    }
  } else {
#pragma unroll
    for (int i = 0; i < RUN; ++i) run[i] = n < p.rows && c + i < p.columns ? x[i] : T{};
  }
}

template <class T, bool GAUSSIAN>
__global__ void __launch_bounds__(THREADS) dense_kernel(Project p, double scale, bool aligned) {
  using A = arith_t<T>;
  __shared__ Tiles<A> tiles;
  __shared__ float table[GAUSSIAN ? 2 * NORMAL_SEGMENTS : 1];
  if (GAUSSIAN) {
    for (int i = threadIdx.x; i < 2 * NORMAL_SEGMENTS; i += THREADS) table[i] = p.normal_table[i];
    __syncthreads();
  }
  const uint64_t seed = uint64_t(*p.seed);
  // Blocks beside one another read the same columns: x is the larger operand.
  const int64_t up = ceil_div(p.k, SKETCH);
  const int64_t j0 = int64_t(blockIdx.x) % up * SKETCH;
  const int64_t c0 = int64_t(blockIdx.x) / up * COLUMNS;
  const int depth = threadIdx.x / (THREADS / DEPTH), part = threadIdx.x % (THREADS / DEPTH);
  const int high = threadIdx.x / LANES * TALL, across = threadIdx.x % LANES * WIDE;

  T run[RUN];
  float drawn[4];
  const auto fetch = [&](int64_t start) {
    read_run(p, start + depth, c0 + part * RUN, aligned, run);
    draw<GAUSSIAN>(seed, start + depth, p.k, j0, part, table, drawn);
  };
  const auto keep = [&](int side) {
#pragma unroll
    for (int i = 0; i < RUN; ++i) tiles.x[side][depth][part * RUN + i] = load_value(run[i]);
#pragma unroll
    for (int i = 0; i < 4; ++i) tiles.s[side][depth][part * 4 + i] = drawn[i];
  };

  A sum[TALL][WIDE] = {};
  fetch(0);
  keep(0);
  int side = 0;
  for (int64_t start = 0; start < p.rows; start += DEPTH, side ^= 1) {
    __syncthreads();
    const bool more = start + DEPTH < p.rows;
    if (more) fetch(start + DEPTH);
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      A s[TALL], x[WIDE];
#pragma unroll
      for (int i = 0; i < TALL; ++i) s[i] = A(tiles.s[side][d][high + i]);
#pragma unroll
      for (int i = 0; i < WIDE; ++i) x[i] = tiles.x[side][d][across + i];
#pragma unroll
      for (int i = 0; i < TALL; ++i) {
#pragma unroll
        for (int e = 0; e < WIDE; ++e) sum[i][e] += s[i] * x[e];
      }
    }
    // The other side was last read before the barrier above.
    if (more) keep(side ^ 1);
  }
#pragma unroll
  for (int i = 0; i < TALL; ++i) {
    const int64_t j = j0 + high + i;
    if (j >= p.k) break;
    T* out = static_cast<T*>(p.out) + j * p.columns;
#pragma unroll
    for (int e = 0; e < WIDE; ++e) {
      const int64_t c = c0 + across + e;
      if (c < p.columns) out[c] = store_value<T>(sum[i][e] * A(scale));
    }
  }
}

template <class T>
int dense_as(const Project& p) {
  const DeviceGuard guard(p.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const int64_t blocks = ceil_div(p.k, SKETCH) * ceil_div(p.columns, COLUMNS);
  if (blocks > kMaxGridX) return kUnsupported;
  const auto kernel =
      Sketch(p.sketch) == Sketch::gaussian ? dense_kernel<T, true> : dense_kernel<T, false>;
  return launch(kernel, unsigned(blocks), dim3(THREADS), 0, cudaStream_t(p.exec.stream), p,
                dense_scale(p.k), aligned_rows(p.x, p.row_stride * int64_t(sizeof(T))));
}

}  // namespace

int project_dense(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(dense_as, p); }

}  // namespace sublimate::randomized_linear::cuda
