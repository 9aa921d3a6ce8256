// Path integrals on CUDA. A thread owns EACH consecutive numbers of one sample and goes through the
// points with x, the start and the sums in registers, so that memory sees each point once; a warp's
// accesses are one run. Sums over a row or a mask cell are one block's, in a fixed order.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/error.h"
#include "common/launch.h"
#include "path_integral/kernels.h"
#include "path_integral/path_integral_math.h"

SUBLIMATE_DECLARE_PATH_INTEGRAL(cuda)

namespace sublimate::path_integral::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int EACH = 4;    // numbers of a thread: one counter's words where the run is aligned
constexpr int WAVES = 16;  // blocks per multiprocessor
constexpr int SPLITS = 8;  // most parts of the points of a piece, where pieces are few

template <class T>
struct alignas(sizeof(T) * EACH) Pack {
  T item[EACH];
};

template <class T, class A>
__device__ void load4(const T* base, int n, A* to) {
  if (n == EACH && reinterpret_cast<uintptr_t>(base) % (sizeof(T) * EACH) == 0) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(base);
    SUBLIMATE_GPU_UNROLL
    for (int i = 0; i < EACH; ++i) to[i] = load_value(pack.item[i]);
  } else {
    SUBLIMATE_GPU_UNROLL
    for (int i = 0; i < EACH; ++i) to[i] = i < n ? A(load_value(base[i])) : A(0);
  }
}
template <class T, class A>
__device__ void store4(const A* from, int n, T* base) {
  if (n == EACH && reinterpret_cast<uintptr_t>(base) % (sizeof(T) * EACH) == 0) {
    Pack<T> pack;
    SUBLIMATE_GPU_UNROLL
    for (int i = 0; i < EACH; ++i) pack.item[i] = store_value<T>(from[i]);
    *reinterpret_cast<Pack<T>*>(base) = pack;
  } else {
    SUBLIMATE_GPU_UNROLL
    for (int i = 0; i < EACH; ++i) {
      if (i < n) base[i] = store_value<T>(from[i]);
    }
  }
}

// The word at a position of the normal stream.
__device__ inline float normal_at(const Noise& noise, uint64_t seed, int64_t at) {
  const Philox4 r = philox_words(seed, uint64_t(at) >> 2, stream::gaussian);
  const int lane = int(at & 3);
  const uint32_t word = lane < 2 ? (lane == 0 ? r.w[0] : r.w[1]) : (lane == 2 ? r.w[2] : r.w[3]);
  return normal_of(word, noise.table);
}
// Four consecutive ones: one evaluation where they share a counter.
template <class A>
__device__ void normal4(const Noise& noise, uint64_t seed, int64_t first, A* to) {
  if ((first & 3) == 0) {
    const Philox4 r = philox_words(seed, uint64_t(first) >> 2, stream::gaussian);
    SUBLIMATE_GPU_UNROLL
    for (int i = 0; i < EACH; ++i) to[i] = A(normal_of(r.w[i], noise.table));
  } else {
    SUBLIMATE_GPU_UNROLL
    for (int i = 0; i < EACH; ++i) to[i] = A(normal_at(noise, seed, first + i));
  }
}

// Piece number -> sample and first number.
struct Pieces {
  int64_t samples, size, across;
  __device__ int64_t sample(int64_t piece) const { return piece / across; }
  __device__ int64_t first(int64_t piece) const { return piece % across * EACH; }
  __device__ int count(int64_t piece) const {
    const int64_t left = size - first(piece);
    return int(left < EACH ? left : EACH);
  }
  __device__ int64_t all() const { return samples * across; }
};
inline Pieces pieces_of(int64_t samples, int64_t size) {
  return {samples, size, ceil_div(size, EACH)};
}

