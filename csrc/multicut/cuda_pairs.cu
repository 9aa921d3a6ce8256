// Passes over all pairs on CUDA: best columns of each row, best cluster of each node, sum of the
// negative pairs. A block takes a tile of rows and a share of the columns; values stay in
// registers.

#include "multicut/cuda_tile.h"

SUBLIMATE_DECLARE_MULTICUT(cuda)

namespace sublimate::multicut::cuda {
namespace {

constexpr int MOST_SHARES = 32;  // as many as lanes that join them

// Columns that the rows of a tile meet. Rows are in the order of their instances, so the ends come
// from the first and the last row.
template <int ROWS>
struct Range {
  int64_t low[ROWS], high[ROWS];  // columns low .. high of a row,
  int64_t skip[ROWS];             // without this one

  __device__ int64_t first() const { return low[0]; }
  __device__ int64_t last() const { return high[ROWS - 1]; }
  // Whether every row meets each of columns begin .. begin + count, save what it skips.
  __device__ bool inside(int64_t begin, int count) const {
    return begin >= low[ROWS - 1] && begin + count <= high[0];
  }
  __device__ bool meets(int row, int64_t column) const {
    return column >= low[row] && column < high[row] && column != skip[row];
  }
};

// Fills the range and the rows' factors; a barrier must follow.
template <class T, int ROWS>
__device__ void begin_rows(const Nodes& nodes, const int64_t* column_offsets, int64_t row0,
                           int64_t self, const int64_t* labels, const Alpha<T>& alpha, T* u,
                           Range<ROWS>& range) {
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    const int64_t p = row0 + i < nodes.rows ? row0 + i : nodes.rows - 1;
    const int64_t b = instance_of(nodes.offsets, nodes.instances, p);
    range.low[i] = column_offsets[b];
    range.high[i] = column_offsets[b + 1];
    range.skip[i] = labels ? labels[p] : self < 0 ? -1 : p + self;
    u[i] = alpha.row(weight_of<T>(nodes.weights, p));
  }
}

// Whether any row of the tile skips one of the columns begin .. begin + count.
template <int ROWS>
__device__ bool skips(const Range<ROWS>& range, int64_t begin, int count, const int64_t* labels) {
  if (labels) return true;
  const int64_t low = range.skip[0], high = range.skip[ROWS - 1];
  return low >= 0 && begin <= high && low < begin + count;
}

template <class T, class Columns>
struct Sweep {
  Nodes nodes;
  Columns columns;
  const int64_t* offsets;  // of the columns
  Alpha<T> alpha;
  int64_t self;
  const int64_t* labels;  // best cluster: the slot of each row, which it skips; else null
  const int64_t* counts;
  int64_t k;
  T* values;  // (shares, rows, k)
  int64_t* indices;
  T* gain;
};

// This block's share of the tiles of columns: [first, last) of them.
__device__ inline void share_of(int64_t tiles, int64_t* first, int64_t* last) {
  const int64_t each = ceil_div(tiles, gridDim.y);
  *first = blockIdx.y * each;
  *last = *first + each < tiles ? *first + each : tiles;
}

// What the rest of its own cluster c is worth to node i, in fp64; 16 lanes share the coordinates.
template <class T, class Columns>
__device__ double staying(const Nodes& nodes, const Columns& clusters, const int64_t* counts,
                          int64_t i, int64_t c) {
  const T* const x = static_cast<const T*>(nodes.features) + i * nodes.dims;
  double sum = 0;
  for (int64_t k = threadIdx.x % SIDE; k < nodes.dims; k += SIDE) {
    const double value = double(x[k]), rest = clusters.sums[c * nodes.dims + k] - value;
    sum += k < nodes.dims - nodes.negative ? value * rest : -value * rest;
  }
  for (int step = SIDE / 2; step > 0; step /= 2) sum += __shfl_xor_sync(WARP, sum, step);
  const double w = double(weight_of<T>(nodes.weights, i));
  return counts[c] == 1 ? 0.0 : sum - nodes.alpha * w * (clusters.masses[c] - w);
}

// The best column of each row. A thread keeps the best of its own columns; lanes meet at the end.
// SLOTS: columns are clusters, and the result is where to move and what that gains.
template <class T, class Columns, bool SLOTS>
__global__ void __launch_bounds__(THREADS, 2) best_kernel(Sweep<T, Columns> f) {
  constexpr int R = EACH<T>;
  using Pairs = Tile<T, R>;
  constexpr int C = Pairs::C, ROWS = Pairs::ROWS, COLS = Pairs::COLS;
  __shared__ typename Pairs::Shared shared;
  __shared__ Range<ROWS> range;
  const int64_t row0 = int64_t(blockIdx.x) * ROWS;
  begin_rows<T>(f.nodes, f.offsets, row0, f.self, f.labels, f.alpha, shared.u, range);
  __syncthreads();
  T best[R];
  int at[R];  // from the first column on
#pragma unroll
  for (int r = 0; r < R; ++r) {
    best[r] = -T(INFINITY);
    at[r] = NONE;
  }
  const int64_t begin = range.first(), end = range.last();
  int64_t tile, last;
  share_of(ceil_div(end - begin, COLS), &tile, &last);
  for (; tile < last; ++tile) {
    const int64_t column = begin + tile * COLS;
    T s[R][C];
    Pairs::values(shared, static_cast<const T*>(f.nodes.features), f.columns, row0,
                  f.nodes.rows - 1, column, end - 1, f.nodes.dims, f.nodes.negative, f.alpha, s);
    const bool plain = range.inside(column, COLS) && !skips(range, column, COLS, f.labels);
    const int base = int(column - begin);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (!plain) {
          const int64_t j = column + Pairs::col(c);
          if (!range.meets(Pairs::row(r), j)) continue;
        }
        // Columns ascend, so a later equal does not win.
        const bool wins = (!(s[r][c] <= best[r]) && best[r] == best[r]) || at[r] == NONE;
        best[r] = wins ? s[r][c] : best[r];
        at[r] = wins ? base + Pairs::col(c) : at[r];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    best_of_lanes(best[r], at[r], SIDE);
    const int64_t p = row0 + Pairs::row(r);
    double stay = 0;
    if constexpr (SLOTS) {
      stay = staying<T>(f.nodes, f.columns, f.counts, p < f.nodes.rows ? p : f.nodes.rows - 1,
                        range.skip[Pairs::row(r)]);
    }
    if (threadIdx.x % SIDE != 0 || p >= f.nodes.rows) continue;
    const bool found = at[r] != NONE;
    if constexpr (!SLOTS) {
      const int64_t out = blockIdx.y * f.nodes.rows + p;
      f.values[out] = best[r];
      f.indices[out] = found ? begin + at[r] : -1;
    } else {
      f.indices[p] = found ? begin + at[r] : -1;
      f.gain[p] = found ? T(double(best[r]) - stay) : -T(INFINITY);
    }
  }
}

// A row's list of the k best, descending, in global memory; a warp works on it. Index -1: none.
template <class T>
struct List {
  T* values;
  int64_t* indices;
  int64_t k;

