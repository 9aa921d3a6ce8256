// Exact greedy additive edge contraction on CUDA, without a table of costs.
//
// One kernel for the whole contraction: blocks own slices of the clusters, each cluster i keeps its
// best partner j > i, and a merge (i, j) goes
//   1. every block finds the best pair of all, adds up the new cluster for itself, and values it
//      against its slice: that is the new row of i, and new values in the rows before i;
//   2. the sums of i are written, and the rows whose best partner went away are looked through
//      again, all blocks sharing each row;
//   3. (only after such rows) their owners join the blocks' finds.
// Many small instances: a block each, and the barriers are the block's.

#include <cooperative_groups.h>

#include <type_traits>

#include "multicut/cuda_common.h"

SUBLIMATE_DECLARE_MULTICUT(cuda)

namespace sublimate::multicut::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int AGAIN = 16;            // rows looked through again between two barriers
constexpr int64_t LEAST_SLICE = 32;  // clusters of a block
constexpr int64_t MOST_BLOCKS = 1024;
constexpr int64_t LARGE = 2048;  // nodes from which an instance is worth the whole GPU

template <class T>
struct Best {
  T value;
  int row, partner;  // NONE: no partner

  __device__ static Best none() { return {-T(INFINITY), NONE, NONE}; }
  __device__ bool before(const Best& other) const {
    const bool odd = value != value, other_odd = other.value != other.value;
    if (odd != other_odd) return odd;
    if (value != other.value && !odd) return value > other.value;
    return row != other.row ? row < other.row : partner < other.partner;
  }
};

// Where the state of an instance stands. Clusters are named by their lowest member, counted from
// the instance's first.
template <class T>
struct State {
  double* sums;      // [n][dims]
  double* masses;    // [n]
  T* features;       // [dims][n]: sums rounded, so that threads read neighbours
  T* weights;        // [n]: masses rounded
  Best<T>* best;     // [n]: of the pairs (i, j > i)
  int* parent;       // [n]: the cluster it was merged into, or itself
  int* again;        // [n]: rows to look through again, in no order,
  int* again_count;  // and how many
  Best<T>* found;    // [AGAIN][blocks]
  Best<T>* heads;    // [blocks]: best of a slice
  Best<T>* fresh;    // [blocks]: best of the new row in a slice
};

// Places the state in the work: `first` rows and `block` blocks into the arrays of all. Returns the
// bytes of all, for which gaec_work makes room.
template <class T>
__host__ __device__ int64_t carve(const Work& work, int64_t first, int64_t rows, int64_t dims,
                                  int64_t block, int64_t blocks, State<T>* state) {
  char* at = static_cast<char*>(work.data);
  const auto take = [&](auto*& pointer, int64_t from, int64_t count) {
    using V = std::remove_reference_t<decltype(*pointer)>;
    pointer = reinterpret_cast<V*>(at) + from;
    at += (count * int64_t(sizeof(V)) + 15) / 16 * 16;
  };
  take(state->sums, first * dims, rows * dims);
  take(state->masses, first, rows);
  take(state->features, first * dims, rows * dims);
  take(state->weights, first, rows);
  take(state->best, first, rows);
  take(state->parent, first, rows);
  take(state->again, first, rows);
  take(state->found, block * AGAIN, blocks * AGAIN);
  take(state->heads, block, blocks);
  take(state->fresh, block, blocks);
  take(state->again_count, block, blocks);
  return at - static_cast<char*>(work.data);
}

// The blocks that work on one instance: the grid, or this block alone.
struct WholeGrid {
  __device__ static int rank() { return int(blockIdx.x); }
  __device__ static int size() { return int(gridDim.x); }
  __device__ static void sync() { cooperative_groups::this_grid().sync(); }
};
struct OneBlock {
  __device__ static int rank() { return 0; }
  __device__ static int size() { return 1; }
  __device__ static void sync() { __syncthreads(); }
};

