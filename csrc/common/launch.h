// The single door for kernel launches: nvcc's <<<>>> on a GPU, tests/cuda_emulator without one.
#pragma once

#if !defined(__CUDACC__) && !defined(SUBLIMATE_CUDA_EMULATOR)
#error "launches need nvcc, or the emulator: -DSUBLIMATE_CUDA_EMULATOR=1 -Itests/cuda_emulator"
#endif

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/ceil_div.h"
#include "common/hd.h"

// Declares `type* name`, the dynamic shared memory of the block, aligned to 16 bytes. Inside a
// kernel or a device function, any number of times: each names the same memory.
#if defined(SUBLIMATE_CUDA_EMULATOR)
#define SUBLIMATE_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::sublimate::emulator::dynamic_shared())
#else
#define SUBLIMATE_DYNAMIC_SHARED(type, name)                                      \
  extern __shared__ __align__(16) unsigned char sublimate_dynamic_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(sublimate_dynamic_shared_bytes)
#endif

namespace sublimate {

constexpr int64_t kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;
constexpr size_t kDefaultShared = 48 << 10;  // dynamic shared memory without allow_shared

// Blocks for n_items at per_block each, at most max_blocks: a kernel given fewer blocks than
// ceil_div must stride over the grid. 0 for no items, which launch() accepts.
inline unsigned grid_for(int64_t n_items, int64_t per_block, int64_t max_blocks = kMaxGridX) {
  if (n_items <= 0) return 0;
  const int64_t blocks = ceil_div(n_items, per_block);
  const int64_t limit = max_blocks < 1 ? 1 : max_blocks < kMaxGridX ? max_blocks : kMaxGridX;
  return unsigned(blocks < limit ? blocks : limit);
}

// Multiprocessors of the current device, asked once per device.
inline cudaError_t multiprocessors(int* count) {
  constexpr int kCached = 64;
  static std::atomic<int> cache[kCached];
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (device < kCached && (*count = cache[device].load(std::memory_order_relaxed)) > 0)
    return cudaSuccess;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device))
    return error;
  if (device < kCached) cache[device].store(*count, std::memory_order_relaxed);
  return cudaSuccess;
}

// Makes `device` current for the life of the guard. Check status() before launching.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ != cudaSuccess || previous_ == device) return;
    status_ = cudaSetDevice(device);
    changed_ = status_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t status_ = cudaSuccess;
};

// Lets `kernel` be launched on the current device with up to `bytes` of dynamic shared memory. Call
// it before every such launch: the grant is per kernel and device, and cheap.
template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), size_t bytes) {
  if (bytes <= kDefaultShared) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported here, not by the next launch
  return error;
}

// Most blocks of `kernel` that run at the same time on the current device: the largest grid that
// launch_cooperative accepts.
template <class... Params>
cudaError_t resident_blocks(void (*kernel)(Params...), int threads, size_t shared_bytes,
                            int* blocks) {
  int per_multiprocessor = 0, count = 0;
  if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
          &per_multiprocessor, kernel, threads, shared_bytes))
    return error;
  if (const cudaError_t error = multiprocessors(&count)) return error;
  *blocks = per_multiprocessor * count;
  return cudaSuccess;
}

#if defined(SUBLIMATE_CUDA_EMULATOR)
// A grid that remembers which line launched it, for the emulator's messages.
struct Grid {
  dim3 size;
  emulator::Site site;
  Grid(dim3 grid, emulator::Site at = emulator::Site::here()) : size(grid), site(at) {}
  template <class I, std::enable_if_t<std::is_integral<I>::value, int> = 0>
  Grid(I x, emulator::Site at = emulator::Site::here()) : size(unsigned(x)), site(at) {}
};
#else
using Grid = dim3;
#endif

namespace launching {

inline bool empty(dim3 grid) { return grid.x == 0 || grid.y == 0 || grid.z == 0; }

// Parameters are copied as the kernel declares them, then addressed one by one.
template <bool cooperative, class... Params, class... Args>
cudaError_t start(void (*kernel)(Params...), const Grid& grid, dim3 block, size_t shared_bytes,
                  cudaStream_t stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "wrong number of kernel arguments");
  static_assert((std::is_trivially_copyable<std::decay_t<Params>>::value && ...),
                "kernel parameters are copied byte by byte");
#if defined(SUBLIMATE_CUDA_EMULATOR)
  (void)stream;
  if (empty(grid.size)) return cudaSuccess;
  struct Call {
    void (*kernel)(Params...);
    std::tuple<std::decay_t<Params>...> params;
  } call{kernel, {std::forward<Args>(args)...}};
  auto entry = [](void* data) {
    Call& c = *static_cast<Call*>(data);
    std::apply(c.kernel, c.params);
  };
  return emulator::launch(reinterpret_cast<const void*>(kernel), grid.site, grid.size, block,
                          shared_bytes, cooperative, entry, &call);
#else
  if (empty(grid)) return cudaSuccess;
  if constexpr (cooperative) {
    std::tuple<std::decay_t<Params>...> params{std::forward<Args>(args)...};
    cudaError_t error = cudaSuccess;
    std::apply(
        [&](auto&... param) {
          void* pointers[] = {static_cast<void*>(&param)..., nullptr};
          error = cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block,
                                              pointers, shared_bytes, stream);
        },
        params);
    const cudaError_t last = cudaGetLastError();
    return error != cudaSuccess ? error : last;
  } else {
    kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Args>(args)...);
    return cudaGetLastError();
  }
#endif
}

}  // namespace launching

// Launches kernel(args...). An empty grid is success without a launch; an error is returned, not
// thrown. Errors of earlier asynchronous work surface here too, as CUDA reports them.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), Grid grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
  return launching::start<false>(kernel, grid, block, shared_bytes, stream,
                                 std::forward<Args>(args)...);
}

// The same for a kernel that calls cooperative_groups::this_grid().sync(): all blocks must be
// resident at once, see resident_blocks.
template <class... Params, class... Args>
cudaError_t launch_cooperative(void (*kernel)(Params...), Grid grid, dim3 block,
                               size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  return launching::start<true>(kernel, grid, block, shared_bytes, stream,
                                std::forward<Args>(args)...);
}

}  // namespace sublimate