  __device__ static int64_t order(int64_t index) { return index < 0 ? INT64_MAX : index; }

  __device__ void clear() const {
    for (int64_t e = threadIdx.x % 32; e < k; e += 32) {
      values[e] = -T(INFINITY);
      indices[e] = -1;
    }
    __syncwarp();
  }

  // Puts (v, j) in its place; the last entry falls off.
  __device__ void insert(T v, int64_t j) const {
    const int lane = threadIdx.x % 32;
    int64_t place = 0;
    for (int64_t base = 0; base < k; base += 32) {
      const int64_t e = base + lane;
      const bool before = e < k && precedes(values[e], order(indices[e]), v, j);
      place += __popc(__ballot_sync(WARP, before));
    }
    // From the end, so that what is read is not yet overwritten.
    for (int64_t base = (k - 1) / 32 * 32; base >= place / 32 * 32; base -= 32) {
      const int64_t e = base + lane;
      T value = v;
      int64_t index = j;
      if (e < k && e != place) {
        value = values[e > place ? e - 1 : e];
        index = indices[e > place ? e - 1 : e];
      }
      __syncwarp();
      if (e < k) {
        values[e] = value;
        indices[e] = index;
      }
      __syncwarp();
    }
  }
};

// The k best columns of each row. Tiles are looked through only if one of their values goes before
// the last of its row's list, which is rare after the first.
template <class T>
__global__ void __launch_bounds__(THREADS, 1) list_kernel(Sweep<T, PlainColumns<T>> f) {
  constexpr int R = 4;
  using Pairs = Tile<T, R>;
  constexpr int C = Pairs::C, ROWS = Pairs::ROWS, COLS = Pairs::COLS, WARPS = THREADS / 32;
  static_assert(COLS == 64, "two halves of a column a lane");
  __shared__ typename Pairs::Shared shared;
  __shared__ Range<ROWS> range;
  __shared__ T score[ROWS][33];
  __shared__ T worst[ROWS];
  __shared__ int64_t worst_index[ROWS];
  const int64_t row0 = int64_t(blockIdx.x) * ROWS;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto list_of = [&](int row) {
    const int64_t at = (blockIdx.y * f.nodes.rows + row0 + row) * f.k;
    return List<T>{f.values + at, f.indices + at, f.k};
  };
  begin_rows<T>(f.nodes, f.offsets, row0, f.self, nullptr, f.alpha, shared.u, range);
  for (int row = warp; row < ROWS; row += WARPS) {
    if (row0 + row < f.nodes.rows) list_of(row).clear();
    if (lane == 0) {
      worst[row] = -T(INFINITY);
      worst_index[row] = INT64_MAX;
    }
  }
  __syncthreads();
  const int64_t begin = range.first(), end = range.last();
  int64_t tile, last;
  share_of(ceil_div(end - begin, COLS), &tile, &last);
  for (; tile < last; ++tile) {
    const int64_t column = begin + tile * COLS;
    T s[R][C];
    Pairs::values(shared, static_cast<const T*>(f.nodes.features), f.columns, row0,
                  f.nodes.rows - 1, column, end - 1, f.nodes.dims, f.nodes.negative, f.alpha, s);
    bool any = false;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int row = Pairs::row(r);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int64_t j = column + Pairs::col(c);
        any |= range.meets(row, j) && precedes(s[r][c], j, worst[row], worst_index[row]);
      }
    }
    if (!__syncthreads_or(any)) continue;
    for (int half = 0; half < COLS; half += 32) {
      if (half > 0) __syncthreads();
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const int at = Pairs::col(c) - half;
          if (at >= 0 && at < 32) score[Pairs::row(r)][at] = s[r][c];
        }
      }
      __syncthreads();
      for (int row = warp; row < ROWS && row0 + row < f.nodes.rows; row += WARPS) {
        T lowest = worst[row];
        int64_t lowest_index = worst_index[row];
        const List<T> list = list_of(row);
        const T mine = score[row][lane];
        const int64_t j = column + half + lane;
        unsigned better =
            __ballot_sync(WARP, range.meets(row, j) && precedes(mine, j, lowest, lowest_index));
        if (!better) continue;
        for (; better; better &= better - 1) {
          const int from = __ffs(int(better)) - 1;
          const T v = __shfl_sync(WARP, mine, from);
          const int64_t at = column + half + from;
          if (!precedes(v, at, lowest, lowest_index)) continue;
          list.insert(v, at);
          lowest = list.values[f.k - 1];
          lowest_index = List<T>::order(list.indices[f.k - 1]);
          __syncwarp();  // read before the next insertion writes
        }
        if (lane == 0) {
          worst[row] = lowest;
          worst_index[row] = lowest_index;
        }
      }
    }
  }
}

