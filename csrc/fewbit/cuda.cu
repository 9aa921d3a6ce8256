// Few-bit activations on CUDA.
//
// A thread owns 8 consecutive elements: one 16-byte load of half precision (two of fp32), and one
// whole byte of each bit plane, so that packing needs no communication between lanes; a warp's
// bytes are one contiguous run. Tables sit in shared memory, at most one entry per bank for up to 5
// search steps. The function id is uniform, so its switch costs one branch per 8 elements.

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/error.h"
#include "common/launch.h"
#include "common/philox.h"
#include "fewbit/fewbit_math.h"
#include "fewbit/kernels.h"

SUBLIMATE_DECLARE_FEWBIT(cuda)

namespace sublimate::fewbit::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int EACH = 8;                // elements of a thread: one byte of a bit plane
constexpr int CHUNKS = GROUP / EACH;   // threads per group of 32
constexpr int TREE = MAX_BORDERS + 1;  // padded size of the search table
constexpr int WAVES = 32;              // blocks per multiprocessor: 8 resident, 4 waves of them

template <class A>
struct Tables {
  A border[TREE];  // ascending, padded with +inf
  A level[MAX_LEVELS];
  A value[MAX_LEVELS];
  uint8_t code[TREE];  // padded with the last code
};

// Steps of a branch-free binary search over `count` borders.
inline int search_steps(int count) {
  int steps = 0;
  while ((1 << steps) <= count) ++steps;
  return steps;
}

// T is the type whose rounding the borders take.
template <class T, class A>
__device__ void load_borders(Tables<A>& shared, const Borders& table, int steps) {
  const A* borders = static_cast<const A*>(table.borders);
  for (int i = threadIdx.x; i < (1 << steps); i += blockDim.x) {
    shared.border[i] = i < table.count ? round_to<T>(borders[i]) : A(INFINITY);
    shared.code[i] = table.codes[i < table.count ? i : table.count];
  }
}

template <class A>
__device__ void load_levels(A* shared, const void* levels, int bits) {
  for (int i = threadIdx.x; i < (1 << bits); i += blockDim.x) {
    shared[i] = static_cast<const A*>(levels)[i];
  }
}

// Number of borders s with not (x <= s), then its code. NaN passes every border, pads included.
template <class A>
__device__ uint32_t encode(A x, const Tables<A>& table, int steps) {
  int interval = 0;
  for (int step = (1 << steps) >> 1; step > 0; step >>= 1) {
    interval += x <= table.border[interval + step - 1] ? 0 : step;
  }
  return table.code[interval];
}

template <class A>
__device__ uint32_t encode_stochastic(A v, A uniform, const Tables<A>& table, int bits) {
  uint32_t lower = 0;
  const int inner = (1 << bits) - 2;
  for (int i = 1; i <= inner; ++i) lower += v < table.level[i] ? 0u : 1u;
  const A low = table.level[lower], high = table.level[lower + 1];
  return lower + (uniform * (high - low) < v - low ? 1u : 0u);
}

template <class T>
struct alignas(sizeof(T) * EACH >= 16 ? 16 : sizeof(T) * EACH) Pack {
  T item[EACH];
};

// EACH elements from index i on; elements at or past n read as 0 / are not written. `aligned`:
// the base address is a multiple of 16, which makes every chunk one or more 16-byte accesses.
template <class T, class A>
__device__ void load8(const T* base, int64_t i, int64_t n, bool aligned, A* target) {
  Pack<T> pack;
  if (aligned && i + EACH <= n) {
    pack = *reinterpret_cast<const Pack<T>*>(base + i);
  } else {
#pragma unroll
    for (int k = 0; k < EACH; ++k) pack.item[k] = i + k < n ? base[i + k] : T{};
  }
#pragma unroll
  for (int k = 0; k < EACH; ++k) target[k] = load_value(pack.item[k]);
}

template <class T, class A>
__device__ void store8(const A* source, T* base, int64_t i, int64_t n, bool aligned) {
  Pack<T> pack;
#pragma unroll
  for (int k = 0; k < EACH; ++k) pack.item[k] = store_value<T>(source[k]);
  if (aligned && i + EACH <= n) {
    *reinterpret_cast<Pack<T>*>(base + i) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      if (i + k < n) base[i + k] = pack.item[k];
    }
  }
}

// Byte of plane p that belongs to elements i .. i + 7.
__device__ inline uint8_t* plane_byte(uint32_t* packed, int64_t i, int bits, int p) {
  return reinterpret_cast<uint8_t*>(packed + i / GROUP * bits + p) + i % GROUP / EACH;
}

__device__ inline void store_codes(const uint32_t* code, uint32_t* packed, int64_t i, int bits) {
  for (int p = 0; p < bits; ++p) {
    uint32_t byte = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) byte |= ((code[k] >> p) & 1u) << k;
    *plane_byte(packed, i, bits, p) = uint8_t(byte);
  }
}

