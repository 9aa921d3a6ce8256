// Planted faults, each beside its correct twin (`fixed`). x and out hold 256 ints.
#include <cooperative_groups.h>

#include <cstring>

#include "common/error.h"
#include "common/launch.h"
#include "kernels.h"

namespace emulator_tests {
namespace {

using sublimate::launch;
constexpr unsigned kFull = 0xffffffffu;

__global__ void missing_barrier(bool fixed, const int* x, int* out) {
  __shared__ int s[256];
  const unsigned t = threadIdx.x;
  s[t] = x[t];
  if (fixed) __syncthreads();
  out[t] = s[(t + 1) % 256];
}

__global__ void missing_syncwarp(bool fixed, const int* x, int* out) {
  SUBLIMATE_DYNAMIC_SHARED(int, s);
  const unsigned t = threadIdx.x;
  s[t] = x[t];
  if (fixed) {
    __syncwarp();
  } else {
    __any_sync(kFull, 1);  // a vote orders no memory
  }
  out[t] = s[t ^ 1];
}

__global__ void overlapping_blocks(bool fixed, const int*, int* out) {
  // Four blocks of 64; unfixed, all write the first 64 elements.
  out[(fixed ? blockIdx.x * 64 : 0) + threadIdx.x] = int(blockIdx.x);
}

__device__ unsigned blocks_done;

__global__ void missing_fence(bool fixed, const int* x, int* out) {
  // The last block to arrive adds what the others left in out.
  __shared__ bool last;
  if (threadIdx.x == 0) {
    out[1 + blockIdx.x] = x[blockIdx.x];
    if (fixed) __threadfence();
    last = atomicAdd(&blocks_done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[1 + b];
    out[0] = sum;
    atomicExch(&blocks_done, 0u);
  }
}

__global__ void divergence_exit(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x;
  if (!fixed && t >= 128) return;
  __syncthreads();
  if (t < 128) out[t] = x[t];
}

__global__ void divergence_sites(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x;
  if (fixed || t < 128) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[t] = x[t];
}

__global__ void absent_lane(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x, lane = t % 32;
  int v = x[t];
  if (lane < 16) v += __shfl_down_sync(fixed ? 0x0000ffffu : kFull, v, 8, 16);
  out[t] = v;
}

__global__ void mask_without_self(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x;
  out[t] = x[t] + int(__ballot_sync(fixed ? kFull : 0x7fffffffu, 1));
}

__global__ void warp_against_block(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x, lane = t % 32;
  // Unfixed, half of each warp votes with lanes that wait in the block barrier.
  int v = 1;
  if (lane < 16) v = __any_sync(fixed ? 0x0000ffffu : kFull, 1);
  __syncthreads();
  out[t] = x[t] * v;
}

__global__ void bad_width(bool fixed, const int* x, int* out) {
  out[threadIdx.x] = __shfl_xor_sync(kFull, x[threadIdx.x], 1, fixed ? 4 : 6);
}

__global__ void grid_sync(bool, const int* x, int* out) {
  cooperative_groups::this_grid().sync();
  out[blockIdx.x * 64 + threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
}

__global__ void block_leaves_grid(bool fixed, const int* x, int* out) {
  if (!fixed && blockIdx.x == 1) return;
  cooperative_groups::this_grid().sync();
  out[blockIdx.x * 64 + threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
}

__global__ void spin(bool fixed, const int* x, int* out) {
  __shared__ int flag;
  if (threadIdx.x == 0) atomicExch(&flag, 0);
  __syncthreads();
  if (threadIdx.x == 1 && fixed) atomicExch(&flag, 1);
  if (threadIdx.x == 0)
    while (atomicCAS(&flag, 1, 2) != 1) {
    }
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void uninitialised_shared(bool fixed, const int* x, int* out) {
  __shared__ int kept[256];
  SUBLIMATE_DYNAMIC_SHARED(int, dynamic);
  const unsigned t = threadIdx.x;
  // Unfixed, only the first block writes and the second hopes to find it there.
  if (fixed || blockIdx.x == 0) kept[t] = dynamic[t] = x[t];
  __syncthreads();
  if (blockIdx.x == 1) out[t] = t % 2 ? kept[t] : dynamic[t];
}

__global__ void global_overrun(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x;
  out[fixed ? t : t + 1] = x[t];
}

__global__ void shared_overrun(bool fixed, const int* x, int* out) {
  SUBLIMATE_DYNAMIC_SHARED(int, s);
  const unsigned t = threadIdx.x;
  s[fixed ? t : t + 1] = x[t];
  __syncthreads();
  out[t] = s[t];
}

__global__ void static_overrun(bool fixed, const int* x, int* out) {
  __shared__ int s[256];
  const unsigned t = threadIdx.x;
  s[fixed ? t : t + 1] = x[t];
  __syncthreads();
  out[t] = s[t];
}

__global__ void misaligned(bool fixed, const int* x, int* out) {
  const unsigned t = threadIdx.x;
  const int4 v = reinterpret_cast<const int4*>(x + (fixed ? 0 : 1))[t];
  reinterpret_cast<int4*>(out)[t] = v;
}

__global__ void trap(bool fixed, const int* x, int* out) {
  if (!fixed && threadIdx.x == 7) __trap();
  out[threadIdx.x] = x[threadIdx.x];
}

using Kernel = void (*)(bool, const int*, int*);
struct Case {
  const char* name;
  Kernel kernel;
  unsigned blocks, threads;
  size_t shared;
  bool cooperative;
};
const Case kCases[] = {
    {"missing_barrier", missing_barrier, 1, 256, 0, false},
    {"missing_syncwarp", missing_syncwarp, 1, 32, 32 * sizeof(int), false},
    {"overlapping_blocks", overlapping_blocks, 4, 64, 0, false},
    {"missing_fence", missing_fence, 4, 32, 0, false},
    {"divergence_exit", divergence_exit, 1, 256, 0, false},
    {"divergence_sites", divergence_sites, 1, 256, 0, false},
    {"absent_lane", absent_lane, 1, 256, 0, false},
    {"mask_without_self", mask_without_self, 1, 256, 0, false},
    {"warp_against_block", warp_against_block, 1, 256, 0, false},
    {"bad_width", bad_width, 1, 256, 0, false},
    {"grid_sync", grid_sync, 4, 64, 0, false},
    {"block_leaves_grid", block_leaves_grid, 4, 64, 0, true},
    {"spin", spin, 1, 64, 0, false},
    {"uninitialised_shared", uninitialised_shared, 2, 256, 256 * sizeof(int), false},
    {"global_overrun", global_overrun, 1, 256, 0, false},
    {"shared_overrun", shared_overrun, 1, 256, 256 * sizeof(int), false},
    {"static_overrun", static_overrun, 1, 256, 0, false},
    {"misaligned", misaligned, 1, 63, 0, false},
    {"trap", trap, 1, 256, 0, false},
};

}  // namespace

int fault(const char* name, bool fixed, const int* x, int* out) {
  for (const Case& c : kCases) {
    if (std::strcmp(name, c.name) != 0) continue;
    // grid_sync is correct once launched as what it is.
    const bool cooperative = c.cooperative || (c.kernel == grid_sync && fixed);
    return cooperative ? sublimate::launch_cooperative(c.kernel, c.blocks, c.threads, c.shared,
                                                       nullptr, fixed, x, out)
                       : launch(c.kernel, c.blocks, c.threads, c.shared, nullptr, fixed, x, out);
  }
  return sublimate::kBadArgument;
}

}  // namespace emulator_tests
