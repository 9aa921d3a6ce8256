// Host calls of the CUDA runtime. Streams are ignored: every call has finished when it returns.
#pragma once

#include <cstdlib>
#include <cstring>

#include "run.h"

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidMemcpyDirection = 21,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
  cudaErrorUnknown = 999
};
using cudaError_t = cudaError;
using cudaStream_t = struct CUstream_st*;
#define cudaStreamLegacy ((cudaStream_t)0x1)
#define cudaStreamPerThread ((cudaStream_t)0x2)

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxBlockDimX = 2,
  cudaDevAttrMaxBlockDimY = 3,
  cudaDevAttrMaxBlockDimZ = 4,
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMaxGridDimY = 6,
  cudaDevAttrMaxGridDimZ = 7,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrReservedSharedMemoryPerBlock = 111
};

namespace sublimate::emulator {
inline cudaError_t& last_error() {
  static cudaError_t error = cudaSuccess;
  return error;
}
inline cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last_error() = error;
  return error;
}

// The door csrc/common/launch.h uses. Refusals are error codes, faults are exceptions.
inline cudaError_t launch(const void* kernel, const Site& site, dim3 grid, dim3 block,
                          size_t shared_bytes, bool cooperative, void (*entry)(void*),
                          void* arguments) {
  Launch record;
  record.site = site, record.kernel = kernel, record.grid = grid, record.block = block;
  record.shared_bytes = shared_bytes, record.cooperative = cooperative;
  record.entry = entry, record.arguments = arguments;
  switch (refuse(record)) {
    case Refusal::configuration:
      return returned(cudaErrorInvalidConfiguration);
    case Refusal::shared_memory:
      return returned(cudaErrorInvalidValue);
    case Refusal::too_large:
      return returned(cudaErrorCooperativeLaunchTooLarge);
    case Refusal::none:
      break;
  }
  run(record);
  return cudaSuccess;
}

inline unsigned char* dynamic_shared() { return current().block->dynamic.data(); }
}  // namespace sublimate::emulator

inline cudaError_t cudaGetLastError() {
  return std::exchange(sublimate::emulator::last_error(), cudaSuccess);
}
inline cudaError_t cudaPeekAtLastError() { return sublimate::emulator::last_error(); }

#define SUBLIMATE_ERRORS(X)                                                             \
  X(cudaSuccess, "no error")                                                            \
  X(cudaErrorInvalidValue, "invalid argument")                                          \
  X(cudaErrorMemoryAllocation, "out of memory")                                         \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")                    \
  X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")               \
  X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for the runtime") \
  X(cudaErrorInvalidDeviceFunction, "invalid device function")                          \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected")                            \
  X(cudaErrorInvalidDevice, "invalid device ordinal")                                   \
  X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                \
  X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")           \
  X(cudaErrorLaunchFailure, "unspecified launch failure")                               \
  X(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch")        \
  X(cudaErrorNotSupported, "operation not supported")                                   \
  X(cudaErrorUnknown, "unknown error")
#define SUBLIMATE_NAME(code, text) \
  case code:                       \
    return #code;
#define SUBLIMATE_TEXT(code, text) \
  case code:                       \
    return text;
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) { SUBLIMATE_ERRORS(SUBLIMATE_NAME) }
  return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) { SUBLIMATE_ERRORS(SUBLIMATE_TEXT) }
  return "unrecognized error code";
}
#undef SUBLIMATE_ERRORS
#undef SUBLIMATE_NAME
#undef SUBLIMATE_TEXT

// --- the one device
// --------------------------------------------------------------------------------
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return sublimate::emulator::returned(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  using namespace sublimate::emulator;
  if (device != 0) return returned(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return *value = kThreadsPerBlock, cudaSuccess;
    case cudaDevAttrMaxBlockDimZ:
      return *value = 64, cudaSuccess;
    case cudaDevAttrMaxGridDimX:
      return *value = 0x7fffffff, cudaSuccess;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return *value = 65535, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = int(kSharedDefault), cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = 32, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = kMultiprocessors, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = kThreadsPerMultiprocessor, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = int(kSharedPerMultiprocessor), cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      return *value = 1, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = int(kSharedOptin), cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return *value = kBlocksPerMultiprocessor, cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return *value = int(kSharedReserved), cudaSuccess;
  }
  return returned(cudaErrorInvalidValue);
}
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute,
                                        int value) {
  using namespace sublimate::emulator;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > kSharedOptin) return returned(cudaErrorInvalidValue);
  std::lock_guard<std::mutex> lock(granted_mutex());
  granted_shared()[kernel] = size_t(value);
  return cudaSuccess;
}
template <class... Params>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute,
                                        int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel /*kernel*/,
                                                                 int threads, size_t shared_bytes) {
  return *blocks = sublimate::emulator::resident_blocks(threads, shared_bytes), cudaSuccess;
}

// --- memory
// ----------------------------------------------------------------------------------------
inline cudaError_t cudaMalloc(void** address, size_t bytes) {
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (posix_memalign(address, 256, bytes) != 0)
    return sublimate::emulator::returned(cudaErrorMemoryAllocation);
  sublimate::emulator::poison(*address, bytes);
  return cudaSuccess;
}
template <class T>
inline cudaError_t cudaMalloc(T** address, size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  *address = static_cast<T*>(memory);
  return error;
}
inline cudaError_t cudaFree(void* address) { return std::free(address), cudaSuccess; }
template <class T>
inline cudaError_t cudaMallocAsync(T** address, size_t bytes, cudaStream_t) {
  return cudaMalloc(address, bytes);
}
inline cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return cudaFree(address); }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes) std::memmove(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (bytes) std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  return cudaMemset(to, value, bytes);
}
template <class T>
inline cudaError_t cudaMemcpyToSymbolAsync(T& symbol, const void* from, size_t bytes,
                                           size_t offset = 0,
                                           cudaMemcpyKind = cudaMemcpyHostToDevice,
                                           cudaStream_t = nullptr) {
  using namespace sublimate::emulator;
  if (offset + bytes > sizeof symbol) return returned(cudaErrorInvalidValue);
  std::memcpy(reinterpret_cast<char*>(&symbol) + offset, from, bytes);
  return cudaSuccess;
}
template <class T>
inline cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, size_t bytes, size_t offset = 0,
                                      cudaMemcpyKind kind = cudaMemcpyHostToDevice) {
  return cudaMemcpyToSymbolAsync(symbol, from, bytes, offset, kind);
}