__device__ inline void load_codes(const uint32_t* packed, int64_t i, int bits, uint32_t* code) {
#pragma unroll
  for (int k = 0; k < EACH; ++k) code[k] = 0;
  for (int p = 0; p < bits; ++p) {
    const uint32_t byte = *plane_byte(const_cast<uint32_t*>(packed), i, bits, p);
#pragma unroll
    for (int k = 0; k < EACH; ++k) code[k] |= ((byte >> k) & 1u) << p;
  }
}

template <class A>
struct ValueOf {
  const A* x;
  A* y;
  A a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
#pragma unroll
    for (int k = 0; k < EACH; ++k) y[k] = value<F>(x[k], a, b);
  }
};

template <class A>
struct DerivativeOf {
  const A* x;
  A* d;
  A a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    if constexpr (!is_exact(F)) {
#pragma unroll
      for (int k = 0; k < EACH; ++k) d[k] = derivative<F>(x[k], a, b);
    }
  }
};

template <class A>
struct ExactOf {
  const A* x;
  uint32_t* code;
  A a, b;
  template <Fn F>
  SUBLIMATE_HD void run() const {
    if constexpr (is_exact(F)) {
#pragma unroll
      for (int k = 0; k < EACH; ++k) code[k] = exact_bit<F>(x[k], a, b) ? 1u : 0u;
    }
  }
};

// Chunks are handled to the end of the last group, so that its unused lanes are written as zero.
__host__ __device__ inline int64_t chunks_of(int64_t n) { return (n + GROUP - 1) / GROUP * CHUNKS; }

template <class T, bool STOCHASTIC>
__global__ void __launch_bounds__(THREADS, 1) forward_kernel(Forward f, int steps, bool aligned) {
  using A = arith_t<T>;
  __shared__ Tables<A> table;
  const bool exact = is_exact(Fn(f.fn));
  const A a = value_parameter<T>(f.fn, A(f.a)), b = A(f.b);
  const A a_bit = bit_parameter<T>(f.fn, A(f.a));
  if (f.bits > 0) {
    if (STOCHASTIC) {
      load_levels(table.level, f.levels, f.bits);
    } else if (!exact) {
      load_borders<T>(table, f.table, steps);
    }
    __syncthreads();
  }
  const uint64_t seed = STOCHASTIC ? uint64_t(*f.seed) : 0;
  const int64_t chunks = chunks_of(f.n), stride = int64_t(gridDim.x) * THREADS;
  for (int64_t c = int64_t(blockIdx.x) * THREADS + threadIdx.x; c < chunks; c += stride) {
    const int64_t i = c * EACH;
    A x[EACH], y[EACH];
    load8(static_cast<const T*>(f.x), i, f.n, aligned, x);
    if (f.y != nullptr) {
      visit(f.fn, ValueOf<A>{x, y, a, b});
      store8(y, static_cast<T*>(f.y), i, f.n, aligned);
    }
    if (f.bits == 0) continue;
    uint32_t code[EACH];
    if (STOCHASTIC) {
      visit(f.fn, DerivativeOf<A>{x, y, a, b});
#pragma unroll
      for (int k = 0; k < EACH; k += 4) {
        const Philox4 r = philox_words(seed, uint64_t(i + k) / 4);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          code[k + q] = encode_stochastic(y[k + q], A(philox_uniform(r.w[q])), table, f.bits);
        }
      }
    } else if (exact) {
      visit(f.fn, ExactOf<A>{x, code, a_bit, b});
    } else {
#pragma unroll
      for (int k = 0; k < EACH; ++k) code[k] = encode(x[k], table, steps);
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) code[k] = i + k < f.n ? code[k] : 0u;
    store_codes(code, f.packed, i, f.bits);
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS) backward_kernel(Backward f, bool aligned) {
  using A = arith_t<T>;
  __shared__ A level[MAX_LEVELS];
  load_levels(level, f.levels, f.bits);
  __syncthreads();
  const int64_t stride = int64_t(gridDim.x) * THREADS * EACH;
  for (int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * EACH; i < f.n; i += stride) {
    A g[EACH];
    uint32_t code[EACH];
    load8(static_cast<const T*>(f.grad), i, f.n, aligned, g);
    load_codes(f.packed, i, f.bits, code);
#pragma unroll
    for (int k = 0; k < EACH; ++k) g[k] *= level[code[k]];
    store8(g, static_cast<T*>(f.dx), i, f.n, aligned);
  }
}