// grid.y shares out the points.
template <class T>
__global__ void points_kernel(Points p, Pieces pieces) {
  using A = arith_t<T>;
  const uint64_t seed = p.noise.stdev ? uint64_t(*p.noise.seed) : 0;
  const int64_t stride = int64_t(gridDim.x) * THREADS;
  for (int64_t piece = int64_t(blockIdx.x) * THREADS + threadIdx.x; piece < pieces.all();
       piece += stride) {
    const int64_t b = pieces.sample(piece), e = pieces.first(piece);
    const int n = pieces.count(piece);
    A x[EACH], start[EACH], normal[EACH], z[EACH];
    load4(static_cast<const A*>(p.x) + b * p.size + e, n, x);
    const A stdev = p.noise.stdev ? static_cast<const A*>(p.noise.stdev)[b] : A(0);
    const bool fixed = !p.starts.index;
    if (fixed) load4(start_of<A>(p.starts, 0, b, p.samples, p.size) + e, n, start);
    for (int64_t k = blockIdx.y; k < p.points; k += gridDim.y) {
      if (!fixed) load4(start_of<A>(p.starts, k, b, p.samples, p.size) + e, n, start);
      const A alpha = weight_at<A>(p.alpha, k, b, p.samples);
      SUBLIMATE_GPU_UNROLL
      for (int i = 0; i < EACH; ++i) z[i] = start[i] + alpha * (x[i] - start[i]);
      if (p.noise.stdev) {
        normal4(p.noise, seed, p.noise.row[b] + k * p.noise.step + e, normal);
        SUBLIMATE_GPU_UNROLL
        for (int i = 0; i < EACH; ++i) z[i] += stdev * normal[i];
      }
      store4(z, n, static_cast<T*>(p.out) + (k * p.samples + b) * p.size + e);
    }
  }
}

template <class T, bool difference, bool second>
__global__ void accumulate_kernel(Accumulate a, Pieces pieces) {
  using A = arith_t<T>;
  const int64_t stride = int64_t(gridDim.x) * THREADS;
  for (int64_t piece = int64_t(blockIdx.x) * THREADS + threadIdx.x; piece < pieces.all();
       piece += stride) {
    const int64_t b = pieces.sample(piece), e = pieces.first(piece), at = b * a.size + e;
    const int n = pieces.count(piece);
    A x[EACH], start[EACH], t[EACH], sum[EACH] = {}, squares[EACH] = {};
    const bool fixed = !a.starts.index;
    if (difference) {
      load4(static_cast<const A*>(a.x) + at, n, x);
      if (fixed) load4(start_of<A>(a.starts, 0, b, a.samples, a.size) + e, n, start);
    }
    for (int64_t k = 0; k < a.points; ++k) {
      const A w = weight_at<A>(a.weight, k, b, a.samples);
      load4(static_cast<const T*>(a.grads) + k * a.samples * a.size + at, n, t);
      if (difference && !fixed) {
        load4(start_of<A>(a.starts, k, b, a.samples, a.size) + e, n, start);
      }
      SUBLIMATE_GPU_UNROLL
      for (int i = 0; i < EACH; ++i) {
        if (difference) t[i] *= x[i] - start[i];
        sum[i] += w * t[i];
        if (second) squares[i] += w * (t[i] * t[i]);
      }
    }
    if (a.acc) {
      load4(static_cast<const A*>(a.acc) + at, n, t);
      SUBLIMATE_GPU_UNROLL
      for (int i = 0; i < EACH; ++i) sum[i] = t[i] + sum[i];
    }
    store4(sum, n, static_cast<A*>(a.first) + at);
    if (!second) continue;
    if (a.square) {
      load4(static_cast<const A*>(a.square) + at, n, t);
      SUBLIMATE_GPU_UNROLL
      for (int i = 0; i < EACH; ++i) squares[i] = t[i] + squares[i];
    }
    store4(squares, n, static_cast<A*>(a.second) + at);
  }
}

