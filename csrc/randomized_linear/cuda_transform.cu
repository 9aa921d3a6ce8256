// Walsh-Hadamard transforms on CUDA: of blocks of rows with signs and choice of rows (srht), and
// along rows (hadamard). A thread holds 32 values and does 5 levels on them in registers; between
// groups of 5 levels the values change hands through shared memory.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/permutation.h"
#include "randomized_linear/cuda.h"

SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(cuda)

namespace sublimate::randomized_linear::cuda {
namespace {

constexpr int HELD = 32, LEVELS = 5;

// The first `levels` levels on the bits of the place in v.
template <class A>
__device__ void butterfly(A (&v)[HELD], int levels) {
#pragma unroll
  for (int level = 0; level < LEVELS; ++level) {
    if (level >= levels) break;
    const int step = 1 << level;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      if (i & step) continue;
      const A a = v[i], b = v[i + step];
      v[i] = a + b;
      v[i + step] = a - b;
    }
  }
}

// --------------------------------------------------------------------------------------- srht

constexpr int64_t SIDE = HELD;  // a block of SRHT_ROWS rows is SIDE x SIDE places
static_assert(SIDE * SIDE == SRHT_ROWS, "two groups of levels");
constexpr int WORDS = SRHT_ROWS / 32 + 1;  // of signs: rows may begin inside a word

// 64 bytes of the arithmetic type: a sector or two of a row at every element size.
template <class T>
constexpr int SRHT_COLUMNS = 64 / sizeof(arith_t<T>);
template <class T>
constexpr int SRHT_THREADS = int(SIDE) * SRHT_COLUMNS<T>;

template <class A>
struct SrhtShared {
  int32_t target[SRHT_ROWS];  // output of each transformed row, or -1
  uint32_t sign[WORDS];
  // One place more for every SIDE: columns of both groups of levels meet all banks.
  __align__(16) A tile[(SIDE + 1) * SIDE * (64 / sizeof(A))];
};

// A block shorter than SRHT_ROWS is a longer one whose last rows are zero, since the leading part
// of a Sylvester matrix is the smaller one.
template <class T>
__global__ void __launch_bounds__(SRHT_THREADS<T>, 2)
    srht_kernel(Project p, SrhtBlocks blocks, int groups, int64_t across, double scale) {
  using A = arith_t<T>;
  constexpr int COLUMNS = SRHT_COLUMNS<T>, THREADS = SRHT_THREADS<T>;
  SUBLIMATE_DYNAMIC_SHARED(SrhtShared<A>, shared);
  const int64_t block = blockIdx.x / groups, group = blockIdx.x % groups;
  const int64_t first = block * blocks.chunk;
  const int64_t left = p.rows - first < blocks.chunk ? p.rows - first : blocks.chunk;
  {
    const uint64_t seed = uint64_t(*p.seed);
    if (threadIdx.x < WORDS) shared->sign[threadIdx.x] = sign_word(seed, first / 32 + threadIdx.x);
    const Permutation order = make_permutation(seed, blocks.transformed());
    for (int r = threadIdx.x; r < SRHT_ROWS; r += THREADS) {
      int64_t j = p.k;
      if (r < blocks.size()) j = permuted_back(order, uint32_t(block * blocks.size() + r));
      shared->target[r] = j < p.k ? int32_t(j) : -1;
    }
  }
  __syncthreads();

  const int c = threadIdx.x % COLUMNS, q = threadIdx.x / COLUMNS;
  uint32_t minus = 0;  // bit i: row i * SIDE + q is negated
  {
    const int bit = int((first + q) % 32), word = int((first + q) / 32 - first / 32);
#pragma unroll 4
    for (int i = 0; i < HELD; ++i) minus |= (shared->sign[word + i] >> bit & 1u) << i;
  }
  // Read when they are needed: ahead of that they would take registers from the tile.
  const volatile int32_t* target = shared->target + q * SIDE;
  const int64_t begin = across * group / groups, end = across * (group + 1) / groups;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t column = tile * COLUMNS + c;
    const bool here = column < p.columns;
    A v[HELD];
    const T* x = static_cast<const T*>(p.x) + (first + q) * p.row_stride + column;
    int rest = here ? int(left) - q : 0;
#pragma unroll
    for (int i = 0; i < HELD; ++i, x += SIDE * p.row_stride, rest -= SIDE) {
      v[i] = rest > 0 ? load_value(*x) : A(0);
    }
#pragma unroll
    for (int i = 0; i < HELD; ++i) v[i] = minus >> i & 1u ? -v[i] : v[i];
    butterfly(v, LEVELS);
    A* place = shared->tile + q * COLUMNS + c;
#pragma unroll
    for (int i = 0; i < HELD; ++i) place[i * (SIDE + 1) * COLUMNS] = v[i];
    __syncthreads();
    place = shared->tile + q * (SIDE + 1) * COLUMNS + c;
#pragma unroll
    for (int i = 0; i < HELD; ++i) v[i] = place[i * COLUMNS];
    butterfly(v, LEVELS);
    T* out = static_cast<T*>(p.out) + column;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {  // row q * SIDE + i
      const int32_t j = target[i];
      if (j >= 0 && here) out[j * p.columns] = store_value<T>(v[i] * A(scale));
    }
    __syncthreads();  // the tile is read before the next one is written
  }
}

