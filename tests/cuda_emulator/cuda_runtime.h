// Stands in for the CUDA runtime's header of this name: device language, device functions and the
// host calls the project makes, all on the host. See README.md.
#pragma once

#if defined(__CUDACC__)
#error "tests/cuda_emulator is for the ordinary C++ compiler; nvcc has its own cuda_runtime.h"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// One per block: see symbols.h. `extern __shared__` does not compile; launch.h has
// SUBLIMATE_DYNAMIC_SHARED for dynamic shared memory.
#define __shared__ static thread_local

#include "atomics.h"
#include "collectives.h"
#include "emulator.h"
#include "intrinsics.h"
#include "run.h"
#include "runtime_api.h"

#define threadIdx (::sublimate::emulator::thread_index())
#define blockIdx (::sublimate::emulator::block_index())
#define blockDim (::sublimate::emulator::block_dim())
#define gridDim (::sublimate::emulator::grid_dim())