template <class T>
__global__ void difference_kernel(Difference d, Pieces pieces) {
  using A = arith_t<T>;
  const int64_t stride = int64_t(gridDim.x) * THREADS;
  for (int64_t piece = int64_t(blockIdx.x) * THREADS + threadIdx.x; piece < pieces.all();
       piece += stride) {
    const int64_t b = pieces.sample(piece), e = pieces.first(piece), at = b * d.size + e;
    const int n = pieces.count(piece);
    A x[EACH], up[EACH], start[EACH], z[EACH];
    load4(static_cast<const A*>(d.x) + at, n, x);
    load4(static_cast<const A*>(d.up) + at, n, up);
    for (int64_t k = blockIdx.y; k < d.points; k += gridDim.y) {
      load4(start_of<A>(d.starts, k, b, d.samples, d.size) + e, n, start);
      const A w = weight_at<A>(d.weight, k, b, d.samples);
      SUBLIMATE_GPU_UNROLL
      for (int i = 0; i < EACH; ++i) z[i] = w * (up[i] * (x[i] - start[i]));
      store4(z, n, static_cast<T*>(d.out) + k * d.samples * d.size + at);
    }
  }
}

// The sum of `value` over the block, in thread 0; a tree of fixed shape.
__device__ inline double block_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = shared[0];
  __syncthreads();  // before the next use
  return sum;
}

// A block for each row.
template <class A>
__global__ void scale_kernel(Scale s) {
  __shared__ double shared[THREADS];
  for (int64_t b = blockIdx.x; b < s.samples; b += gridDim.x) {
    const A* x = static_cast<const A*>(s.x) + b * s.size;
    const A* base = static_cast<const A*>(s.base) + (s.base_rows == 1 ? 0 : b * s.size);
    const A* acc = static_cast<const A*>(s.acc) + b * s.size;
    A* out = static_cast<A*>(s.out) + b * s.size;
    double total = 0;
    for (int64_t e = threadIdx.x; e < s.size; e += THREADS) {
      const A y = (x[e] - base[e]) * acc[e];
      out[e] = y;
      total += double(y);
    }
    total = block_sum(total, shared);
    if (threadIdx.x == 0) static_cast<A*>(s.sums)[b] = A(total);
  }
}

// A thread for each pixel, through channels and points.
template <class T>
__global__ void mask_points_kernel(MaskPoints m) {
  using A = arith_t<T>;
  const int64_t area = m.height * m.width, size = m.channels * area;
  const uint64_t seed = m.noise.stdev ? uint64_t(*m.noise.seed) : 0;
  const int64_t stride = int64_t(gridDim.x) * THREADS;
  for (int64_t p = int64_t(blockIdx.x) * THREADS + threadIdx.x; p < m.images * area; p += stride) {
    const int64_t n = p / area, pixel = p % area, y = pixel / m.width, x = pixel % m.width;
    const A up = upsampled(static_cast<const A*>(m.mask) + n * m.mask_height * m.mask_width,
                           between<A>(y, m.height, m.mask_height),
                           between<A>(x, m.width, m.mask_width), m.mask_width);
    const A stdev = m.noise.stdev ? static_cast<const A*>(m.noise.stdev)[n] : A(0);
    for (int64_t c = 0; c < m.channels; ++c) {
      const int64_t at = c * area + pixel;
      const A image = static_cast<const A*>(m.image)[n * size + at];
      const A base = static_cast<const A*>(m.base)[(m.base_images == 1 ? 0 : n * size) + at];
      for (int64_t k = blockIdx.y; k < m.points; k += gridDim.y) {
        A z = base + static_cast<const A*>(m.alpha)[k] * up * (image - base);
        if (m.noise.stdev) {
          z += stdev * A(normal_at(m.noise, seed, m.noise.row[n] + k * m.noise.step + at));
        }
        static_cast<T*>(m.out)[(k * m.images + n) * size + at] = store_value<T>(z);
      }
    }
  }
}

template <class T>
__global__ void mask_pixels_kernel(MaskGrad m) {
  using A = arith_t<T>;
  const int64_t area = m.height * m.width, size = m.channels * area;
  const int64_t stride = int64_t(gridDim.x) * THREADS;
  for (int64_t p = int64_t(blockIdx.x) * THREADS + threadIdx.x; p < m.images * area; p += stride) {
    const int64_t n = p / area, pixel = p % area;
    A total = A(0);
    for (int64_t c = 0; c < m.channels; ++c) {
      const int64_t at = c * area + pixel;
      A sum = A(0);
      for (int64_t k = 0; k < m.points; ++k) {
        sum += static_cast<const A*>(m.alpha)[k] *
               load_value(static_cast<const T*>(m.grads)[(k * m.images + n) * size + at]);
      }
      const A base = static_cast<const A*>(m.base)[(m.base_images == 1 ? 0 : n * size) + at];
      total += sum * (static_cast<const A*>(m.image)[n * size + at] - base);
    }
    static_cast<A*>(m.pixels)[p] = total;
  }
}

