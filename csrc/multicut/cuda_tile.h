// A tile of pair values in registers: 16 x 16 threads, each R x C pairs. Plain multiply-adds
// in the order of the coordinates, so that a value has the same bits wherever it is computed.
#pragma once

#include "multicut/cuda_common.h"

namespace sublimate::multicut::cuda {

constexpr int SIDE = 16;  // threads along a side of the tile
constexpr int THREADS = SIDE * SIDE;
constexpr int DEPTH = 16;  // coordinates in shared memory at a time

// Rows of a thread; its columns are four. fp32 would gain from 8 x 8 pairs (16 shared loads for
// 64), but then two blocks fit on a multiprocessor on sm_90 only. fp64 has twice the registers per
// value.
template <class T>
constexpr int EACH = sizeof(T) == 4 ? 8 : 4;

// Columns as rows of a matrix [count, dims] in T.
template <class T>
struct PlainColumns {
  const T* features;
  const T* weights;
  __device__ T at(int64_t j, int64_t k, int64_t dims) const { return features[j * dims + k]; }
  __device__ T weight(int64_t j) const { return weights ? weights[j] : T(1); }
};

// Columns as clusters: fp64 sums and masses, rounded to T.
template <class T>
struct SlotColumns {
  const double* sums;
  const double* masses;
  __device__ T at(int64_t j, int64_t k, int64_t dims) const { return T(sums[j * dims + k]); }
  __device__ T weight(int64_t j) const { return T(masses[j]); }
};

template <class T, int R>
struct Tile {
  static constexpr int C = 4, ROWS = SIDE * R, COLS = SIDE * C;
  // Four neighbours at a time: thread (ty, ..) owns rows 4 ty .. and 64 + 4 ty .., which reads
  // shared memory without conflicts.
  struct Shared {
    __align__(16) T x[DEPTH][ROWS + 4];
    __align__(16) T y[DEPTH][COLS + 4];
    T u[ROWS], v[COLS];  // factors of the term of alpha
  };

  static __device__ int along(int t, int e) { return e / 4 * (4 * SIDE) + t * 4 + e % 4; }
  static __device__ int row(int e) { return along(int(threadIdx.x) / SIDE, e); }
  static __device__ int col(int e) { return along(int(threadIdx.x) % SIDE, e); }

  // s[r][c] of rows row0 + row(r) and columns col0 + col(c); those past the ends repeat the last.
  // Begins with a barrier, so that the shared memory of the last tile is free.
  template <class Columns>
  static __device__ void values(Shared& shared, const T* x, const Columns& columns, int64_t row0,
                                int64_t last_row, int64_t col0, int64_t last_col, int64_t dims,
                                int64_t negative, const Alpha<T>& alpha, T (&s)[R][C]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) s[r][c] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < COLS; i += THREADS) {
      const int64_t j = col0 + i < last_col ? col0 + i : last_col;
      shared.v[i] = alpha.column(columns.weight(j));
    }
    for (int64_t first = 0; first < dims; first += DEPTH) {
      if (first > 0) __syncthreads();
      // A thread keeps to one coordinate; threads side by side read a row on.
      const int64_t k = first + threadIdx.x % DEPTH;
      const bool within = k < dims, minus = k >= dims - negative;
      T* const to_x = shared.x[threadIdx.x % DEPTH];
      T* const to_y = shared.y[threadIdx.x % DEPTH];
#pragma unroll 4
      for (int i = threadIdx.x / DEPTH; i < ROWS; i += THREADS / DEPTH) {
        const int64_t p = row0 + i < last_row ? row0 + i : last_row;
        const T value = within ? x[p * dims + k] : T(0);
        to_x[i] = minus ? -value : value;
      }
#pragma unroll 4
      for (int i = threadIdx.x / DEPTH; i < COLS; i += THREADS / DEPTH) {
        const int64_t p = col0 + i < last_col ? col0 + i : last_col;
        to_y[i] = within ? columns.at(p, k, dims) : T(0);
      }
      __syncthreads();
      const int depth = dims - first < DEPTH ? int(dims - first) : DEPTH;
#pragma unroll 4
      for (int d = 0; d < depth; ++d) {
        T a[R], b[C];
#pragma unroll
        for (int r = 0; r < R; ++r) a[r] = shared.x[d][row(r)];
#pragma unroll
        for (int c = 0; c < C; ++c) b[c] = shared.y[d][col(c)];
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
          for (int c = 0; c < C; ++c) s[r][c] = chain(a[r], b[c], s[r][c]);
        }
      }
    }
    if (dims == 0) __syncthreads();
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) s[r][c] = chain(shared.u[row(r)], shared.v[col(c)], s[r][c]);
    }
  }
};

}  // namespace sublimate::multicut::cuda