// Joins the shares' lists of a row, a warp each: the lanes' heads compete k times.
template <class T>
__global__ void __launch_bounds__(THREADS)
    join_kernel(const T* values, const int64_t* indices, int shares, int64_t rows, int64_t k,
                T* out, int64_t* out_index) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t(gridDim.x) * (THREADS / 32);
  for (int64_t p = int64_t(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; p < rows; p += warps) {
    const int64_t list = (lane * rows + p) * k;
    int64_t next = 0;
    for (int64_t e = 0; e < k; ++e) {
      const bool head = lane < shares && next < k && indices[list + next] >= 0;
      T value = head ? values[list + next] : -T(INFINITY);
      int64_t index = head ? indices[list + next] : INT64_MAX;
      const int64_t mine = index;
      best_of_lanes(value, index, 32);
      next += head && mine == index;
      if (lane == 0) {
        out[p * k + e] = value;
        out_index[p * k + e] = index == INT64_MAX ? -1 : index;
      }
    }
  }
}

// sum of min(0, s_ij) over j > i for each row i and share; tiles interleave, for the shares to be
// even above the diagonal. A thread adds a tile's columns in T, tiles in fp64.
template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    negative_kernel(Nodes nodes, Alpha<T> alpha, double* sums) {
  constexpr int R = EACH<T>;
  using Pairs = Tile<T, R>;
  constexpr int C = Pairs::C, ROWS = Pairs::ROWS, COLS = Pairs::COLS;
  __shared__ typename Pairs::Shared shared;
  __shared__ Range<ROWS> range;
  const int64_t row0 = int64_t(blockIdx.x) * ROWS;
  begin_rows<T>(nodes, nodes.offsets, row0, -1, nullptr, alpha, shared.u, range);
  __syncthreads();
  const PlainColumns<T> columns{static_cast<const T*>(nodes.features),
                                static_cast<const T*>(nodes.weights)};
  double total[R] = {};
  const int64_t end = range.last();
  for (int64_t column = row0 + int64_t(blockIdx.y) * COLS; column < end;
       column += int64_t(gridDim.y) * COLS) {
    T s[R][C];
    Pairs::values(shared, columns.features, columns, row0, nodes.rows - 1, column, end - 1,
                  nodes.dims, nodes.negative, alpha, s);
    const bool plain = column >= row0 + ROWS && range.inside(column, COLS);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int row = Pairs::row(r);
      T part = 0;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int64_t j = column + Pairs::col(c);
        const bool counts = plain || (j > row0 + row && range.meets(row, j));
        part += counts && !(s[r][c] > 0) ? s[r][c] : T(0);  // NaN counts
      }
      total[r] += part;
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    for (int step = SIDE / 2; step > 0; step /= 2) {
      total[r] += __shfl_xor_sync(WARP, total[r], step);
    }
    const int64_t p = row0 + Pairs::row(r);
    if (threadIdx.x % SIDE == 0 && p < nodes.rows) sums[blockIdx.y * nodes.rows + p] = total[r];
  }
}