// A block for each mask cell: its pixels by threads in order, then a tree.
template <class A>
__global__ void mask_cells_kernel(MaskGrad m) {
  __shared__ double shared[THREADS];
  const int64_t cells = m.mask_height * m.mask_width;
  for (int64_t cell = blockIdx.x; cell < m.images * cells; cell += gridDim.x) {
    const int64_t n = cell / cells, i = cell % cells / m.mask_width, j = cell % m.mask_width;
    int64_t top, bottom, left, right;
    readers(i, m.height, m.mask_height, &top, &bottom);
    readers(j, m.width, m.mask_width, &left, &right);
    const int64_t wide = right - left, count = (bottom - top) * wide;
    double sum = 0;
    for (int64_t p = threadIdx.x; p < count; p += THREADS) {
      const int64_t y = top + p / wide, x = left + p % wide;
      const A w =
          weight_of<A>(i, y, m.height, m.mask_height) * weight_of<A>(j, x, m.width, m.mask_width);
      sum += double(w) * double(static_cast<const A*>(m.pixels)[(n * m.height + y) * m.width + x]);
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) static_cast<A*>(m.out)[cell] = A(sum);
  }
}

// A block for each mask.
template <class A>
__global__ void mask_penalty_kernel(MaskPenalty p) {
  __shared__ double shared[THREADS];
  const int64_t h = p.height, w = p.width;
  A *const variation = static_cast<A*>(p.variation), *const area = static_cast<A*>(p.area);
  for (int64_t n = blockIdx.x; n < p.images; n += gridDim.x) {
    const A* m = static_cast<const A*>(p.mask) + n * h * w;
    if (p.grad) {
      A* const grad = static_cast<A*>(p.grad) + n * h * w;
      for (int64_t i = threadIdx.x; i < h * w; i += THREADS) {
        grad[i] = penalty_slope(m, i / w, i % w, h, w, variation[n], area[n]);
      }
      continue;
    }
    double differences = 0, away = 0;
    const double down = h > 1 ? 1.0 / double((h - 1) * w) : 0;
    const double across = w > 1 ? 1.0 / double(h * (w - 1)) : 0;
    for (int64_t i = threadIdx.x; i < h * w; i += THREADS) {
      const double at = double(m[i]);
      if (i / w > 0) differences += down * (at - double(m[i - w])) * (at - double(m[i - w]));
      if (i % w > 0) differences += across * (at - double(m[i - 1])) * (at - double(m[i - 1]));
      away += at > 1.0 ? at - 1.0 : 1.0 - at;
    }
    differences = block_sum(differences, shared);
    away = block_sum(away, shared);
    if (threadIdx.x == 0) {
      variation[n] = A(differences);
      area[n] = A(away / double(h * w));
    }
  }
}

// Calls start(blocks, splits) on the device of exec: blocks for `pieces` threads, and in how many
// parts to share out `points` so that the device is busy.
template <class Start>
int on_device(const Exec& exec, int64_t pieces, int64_t points, const Start& start) {
  const DeviceGuard guard(exec.device);
  if (guard.status()) return guard.status();
  int count = 0;
  if (const cudaError_t error = multiprocessors(&count)) return error;
  const unsigned blocks = grid_for(pieces, THREADS, int64_t(count) * WAVES);
  int64_t splits = blocks ? int64_t(count) * 4 / blocks : 1;
  splits = splits < 1 ? 1 : splits > SPLITS ? SPLITS : splits;
  if (splits > points) splits = points < 1 ? 1 : points;
  return start(blocks, unsigned(splits), static_cast<cudaStream_t>(exec.stream));
}