template <class T>
int srht_as(const Project& p) {
  const DeviceGuard guard(p.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  const SrhtBlocks blocks = srht_blocks(p.rows);
  if (p.k > blocks.transformed()) {
    const int status = clear_rows(p.out, blocks.transformed(), p.k, p.columns, p.dtype, p.exec);
    if (status != kOk) return status;
  }
  const auto kernel = srht_kernel<T>;
  constexpr size_t SHARED = sizeof(SrhtShared<arith_t<T>>);
  if (const cudaError_t error = allow_shared(kernel, SHARED)) return error;
  // Signs and chosen rows are found once by each block, so no more blocks than run at a time.
  const int64_t across = ceil_div(p.columns, SRHT_COLUMNS<T>);
  const int64_t wanted = ceil_div(2 * int64_t(processors), blocks.blocks);
  const int64_t groups = wanted < across ? wanted : across;
  return launch(kernel, unsigned(blocks.blocks * groups), dim3(SRHT_THREADS<T>), SHARED,
                cudaStream_t(p.exec.stream), p, blocks, int(groups), across,
                srht_scale(blocks, p.k));
}

// ----------------------------------------------------------------------------------- hadamard

// Longest row of one block: 2^15 fp32 or 2^14 fp64 values, 128 KiB.
template <class A>
constexpr int MOST_LEVELS = sizeof(A) == 8 ? 14 : 15;
template <class A>
constexpr int MOST_THREADS = 1 << (MOST_LEVELS<A> - LEVELS);

__host__ __device__ constexpr int padded_place(int i) { return i + i / 32; }

// `levels` levels along runs of 2^levels places; longer rows are cut into 2^log_parts runs, and run
// q of the result takes the sum of all runs, each with its sign: so many reads instead of one.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS<arith_t<T>>)
    hadamard_kernel(Hadamard h, int levels, int log_parts) {
  using A = arith_t<T>;
  SUBLIMATE_DYNAMIC_SHARED(A, shared);
  // A team of threads holds a row, or 1024 places of short rows; it starts with places u,
  // u + team, ..., so that a warp reads consecutive elements.
  const int log_team = levels - LEVELS > 5 ? levels - LEVELS : 5;
  const int team = 1 << log_team, u = threadIdx.x & (team - 1);
  const int base = int(threadIdx.x >> log_team) << (log_team + LEVELS);
  const int64_t start = int64_t(blockIdx.x) * blockDim.x * HELD + base;
  const int64_t run = start >> levels;  // of the first place
  const int length = 1 << levels;
  const int parts = 1 << log_parts, q = int(run & (parts - 1));
  A v[HELD] = {};
  constexpr int FLIGHT = 8;  // reads at a time: more would not stay in registers
#pragma unroll
  for (int some = 0; some < HELD; some += FLIGHT) {
    for (int part = 0; part < parts; ++part) {
      const bool minus = __popc(unsigned(part & q)) & 1;
      int place = u + some * team;
      int64_t row = (run + (place >> levels)) >> log_parts;
      place &= length - 1;
      const int64_t rest = h.length - part * int64_t(length);
      const int limit = rest < 0 ? 0 : rest < length ? int(rest) : length;
      const T* x = static_cast<const T*>(h.x) + row * h.row_stride + part * int64_t(length);
#pragma unroll
      for (int i = some; i < some + FLIGHT; ++i) {  // place u + i * team
        const A value = row < h.rows && place < limit ? load_value(x[place]) : A(0);
        v[i] += minus ? -value : value;
        place += team;
        if (place >= length) {  // short rows: the next one, or one some way off
          row += place >> levels;
          x += (place >> levels) * h.row_stride;
          place &= length - 1;
        }
      }
    }
  }
  butterfly(v, levels - log_team);
  // A multiple of 32 places on is as many places and their pads on.
  A* held = shared + padded_place(base + u);
#pragma unroll
  for (int i = 0; i < HELD; ++i) held[i * padded_place(team)] = v[i];
  __syncthreads();
  if (log_team > 5) {  // bits 5 to 9
    A* middle = shared + padded_place(base + u % 32 + u / 32 * 1024);
#pragma unroll
    for (int i = 0; i < HELD; ++i) v[i] = middle[i * padded_place(32)];
    butterfly(v, log_team - 5);
#pragma unroll
    for (int i = 0; i < HELD; ++i) middle[i * padded_place(32)] = v[i];
    __syncthreads();
  }
  A* low = shared + padded_place(base + u * HELD);  // bits 0 to 4
#pragma unroll
  for (int i = 0; i < HELD; ++i) v[i] = low[i];
  butterfly(v, levels);
#pragma unroll
  for (int i = 0; i < HELD; ++i) low[i] = v[i];
  __syncthreads();
  // Any thread may write any place: a warp takes 1024 in a row, at fixed distances.
  const int mine = threadIdx.x / 32 * 1024 + threadIdx.x % 32;
  const A* done = shared + padded_place(mine);
  const int64_t at = int64_t(blockIdx.x) * blockDim.x * HELD + mine;
  T* out = static_cast<T*>(h.out) + at;
  const int64_t left = h.rows * h.padded - at;
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    if (i * 32 < left) out[i * 32] = store_value<T>(done[i * padded_place(32)] * A(h.scale));
  }
}

