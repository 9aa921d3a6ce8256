// Host/device markers, so that one header serves g++, nvcc and the CUDA emulator.
#pragma once

#if defined(__CUDACC__)
#define SUBLIMATE_HD __host__ __device__ __forceinline__
#else
#define SUBLIMATE_HD inline __attribute__((always_inline))
#endif

// Unrolls the loop that follows on the GPU, where an array that a loop variable indexes would lie
// in memory; host compilers decide for themselves.
#if defined(__CUDACC__)
#define SUBLIMATE_GPU_UNROLL _Pragma("unroll")
#else
#define SUBLIMATE_GPU_UNROLL
#endif

// True only in device code of a real CUDA compilation: hardware intrinsics may be used.
#if defined(__CUDA_ARCH__)
#define SUBLIMATE_ON_DEVICE 1
#else
#define SUBLIMATE_ON_DEVICE 0
#endif