template <class T>
int points_as(const Points& p) {
  const Pieces pieces = pieces_of(p.samples, p.size);
  return on_device(p.exec, p.samples * pieces.across, p.points,
                   [&](unsigned blocks, unsigned splits, cudaStream_t stream) {
                     return launch(points_kernel<T>, dim3(blocks, splits), THREADS, 0, stream, p,
                                   pieces);
                   });
}

template <class T>
int accumulate_as(const Accumulate& a) {
  const Pieces pieces = pieces_of(a.samples, a.size);
  return on_device(a.exec, a.samples * pieces.across, 1,
                   [&](unsigned blocks, unsigned, cudaStream_t stream) {
                     const auto run = [&](auto kernel) {
                       return launch(kernel, blocks, THREADS, 0, stream, a, pieces);
                     };
                     if (a.x) {
                       return a.second ? run(accumulate_kernel<T, true, true>)
                                       : run(accumulate_kernel<T, true, false>);
                     }
                     return a.second ? run(accumulate_kernel<T, false, true>)
                                     : run(accumulate_kernel<T, false, false>);
                   });
}

template <class T>
int difference_as(const Difference& d) {
  const Pieces pieces = pieces_of(d.samples, d.size);
  return on_device(d.exec, d.samples * pieces.across, d.points,
                   [&](unsigned blocks, unsigned splits, cudaStream_t stream) {
                     return launch(difference_kernel<T>, dim3(blocks, splits), THREADS, 0, stream,
                                   d, pieces);
                   });
}

template <class A>
int scale_as(const Scale& s) {
  return on_device(s.exec, s.samples * THREADS, 1,
                   [&](unsigned blocks, unsigned, cudaStream_t stream) {
                     return launch(scale_kernel<A>, blocks, THREADS, 0, stream, s);
                   });
}

template <class T>
int mask_points_as(const MaskPoints& m) {
  return on_device(m.exec, m.images * m.height * m.width, m.points,
                   [&](unsigned blocks, unsigned splits, cudaStream_t stream) {
                     return launch(mask_points_kernel<T>, dim3(blocks, splits), THREADS, 0, stream,
                                   m);
                   });
}

template <class T>
int mask_grad_as(const MaskGrad& m) {
  using A = arith_t<T>;
  const int status =
      on_device(m.exec, m.images * m.height * m.width, 1,
                [&](unsigned blocks, unsigned, cudaStream_t stream) {
                  return launch(mask_pixels_kernel<T>, blocks, THREADS, 0, stream, m);
                });
  if (status) return status;
  return on_device(m.exec, m.images * m.mask_height * m.mask_width * THREADS, 1,
                   [&](unsigned blocks, unsigned, cudaStream_t stream) {
                     return launch(mask_cells_kernel<A>, blocks, THREADS, 0, stream, m);
                   });
}

template <class A>
int mask_penalty_as(const MaskPenalty& p) {
  return on_device(p.exec, p.images * THREADS, 1,
                   [&](unsigned blocks, unsigned, cudaStream_t stream) {
                     return launch(mask_penalty_kernel<A>, blocks, THREADS, 0, stream, p);
                   });
}

}  // namespace

int points(const Points& p) { SUBLIMATE_PATH_RUN(points_as, p); }
int accumulate(const Accumulate& a) { SUBLIMATE_PATH_RUN(accumulate_as, a); }
int difference(const Difference& d) { SUBLIMATE_PATH_RUN(difference_as, d); }
int scale(const Scale& s) { SUBLIMATE_PATH_RUN_WIDE(scale_as, s); }
int mask_points(const MaskPoints& m) { SUBLIMATE_PATH_RUN(mask_points_as, m); }
int mask_grad(const MaskGrad& m) { SUBLIMATE_PATH_RUN(mask_grad_as, m); }
int mask_penalty(const MaskPenalty& p) { SUBLIMATE_PATH_RUN_WIDE(mask_penalty_as, p); }

}  // namespace sublimate::path_integral::cuda
