// Randomized linear on CUDA: entry points, and the sketches that only move rows.
//
// select: a warp holds the rows that its outputs are made of, one to a lane (found once by the
// keyed permutation, or read), and passes them around while all lanes walk along the columns, 16
// bytes each. Sums run in a fixed order within one warp: no atomics.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/permutation.h"
#include "common/philox.h"
#include "randomized_linear/cuda.h"

SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(cuda)

namespace sublimate::randomized_linear::cuda {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int64_t BUSY = 16;  // warps per multiprocessor from which on a warp may do more

enum class Choice { index, rows, countsketch };

struct Selection {
  const void* x;
  int64_t rows, columns, row_stride;
  void* out;
  int64_t k;
  const int32_t* index = nullptr;  // index
  const void* scale = nullptr;     // index: (k,) or null
  const int64_t* seed = nullptr;   // rows, countsketch
  double factor = 1;               // rows: of every output
  int64_t members = 1;             // most rows in one output
  int each = 1;                    // outputs to a warp: each * members <= 32, or 1
  int64_t tiles = 1;               // runs of 32 packs along a row
  int splits = 1;                  // warps to share them
  bool aligned = false;
};

// Row and weight of member t of output j; the row is -1 where there is none.
template <class T, Choice C>
__device__ void find(const Selection& s, const Permutation& p, uint64_t seed, int64_t j, int64_t t,
                     int32_t* row, arith_t<T>* weight) {
  using A = arith_t<T>;
  *row = -1;
  *weight = A(1);
  if (j >= s.k) return;
  if (C == Choice::index) {
    *row = s.index[j];
    if (s.scale) *weight = static_cast<const A*>(s.scale)[j];
  } else if (C == Choice::rows) {
    if (j >= s.rows) return;
    *row = int32_t(permuted(p, uint32_t(j)));
    *weight = A(s.factor);
  } else {
    // Bucket j holds the rows whose place in the random order is j, j + k, j + 2 k, ...
    const int64_t place = j + t * s.k;
    if (t >= s.members || place >= s.rows) return;
    const uint32_t n = permuted_back(p, uint32_t(place));
    *row = int32_t(n);
    *weight = (sign_word(seed, n >> 5) >> (n & 31)) & 1u ? A(-1) : A(1);
  }
}

// The lane's part of a tile of 32 packs: a pack, or as many elements 32 apart.
template <class T, class F>
__device__ void walk(int64_t tile, int lane, int64_t columns, bool aligned, F visit) {
  constexpr int SIZE = Pack<T>::SIZE;
  const int64_t start = tile * 32 * SIZE;
#pragma unroll
  for (int v = 0; v < SIZE; ++v) {
    const int64_t c = start + (aligned ? lane * SIZE + v : v * 32 + lane);
    if (c < columns) visit(v, c);
  }
}

// Several rows are summed; a row alone is a product, whose -0 stays.
template <class T, bool SUM, class A>
__device__ void add_row(const T* x, int64_t tile, int lane, const Selection& s, A weight, A* sum) {
  constexpr int SIZE = Pack<T>::SIZE;
  Pack<T> pack;
  const int64_t start = (tile * 32 + lane) * SIZE;
  if (s.aligned) {
    if (start >= s.columns) return;
    pack = *reinterpret_cast<const Pack<T>*>(x + start);
  } else {
    walk<T>(tile, lane, s.columns, false, [&](int v, int64_t c) { pack.item[v] = x[c]; });
  }
#pragma unroll
  for (int v = 0; v < SIZE; ++v) {
    const A term = weight * load_value(pack.item[v]);
    sum[v] = SUM ? sum[v] + term : term;
  }
}

template <class T, class A>
__device__ void store_row(T* out, int64_t tile, int lane, const Selection& s, const A* sum) {
  constexpr int SIZE = Pack<T>::SIZE;
  const int64_t start = (tile * 32 + lane) * SIZE;
  if (s.aligned) {
    if (start >= s.columns) return;
    Pack<T> pack;
#pragma unroll
    for (int v = 0; v < SIZE; ++v) pack.item[v] = store_value<T>(sum[v]);
    store_pack(out + start, pack);
  } else {
    walk<T>(tile, lane, s.columns, false,
            [&](int v, int64_t c) { out[c] = store_value<T>(sum[v]); });
  }
}

template <class T, Choice C>
__global__ void __launch_bounds__(THREADS, 1) select_kernel(Selection s) {
  using A = arith_t<T>;
  const int lane = threadIdx.x % 32;
  const int64_t warp = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  const int64_t group = warp / s.splits, split = warp % s.splits;
  if (group * s.each >= s.k) return;
  const int64_t begin = s.tiles * split / s.splits, end = s.tiles * (split + 1) / s.splits;
  const uint64_t seed = C == Choice::index ? 0 : uint64_t(*s.seed);
  Permutation p{};
  if (C != Choice::index) p = make_permutation(seed, s.rows);

  const bool together = s.members <= 32;  // all members fit the lanes: found once
  const int width = together ? int(s.members) : 32;
  int32_t row;
  A weight;
  const int64_t mine = group * s.each + lane / width;
  find<T, C>(s, p, seed, lane / width < s.each ? mine : s.k, lane % width, &row, &weight);

  for (int g = 0; g < s.each; ++g) {
    const int64_t j = group * s.each + g;
    if (j >= s.k) break;
    T* out = static_cast<T*>(s.out) + j * s.columns;
    for (int64_t tile = begin; tile < end; ++tile) {
      A sum[Pack<T>::SIZE] = {};
      for (int64_t t = 0; t < s.members; t += width) {
        if (!together) find<T, C>(s, p, seed, j, t + lane, &row, &weight);
#pragma unroll 4
        for (int m = 0; m < width; ++m) {
          const int32_t n = __shfl_sync(~0u, row, g * width + m);
          const A w = __shfl_sync(~0u, weight, g * width + m);
          // Members end at the first that is not there.
          if (n < 0) break;
          add_row<T, C == Choice::countsketch>(static_cast<const T*>(s.x) + n * s.row_stride, tile,
                                               lane, s, w, sum);
        }
      }
      store_row(out, tile, lane, s, sum);
    }
  }
}

template <class T, Choice C>
int select(Selection s, const Exec& exec) {
  const DeviceGuard guard(exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  s.aligned = aligned_rows(s.x, s.row_stride * int64_t(sizeof(T))) &&
              aligned_rows(s.out, s.columns * int64_t(sizeof(T)));
  s.tiles = ceil_div(s.columns, 32 * Pack<T>::SIZE);
  // First as many warps as keep the device busy; more work than that makes warps larger.
  const int64_t busy = BUSY * processors, spare = s.k * s.tiles / busy;
  const int64_t fit = s.members <= 32 ? 32 / s.members : 1;
  s.each = int(spare < 1 ? 1 : spare < fit ? spare : fit);
  const int64_t groups = ceil_div(s.k, s.each), wanted = ceil_div(busy, groups);
  s.splits = int(wanted < s.tiles ? wanted : s.tiles);
  return launch(select_kernel<T, C>, grid_for(groups * s.splits, WARPS), dim3(THREADS), 0,
                cudaStream_t(exec.stream), s);
}

template <class T>
int gather_as(const Gather& g) {
  if (g.k == 0 || g.columns == 0) return kOk;
  Selection s{g.x, g.rows, g.columns, g.row_stride, g.out, g.k};
  s.index = g.index;
  s.scale = g.scale;
  return select<T, Choice::index>(s, g.exec);
}

template <class T>
int project_select_as(const Project& p) {
  Selection s{p.x, p.rows, p.columns, p.row_stride, p.out, p.k};
  s.seed = p.seed;
  if (Sketch(p.sketch) == Sketch::rows) {
    s.factor = subset_scale(p.rows, p.k);
    return select<T, Choice::rows>(s, p.exec);
  }
  s.members = ceil_div(p.rows, p.k);
  return select<T, Choice::countsketch>(s, p.exec);
}

}  // namespace

int project_select(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(project_select_as, p); }

int gather(const Gather& g) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(gather_as, g); }

int project(const Project& p) {
  if (const int status = check(p)) return status;
  if (p.dtype < 0 || p.dtype > int(DType::f64)) return kBadDtype;
  if (p.k == 0 || p.columns == 0) return kOk;
  if (p.rows == 0) {
    const DeviceGuard guard(p.exec.device);
    if (guard.status() != cudaSuccess) return guard.status();
    return clear_rows(p.out, 0, p.k, p.columns, p.dtype, p.exec);
  }
  switch (Sketch(p.sketch)) {
    case Sketch::gaussian:
    case Sketch::rademacher:
      return project_dense(p);
    case Sketch::srht:
      return project_srht(p);
    default:
      return project_select(p);
  }
}

}  // namespace sublimate::randomized_linear::cuda
