// Sums of clusters, and moves of nodes between them, on CUDA.

#include "multicut/cuda_common.h"

SUBLIMATE_DECLARE_MULTICUT(cuda)

namespace sublimate::multicut::cuda {
namespace {

constexpr int SUM_THREADS = 256;
constexpr int MOVE_THREADS = 128;

// First position whose member has a label of at least c.
__device__ inline int64_t begin_of(const Contract& f, int64_t c) {
  int64_t low = 0, high = f.rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (f.labels[f.members[middle]] < c) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// A warp sums 32 coordinates of a cluster, one a lane, over its members in order; the weight is
// coordinate `dims`. So the order of addition is that of a plain loop over all nodes.
template <class T>
__global__ void __launch_bounds__(SUM_THREADS, 1) contract_kernel(Contract f) {
  const int lane = threadIdx.x % 32;
  const int64_t chunks = f.dims / 32 + 1, items = f.clusters * chunks;
  const int64_t warps = int64_t(gridDim.x) * (SUM_THREADS / 32);
  const T* const x = static_cast<const T*>(f.features);
  for (int64_t item = int64_t(blockIdx.x) * (SUM_THREADS / 32) + threadIdx.x / 32; item < items;
       item += warps) {
    const int64_t c = item / chunks, k = item % chunks * 32 + lane;
    const int64_t begin = begin_of(f, c), end = begin_of(f, c + 1);
    double sum = 0;
    if (k < f.dims) {
#pragma unroll 8
      for (int64_t p = begin; p < end; ++p) sum += double(x[f.members[p] * f.dims + k]);
      f.sums[c * f.dims + k] = sum;
    } else if (k == f.dims) {
      for (int64_t p = begin; p < end; ++p) {
        sum += double(weight_of<T>(f.weights, f.members[p]));
      }
      f.masses[c] = sum;
      f.counts[c] = end - begin;
    }
  }
}

// Lowest empty slot from `hint` to `end`, or `end`; in every thread. All slots before hint are
// full.
__device__ inline int64_t lowest_empty(const int64_t* counts, int64_t hint, int64_t end,
                                       int64_t* found) {
  for (int64_t base = hint; base < end; base += MOVE_THREADS) {
    const int64_t c = base + threadIdx.x;
    const bool empty = c < end && counts[c] == 0;
    const unsigned lanes = __ballot_sync(WARP, empty);
    if (threadIdx.x % 32 == 0) {
      found[threadIdx.x / 32] = lanes ? base + threadIdx.x + __ffs(int(lanes)) - 1 : end;
    }
    __syncthreads();
    int64_t first = end;
    for (int w = 0; w < MOVE_THREADS / 32; ++w) first = first < found[w] ? first : found[w];
    __syncthreads();
    if (first < end) return first;
  }
  return end;
}

// One block per instance: moves are made one after the other, the block's threads share the
// coordinates. A thread always has the same ones, so that sums need no barrier.
template <class T>
__global__ void __launch_bounds__(MOVE_THREADS, 1) move_kernel(Move f) {
  __shared__ double room[2][MOVE_THREADS / 32];
  __shared__ int64_t found[MOVE_THREADS / 32];
  const Nodes& nodes = f.nodes;
  const Clusters& clusters = f.clusters;
  const int64_t positive = nodes.dims - nodes.negative;
  for (int64_t b = blockIdx.x; b < nodes.instances; b += gridDim.x) {
    const int64_t end = clusters.offsets[b + 1];
    int64_t hint = clusters.offsets[b], moved = 0;
    for (int64_t step = f.order_offsets[b]; step < f.order_offsets[b + 1]; ++step) {
      __syncthreads();  // the last move is made
      const int64_t i = f.order[step];
      const T* const x = static_cast<const T*>(nodes.features) + i * nodes.dims;
      const double w = double(weight_of<T>(nodes.weights, i));
      const int64_t c = clusters.labels[i];
      int64_t t = f.target[i];
      double there = 0, here = 0;
      for (int64_t k = threadIdx.x; k < nodes.dims; k += MOVE_THREADS) {
        const double value = double(x[k]), signed_value = k < positive ? value : -value;
        there += signed_value * clusters.sums[t * nodes.dims + k];
        here += signed_value * (clusters.sums[c * nodes.dims + k] - value);
      }
      there = block_sum(there, room[0]) - nodes.alpha * w * clusters.masses[t];
      here = block_sum(here, room[1]) - nodes.alpha * w * (clusters.masses[c] - w);
      const bool alone = clusters.counts[c] == 1;
      if (alone) here = 0;
      if (there < 0 && clusters.counts[t] > 0) {
        t = lowest_empty(clusters.counts, hint, end, found);
        hint = t;
        if (t == end) continue;
        there = 0;
      }
      if (t == c || (alone && clusters.counts[t] == 0)) continue;
      if (!(there - here > 1e-10 * (fabs(there) + fabs(here)))) continue;
      for (int64_t k = threadIdx.x; k < nodes.dims; k += MOVE_THREADS) {
        const double value = double(x[k]);
        double* const from = clusters.sums + c * nodes.dims + k;
        *from = alone ? 0.0 : *from - value;
        clusters.sums[t * nodes.dims + k] += value;
      }
      __syncthreads();  // counts are read
      if (threadIdx.x == 0) {
        clusters.labels[i] = t;
        clusters.masses[c] = alone ? 0.0 : clusters.masses[c] - w;
        clusters.masses[t] += w;
        clusters.counts[c] -= 1;
        clusters.counts[t] += 1;
      }
      if (alone && c < hint) hint = c;
      ++moved;
    }
    if (threadIdx.x == 0) f.moved[b] = moved;
    __syncthreads();
  }
}

template <class T>
int contract_as(const Contract& k) {
  if (k.clusters == 0) return kOk;
  if (k.rows > 0 && !k.members) return kBadArgument;
  const DeviceGuard guard(k.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  const int64_t items = k.clusters * (k.dims / 32 + 1);
  return launch(contract_kernel<T>, grid_for(items, SUM_THREADS / 32, int64_t(processors) * 32),
                dim3(SUM_THREADS), 0, cudaStream_t(k.exec.stream), k);
}

template <class T>
int move_as(const Move& k) {
  const DeviceGuard guard(k.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  return launch(move_kernel<T>, grid_for(k.nodes.instances, 1, 1 << 16), dim3(MOVE_THREADS), 0,
                cudaStream_t(k.exec.stream), k);
}

}  // namespace

int contract(const Contract& k) { SUBLIMATE_MULTICUT_RUN(contract_as, k, k.dtype); }
int move(const Move& k) { SUBLIMATE_MULTICUT_RUN(move_as, k, k.nodes.dtype); }

}  // namespace sublimate::multicut::cuda
