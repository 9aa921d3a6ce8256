// Host/device markers, so that one header serves g++, nvcc and the CUDA emulator.
#pragma once

#if defined(__CUDACC__)
#define SUBLIMATE_HD __host__ __device__ __forceinline__
#else
#define SUBLIMATE_HD inline __attribute__((always_inline))
#endif

// True only in device code of a real CUDA compilation: hardware intrinsics may be used.
#if defined(__CUDA_ARCH__)
#define SUBLIMATE_ON_DEVICE 1
#else
#define SUBLIMATE_ON_DEVICE 0
#endif