// scale[row] of elements i .. i + 7.
__device__ inline void load_scale(const float* scale, int64_t inner, int64_t i, int64_t n,
                                  float* s) {
  int64_t row = i / inner, left = inner - i % inner;
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    s[k] = i + k < n ? scale[row] : 0.0f;
    if (--left == 0) {
      ++row;
      left = inner;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    gated_forward_kernel(GatedForward f, int steps, bool aligned) {
  using A = arith_t<T>;
  __shared__ Tables<A> table;
  if (f.bits > 0) {
    // Codes of up are found on the fp32 quotient: borders keep their own rounding.
    if (f.scale != nullptr) {
      load_borders<A>(table, f.table, steps);
    } else {
      load_borders<T>(table, f.table, steps);
    }
    __syncthreads();
  }
  const int64_t chunks = chunks_of(f.n), stride = int64_t(gridDim.x) * THREADS;
  for (int64_t c = int64_t(blockIdx.x) * THREADS + threadIdx.x; c < chunks; c += stride) {
    const int64_t i = c * EACH;
    A g[EACH], u[EACH], y[EACH];
    load8(static_cast<const T*>(f.gate), i, f.n, aligned, g);
    load8(static_cast<const T*>(f.up), i, f.n, aligned, u);
    visit_gated(f.fn, ValueOf<A>{g, y, A(0), A(0)});
#pragma unroll
    for (int k = 0; k < EACH; ++k) y[k] *= u[k];
    store8(y, static_cast<T*>(f.y), i, f.n, aligned);
    if (f.bits == 0) continue;
    if (f.scale != nullptr) {
      float s[EACH];
      load_scale(f.scale, f.inner, i, f.n, s);
#pragma unroll
      for (int k = 0; k < EACH; ++k) g[k] = s[k] == 0.0f ? A(0) : u[k] / A(s[k]);
    }
    uint32_t code[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) code[k] = i + k < f.n ? encode(g[k], table, steps) : 0u;
    store_codes(code, f.packed, i, f.bits);
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS) gated_backward_kernel(GatedBackward f, bool aligned) {
  using A = arith_t<T>;
  __shared__ A level[MAX_LEVELS], value[MAX_LEVELS];
  load_levels(level, f.levels, f.bits);
  if (f.scale == nullptr) load_levels(value, f.values, f.bits);
  __syncthreads();
  const int64_t stride = int64_t(gridDim.x) * THREADS * EACH;
  for (int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * EACH; i < f.n; i += stride) {
    A dy[EACH], kept[EACH], out[EACH];
    uint32_t code[EACH];
    load8(static_cast<const T*>(f.dy), i, f.n, aligned, dy);
    load8(static_cast<const T*>(f.kept), i, f.n, aligned, kept);
    load_codes(f.packed, i, f.bits, code);
    if (f.dgate != nullptr) {
      if (f.scale == nullptr) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) out[k] = dy[k] * kept[k] * level[code[k]];
      } else {
        float s[EACH];
        load_scale(f.scale, f.inner, i, f.n, s);
        visit_gated(f.fn, DerivativeOf<A>{kept, out, A(0), A(0)});
#pragma unroll
        for (int k = 0; k < EACH; ++k) out[k] = dy[k] * out[k] * (level[code[k]] * A(s[k]));
      }
      store8(out, static_cast<T*>(f.dgate), i, f.n, aligned);
    }
    if (f.dup != nullptr) {
      if (f.scale == nullptr) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) out[k] = dy[k] * value[code[k]];
      } else {
        visit_gated(f.fn, ValueOf<A>{kept, out, A(0), A(0)});
#pragma unroll
        for (int k = 0; k < EACH; ++k) out[k] *= dy[k];
      }
      store8(out, static_cast<T*>(f.dup), i, f.n, aligned);
    }
  }
}

template <class... P>
bool aligned16(const P*... pointers) {
  return (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

// Sets the device and launches kernel over the chunks of n elements, a grid-stride loop with enough
// blocks for several full waves.
template <class... P, class... A>
int run(void (*kernel)(P...), int64_t n, const Exec& exec, A... arguments) {
  const DeviceGuard guard(exec.device);
  if (guard.status() != cudaSuccess) return guard.status();
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  const unsigned grid = grid_for(chunks_of(n), THREADS, int64_t(processors) * WAVES);
  return launch(kernel, grid, dim3(THREADS), 0, cudaStream_t(exec.stream), arguments...);
}

template <class T>
int forward_as(const Forward& f) {
  const bool aligned = aligned16(f.x, f.y);
  const auto kernel = f.bits > 0 && f.seed ? forward_kernel<T, true> : forward_kernel<T, false>;
  return run(kernel, f.n, f.exec, f, search_steps(f.table.count), aligned);
}

template <class T>
int backward_as(const Backward& f) {
  return run(backward_kernel<T>, f.n, f.exec, f, aligned16(f.grad, f.dx));
}

template <class T>
int gated_forward_as(const GatedForward& f) {
  const bool aligned = aligned16(f.gate, f.up, f.y);
  return run(gated_forward_kernel<T>, f.n, f.exec, f, search_steps(f.table.count), aligned);
}

template <class T>
int gated_backward_as(const GatedBackward& f) {
  const bool aligned = aligned16(f.dy, f.kept, f.dgate, f.dup);
  return run(gated_backward_kernel<T>, f.n, f.exec, f, aligned);
}

}  // namespace

int forward(const Forward& k) { SUBLIMATE_FEWBIT_RUN(forward_as, k); }
int backward(const Backward& k) { SUBLIMATE_FEWBIT_RUN(backward_as, k); }
int gated_forward(const GatedForward& k) { SUBLIMATE_FEWBIT_RUN(gated_forward_as, k); }
int gated_backward(const GatedBackward& k) { SUBLIMATE_FEWBIT_RUN(gated_backward_as, k); }

}  // namespace sublimate::fewbit::cuda