__global__ void __launch_bounds__(THREADS)
    instance_sums_kernel(const double* sums, int shares, Nodes nodes, double* out) {
  __shared__ double room[THREADS / 32];
  for (int64_t b = blockIdx.x; b < nodes.instances; b += gridDim.x) {
    double total = 0;
    for (int64_t p = nodes.offsets[b] + threadIdx.x; p < nodes.offsets[b + 1]; p += THREADS) {
      for (int share = 0; share < shares; ++share) total += sums[share * nodes.rows + p];
    }
    total = block_sum(total, room);
    if (threadIdx.x == 0) out[b] = total;
  }
}

int shares_for(const Work& work, int64_t each) {
  const int64_t shares = work.data && each > 0 ? work.bytes / each : 0;
  return int(shares < MOST_SHARES ? shares : MOST_SHARES);
}

// Indices within a row's columns are 32 bits while they are compared.
bool too_many(int64_t rows, int64_t columns) {
  return columns >= NONE || ceil_div(rows, 64) > kMaxGridX;
}

template <class T>
int topk_as(const TopK& k) {
  const int64_t rows = k.nodes.rows;
  if (rows == 0 || k.nodes.instances == 0) return kOk;
  if (too_many(rows, k.columns)) return kUnsupported;
  const DeviceGuard guard(k.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const auto stream = cudaStream_t(k.exec.stream);
  const int64_t entries = rows * k.k;
  const int shares = shares_for(k.work, entries * int64_t(sizeof(T) + sizeof(int64_t)));
  const bool joined = shares > 1;
  T* const values = static_cast<T*>(k.values);
  // Indices first: they need the wider alignment.
  int64_t* const part_index = static_cast<int64_t*>(k.work.data);
  T* const part = joined ? reinterpret_cast<T*>(part_index + shares * entries) : nullptr;
  const void* features = k.other_offsets ? k.other : k.nodes.features;
  const void* weights = k.other_offsets ? k.other_weights : k.nodes.weights;
  const Sweep<T, PlainColumns<T>> sweep{
      k.nodes,
      {static_cast<const T*>(features), static_cast<const T*>(weights)},
      k.other_offsets ? k.other_offsets : k.nodes.offsets,
      alpha_of<T>(k.nodes),
      k.self,
      nullptr,
      nullptr,
      k.k,
      joined ? part : values,
      joined ? part_index : k.indices,
      nullptr};
  const bool one = k.k == 1;
  const auto kernel = one ? best_kernel<T, PlainColumns<T>, false> : list_kernel<T>;
  const unsigned tiles = grid_for(rows, SIDE * (one ? EACH<T> : 4));
  const dim3 grid(tiles, joined ? unsigned(shares) : 1u, 1);
  if (const cudaError_t error = launch(kernel, grid, dim3(THREADS), 0, stream, sweep)) return error;
  if (!joined) return kOk;
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  return launch(join_kernel<T>, grid_for(rows, THREADS / 32, int64_t(processors) * 16),
                dim3(THREADS), 0, stream, part, part_index, shares, rows, k.k, values, k.indices);
}

template <class T>
int best_cluster_as(const BestCluster& k) {
  const int64_t rows = k.nodes.rows;
  if (rows == 0 || k.nodes.instances == 0) return kOk;
  if (too_many(rows, k.clusters.slots)) return kUnsupported;
  const DeviceGuard guard(k.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const Sweep<T, SlotColumns<T>> sweep{k.nodes,
                                       {k.clusters.sums, k.clusters.masses},
                                       k.clusters.offsets,
                                       alpha_of<T>(k.nodes),
                                       -1,
                                       k.clusters.labels,
                                       k.clusters.counts,
                                       1,
                                       nullptr,
                                       k.target,
                                       static_cast<T*>(k.gain)};
  return launch(best_kernel<T, SlotColumns<T>, true>, grid_for(rows, SIDE * EACH<T>), dim3(THREADS),
                0, cudaStream_t(k.exec.stream), sweep);
}

template <class T>
int negative_sum_as(const NegativeSum& k) {
  const int64_t rows = k.nodes.rows;
  if (k.nodes.instances == 0) return kOk;
  if (too_many(rows, rows)) return kUnsupported;
  const int shares = shares_for(k.work, rows * int64_t(sizeof(double)));
  if (rows > 0 && shares < 1) return kBadArgument;
  const DeviceGuard guard(k.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const auto stream = cudaStream_t(k.exec.stream);
  double* const part = static_cast<double*>(k.work.data);
  const dim3 grid(grid_for(rows, SIDE * EACH<T>), unsigned(rows > 0 ? shares : 1), 1);
  if (const cudaError_t error = launch(negative_kernel<T>, grid, dim3(THREADS), 0, stream, k.nodes,
                                       alpha_of<T>(k.nodes), part))
    return error;
  return launch(instance_sums_kernel, grid_for(k.nodes.instances, 1, 4096), dim3(THREADS), 0,
                stream, part, rows > 0 ? shares : 0, k.nodes, k.sums);
}

}  // namespace

int topk(const TopK& k) { SUBLIMATE_MULTICUT_RUN(topk_as, k, k.nodes.dtype); }
int best_cluster(const BestCluster& k) {
  SUBLIMATE_MULTICUT_RUN(best_cluster_as, k, k.nodes.dtype);
}
int negative_sum(const NegativeSum& k) {
  SUBLIMATE_MULTICUT_RUN(negative_sum_as, k, k.nodes.dtype);
}

}  // namespace sublimate::multicut::cuda