// The uppermost `levels` levels, straight from x to out: places 2^lower apart.
__global__ void __launch_bounds__(256) upper_levels_kernel(Hadamard h, int levels, int lower) {
  const int64_t apart = int64_t(1) << lower;
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = at >> lower, place = at & (apart - 1);
  if (row >= h.rows) return;
  const float* x = static_cast<const float*>(h.x) + row * h.row_stride;
  float* out = static_cast<float*>(h.out) + row * h.padded + place;
  float v[HELD];
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    const int64_t e = place + i * apart;
    v[i] = i >> levels == 0 && e < h.length ? x[e] : 0.0f;
  }
  butterfly(v, levels);
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    if (i >> levels == 0) out[i * apart] = v[i];
  }
}

template <class T>
int hadamard_as(const Hadamard& h) {
  using A = arith_t<T>;
  if (h.rows == 0) return kOk;
  const DeviceGuard guard(h.exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const auto stream = cudaStream_t(h.exec.stream);
  int levels = 0;
  while ((int64_t(1) << levels) < h.padded) ++levels;
  const int lower = levels < MOST_LEVELS<A> ? levels : MOST_LEVELS<A>;
  const int upper = levels - lower;
  Hadamard runs = h;
  int log_parts = upper;
  if (sizeof(T) == sizeof(float) && upper > 0) {
    // The sums of other types would be rounded on the way; theirs are formed by every reader.
    if (const cudaError_t error = launch(upper_levels_kernel, grid_for(h.rows << lower, 256),
                                         dim3(256), 0, stream, h, upper, lower)) {
      return error;
    }
    runs.x = h.out;
    runs.rows = h.rows << upper;
    runs.length = runs.row_stride = runs.padded = int64_t(1) << lower;
    log_parts = 0;
  }
  const int threads = lower - LEVELS > 8 ? 1 << (lower - LEVELS) : 256;
  const size_t bytes = padded_place(threads * HELD) * sizeof(A);
  const auto kernel = hadamard_kernel<T>;
  if (const cudaError_t error = allow_shared(kernel, bytes)) return error;
  const int64_t blocks = ceil_div(runs.rows * runs.padded, threads * HELD);
  if (blocks > kMaxGridX) return kUnsupported;
  return launch(kernel, unsigned(blocks), dim3(threads), bytes, stream, runs, lower, log_parts);
}

}  // namespace

int project_srht(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(srht_as, p); }

int hadamard(const Hadamard& h) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(hadamard_as, h); }

}  // namespace sublimate::randomized_linear::cuda