// The best of the block, in every thread. Begins with a barrier.
template <class T>
__device__ Best<T> best_of_block(Best<T> mine, Best<T>* room) {
  for (int step = 16; step > 0; step /= 2) {
    const Best<T> other{__shfl_xor_sync(WARP, mine.value, step),
                        __shfl_xor_sync(WARP, mine.row, step),
                        __shfl_xor_sync(WARP, mine.partner, step)};
    if (other.before(mine)) mine = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = room[0];
  for (int w = 1; w < THREADS / 32; ++w) {
    if (room[w].before(mine)) mine = room[w];
  }
  return mine;
}

template <class T, class Group>
struct Contraction {
  const Gaec& f;
  Alpha<T> alpha;
  State<T> s;
  int n, dims, begin, end;  // nodes; this block's slice of them
  int64_t first;            // the instance's first node
  T* x;                     // shared, [dims]: a cluster, with the signs of negative coordinates
  Best<T>* room;            // shared, one a warp

  __device__ T sign(int k, T value) const { return k < dims - f.nodes.negative ? value : -value; }
  __device__ bool alive(int i) const { return s.parent[i] == i; }

  // Value of the cluster in `x`, of factor u, and cluster c.
  __device__ T value(T u, int c) const {
    T sum = 0;
#pragma unroll 4
    for (int k = 0; k < dims; ++k) sum = chain(x[k], s.features[int64_t(k) * n + c], sum);
    return chain(u, alpha.column(s.weights[c]), sum);
  }

  // Puts cluster i into `x`; barriers around it are the caller's.
  __device__ T load(int i) const {
    for (int k = threadIdx.x; k < dims; k += THREADS) {
      x[k] = sign(k, s.features[int64_t(k) * n + i]);
    }
    return alpha.row(s.weights[i]);
  }

  __device__ void start() const {
    const int64_t step = int64_t(Group::size()) * THREADS;
    for (int64_t e = int64_t(Group::rank()) * THREADS + threadIdx.x; e < int64_t(n) * dims;
         e += step) {
      const T value = static_cast<const T*>(f.nodes.features)[first * dims + e];
      s.sums[e] = double(value);
      s.features[e % dims * n + e / dims] = value;
    }
    for (int i = begin + int(threadIdx.x); i < end; i += THREADS) {
      const T w = weight_of<T>(f.nodes.weights, first + i);
      s.masses[i] = double(w);
      s.weights[i] = w;
      s.parent[i] = i;
    }
    if (Group::rank() == 0 && threadIdx.x == 0) *s.again_count = 0;
    Group::sync();
    // Rows get shorter: dealt out in turn, each the work of a block.
    for (int i = Group::rank(); i < n; i += Group::size()) {
      __syncthreads();
      const T u = load(i);
      __syncthreads();
      Best<T> best = Best<T>::none();
      for (int c = i + 1 + int(threadIdx.x); c < n; c += THREADS) {
        const Best<T> pair{value(u, c), i, c};
        if (pair.before(best)) best = pair;
      }
      best = best_of_block(best, room);
      if (threadIdx.x == 0) s.best[i] = best;
    }
    Group::sync();
    find_head(NONE);
    Group::sync();
  }

  // dead: a cluster that another block may be striking out right now.
  __device__ void find_head(int dead) const {
    Best<T> best = Best<T>::none();
    for (int i = begin + int(threadIdx.x); i < end; i += THREADS) {
      if (i != dead && alive(i) && s.best[i].before(best)) best = s.best[i];
    }
    best = best_of_block(best, room);
    if (threadIdx.x == 0) s.heads[Group::rank()] = best;
  }

  __device__ Best<T> best_of_all(const Best<T>* each) const {
    Best<T> best = Best<T>::none();
    for (int b = threadIdx.x; b < Group::size(); b += THREADS) {
      if (each[b].before(best)) best = each[b];
    }
    return best_of_block(best, room);
  }

  // Step 1: the new cluster against this block's slice.
  __device__ void spread(int i, int j) const {
    for (int k = threadIdx.x; k < dims; k += THREADS) {
      x[k] = sign(k, T(s.sums[int64_t(i) * dims + k] + s.sums[int64_t(j) * dims + k]));
    }
    const T u = alpha.row(T(s.masses[i] + s.masses[j]));
    __syncthreads();
    Best<T> fresh = Best<T>::none();
    for (int base = begin; base < end; base += THREADS) {
      const int c = base + int(threadIdx.x);
      bool again = false;
      if (c < end && c != i && c != j && alive(c)) {
        if (c > i) {
          const Best<T> pair{value(u, c), i, c};
          if (pair.before(fresh)) fresh = pair;
          again = c < j && s.best[c].partner == j;
        } else {
          const Best<T> pair{value(u, c), c, i}, old = s.best[c];
          again = (old.partner == i || old.partner == j) && pair.value < old.value;
          if (again || pair.before(old)) s.best[c] = pair;  // if again: until the others are seen
        }
      }
      // The order of the list does not matter: each row is looked through by itself.
      const unsigned lanes = __ballot_sync(WARP, again);
      int place = 0;
      if (threadIdx.x % 32 == 0 && lanes) place = atomicAdd(s.again_count, __popc(lanes));
      place = __shfl_sync(WARP, place, 0);
      if (again) s.again[place + __popc(lanes & ((1u << threadIdx.x % 32) - 1))] = c;
    }
    fresh = best_of_block(fresh, room);
    if (threadIdx.x == 0) s.fresh[Group::rank()] = fresh;
  }

  // Step 2, for the block that has i or j in its slice.
  __device__ void write(int i, int j) const {
    if (i >= begin && i < end) {
      const Best<T> fresh = best_of_all(s.fresh);
      for (int k = threadIdx.x; k < dims; k += THREADS) {
        const double sum = s.sums[int64_t(i) * dims + k] + s.sums[int64_t(j) * dims + k];
        s.sums[int64_t(i) * dims + k] = sum;
        s.features[int64_t(k) * n + i] = T(sum);
      }
      if (threadIdx.x == 0) {
        const double mass = s.masses[i] + s.masses[j];
        s.masses[i] = mass;
        s.weights[i] = T(mass);
        s.best[i] = fresh;
        s.parent[j] = i;
      }
    }
  }

  // Steps 2 and 3 for the rows whose partner went away. A row's value to i is in its best.
  __device__ void look_again(int i, int j, int rows) const {
    for (int batch = 0; batch < rows; batch += AGAIN) {
      const int here = rows - batch < AGAIN ? rows - batch : AGAIN;
      for (int r = 0; r < here; ++r) {
        const int row = s.again[batch + r];
        __syncthreads();
        const T u = load(row);
        __syncthreads();
        Best<T> best = Best<T>::none();
        for (int c = (begin > row ? begin : row + 1) + int(threadIdx.x); c < end; c += THREADS) {
          if (c == i || c == j || !alive(c)) continue;
          const Best<T> pair{value(u, c), row, c};
          if (pair.before(best)) best = pair;
        }
        best = best_of_block(best, room);
        if (threadIdx.x == 0) s.found[r * Group::size() + Group::rank()] = best;
      }
      Group::sync();
      if (Group::rank() == 0 && threadIdx.x == 0) *s.again_count = 0;  // all have read it
      for (int r = 0; r < here; ++r) {
        const int row = s.again[batch + r];
        if (row < begin || row >= end) continue;
        Best<T> best = best_of_all(s.found + r * Group::size());
        if (threadIdx.x == 0) {
          // Rows before i have the pair with i already; those after have lost j.
          if (row < i && s.best[row].before(best)) best = s.best[row];
          s.best[row] = best;
        }
      }
      Group::sync();
    }
  }

  __device__ void run() const {
    if (n > 0) start();
    int64_t merges = 0;
    while (n > 0) {
      const Best<T> pair = best_of_all(s.heads);
      if (!(pair.value > 0)) break;  // the same in every block
      const int i = pair.row, j = pair.partner;
      if (Group::rank() == 0 && threadIdx.x == 0) {
        f.merges[2 * (first + merges)] = first + i;
        f.merges[2 * (first + merges) + 1] = first + j;
        static_cast<T*>(f.costs)[first + merges] = pair.value;
      }
      ++merges;
      spread(i, j);
      Group::sync();
      const int rows = *s.again_count;
      write(i, j);
      if (rows > 0) look_again(i, j, rows);
      __syncthreads();
      find_head(j);
      Group::sync();
    }
    finish(merges);
  }

  __device__ void finish(int64_t merges) const {
    for (int i = begin + int(threadIdx.x); i < end; i += THREADS) {
      int lowest = i;
      while (s.parent[lowest] != lowest) lowest = s.parent[lowest];
      f.labels[first + i] = first + lowest;
      if (i >= merges) {
        f.merges[2 * (first + i)] = f.merges[2 * (first + i) + 1] = -1;
        static_cast<T*>(f.costs)[first + i] = 0;
      }
    }
  }
};

template <class T, class Group>
__device__ void contract_instance(const Gaec& f, const Alpha<T>& alpha, int64_t b, int64_t block,
                                  int64_t blocks) {
  __shared__ Best<T> room[THREADS / 32];
  SUBLIMATE_DYNAMIC_SHARED(T, x);
  const int64_t first = f.nodes.offsets[b], n = f.nodes.offsets[b + 1] - first;
  const int64_t slice = ceil_div(n > 0 ? n : 1, Group::size());
  const int64_t begin = Group::rank() * slice < n ? Group::rank() * slice : n;
  const int64_t end = begin + slice < n ? begin + slice : n;
  State<T> state;
  carve<T>(f.work, first, f.nodes.rows, f.nodes.dims, block, blocks, &state);
  const Contraction<T, Group> c{f,          alpha,    state, int(n), int(f.nodes.dims),
                                int(begin), int(end), first, x,      room};
  c.run();
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1) gaec_grid_kernel(Gaec f, Alpha<T> alpha) {
  for (int64_t b = 0; b < f.nodes.instances; ++b) {
    contract_instance<T, WholeGrid>(f, alpha, b, 0, gridDim.x);
    WholeGrid::sync();
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1) gaec_block_kernel(Gaec f, Alpha<T> alpha) {
  for (int64_t b = blockIdx.x; b < f.nodes.instances; b += gridDim.x) {
    contract_instance<T, OneBlock>(f, alpha, b, blockIdx.x, gridDim.x);
    __syncthreads();
  }
}

template <class T>
int gaec_as(const Gaec& k) {
  const int64_t rows = k.nodes.rows, instances = k.nodes.instances;
  if (rows == 0 || instances == 0) return kOk;
  if (rows >= NONE || k.nodes.dims >= NONE) return kUnsupported;
  const DeviceGuard guard(k.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  const size_t shared = size_t(k.nodes.dims) * sizeof(T);
  const auto stream = cudaStream_t(k.exec.stream);
  const Alpha<T> alpha = alpha_of<T>(k.nodes);
  // The grid takes few, large instances one after the other; otherwise each has a block.
  const bool grid = instances == 1 || (instances < processors && rows / instances >= LARGE);
  const auto kernel = grid ? gaec_grid_kernel<T> : gaec_block_kernel<T>;
  if (const cudaError_t error = allow_shared(kernel, shared)) return error;
  int64_t blocks = instances < MOST_BLOCKS ? instances : MOST_BLOCKS;
  if (grid) {
    int resident = 0;
    if (const cudaError_t error = resident_blocks(kernel, THREADS, shared, &resident)) return error;
    const int64_t most = 2 * processors < resident ? 2 * processors : resident;
    const int64_t wanted = ceil_div(rows, LEAST_SLICE);
    blocks = wanted < most ? wanted : most;
    if (blocks < 1) return kUnsupported;
  }
  State<T> state;
  if (carve<T>(k.work, 0, rows, k.nodes.dims, 0, blocks, &state) > k.work.bytes) {
    return kBadArgument;
  }
  if (grid) {
    return launch_cooperative(gaec_grid_kernel<T>, unsigned(blocks), dim3(THREADS), shared, stream,
                              k, alpha);
  }
  return launch(gaec_block_kernel<T>, unsigned(blocks), dim3(THREADS), shared, stream, k, alpha);
}

}  // namespace

int gaec(const Gaec& k) { SUBLIMATE_MULTICUT_RUN(gaec_as, k, k.nodes.dtype); }

}  // namespace sublimate::multicut::cuda
