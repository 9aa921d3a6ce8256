// A tile of pair values in registers: 16 x 16 threads, each EACH x EACH pairs. Plain multiply-adds
// in the order of the coordinates, so that a value has the same bits wherever it is computed.
#pragma once

#include "multicut/cuda_common.h"

namespace sublimate::multicut::cuda {

constexpr int SIDE = 16;  // threads along a side of the tile
constexpr int THREADS = SIDE * SIDE;
constexpr int DEPTH = 16;  // coordinates in shared memory at a time

// fp32: 8 x 8 pairs a thread, so that a coordinate of a pair costs a quarter of a shared load. fp64
// has twice the registers per value.
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

template <class T, int E>
struct Tile {
  static constexpr int ROWS = SIDE * E, COLS = SIDE * E;
  // Vectors of four along a side: thread (.., tx) owns columns 4 tx .. and 64 + 4 tx .., which
  // reads shared memory without conflicts.
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
                                int64_t negative, const Alpha<T>& alpha, T (&s)[E][E]) {
#pragma unroll
    for (int r = 0; r < E; ++r) {
#pragma unroll
      for (int c = 0; c < E; ++c) s[r][c] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < COLS; i += THREADS) {
      const int64_t j = col0 + i < last_col ? col0 + i : last_col;
      shared.v[i] = alpha.column(columns.weight(j));
    }
    for (int64_t first = 0; first < dims; first += DEPTH) {
      if (first > 0) __syncthreads();
      for (int i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        const int at = i / DEPTH, d = i % DEPTH;
        const int64_t k = first + d, p = row0 + at < last_row ? row0 + at : last_row;
        const T value = k < dims ? x[p * dims + k] : T(0);
        shared.x[d][at] = k < dims - negative ? value : -value;
      }
      for (int i = threadIdx.x; i < COLS * DEPTH; i += THREADS) {
        const int at = i / DEPTH, d = i % DEPTH;
        const int64_t k = first + d, p = col0 + at < last_col ? col0 + at : last_col;
        shared.y[d][at] = k < dims ? columns.at(p, k, dims) : T(0);
      }
      __syncthreads();
      const int depth = dims - first < DEPTH ? int(dims - first) : DEPTH;
#pragma unroll 4
      for (int d = 0; d < depth; ++d) {
        T a[E], b[E];
#pragma unroll
        for (int e = 0; e < E; ++e) {
          a[e] = shared.x[d][row(e)];
          b[e] = shared.y[d][col(e)];
        }
#pragma unroll
        for (int r = 0; r < E; ++r) {
#pragma unroll
          for (int c = 0; c < E; ++c) s[r][c] = chain(a[r], b[c], s[r][c]);
        }
      }
    }
    if (dims == 0) __syncthreads();
#pragma unroll
    for (int r = 0; r < E; ++r) {
#pragma unroll
      for (int c = 0; c < E; ++c) s[r][c] = chain(shared.u[row(r)], shared.v[col(c)], s[r][c]);
    }
  }
};

}  // namespace sublimate::multicut::cuda
