// Counts the bytes that the path-integral kernels of the CPU move between memory and a cache.
//
// The kernels are compiled with -fsanitize=thread, which calls a function at every load and store;
// instead of the sanitizer's, those functions are here, and feed a cache: lines of 64 bytes, fully
// associative, least recently used out first. A line of an array that comes in for a load counts as
// read, one that is stored to as written, each time it becomes so. Stack arrays take room in
// the cache and are not counted. Lines are not read before they are written: that is a property of
// the machine (and large outputs are written past its caches), not of the loop.
//
// Usage: byte_counts CACHE_BYTES; prints "kernel dtype moved least chunk" for each case:
// `least` is the floor, `chunk` the bytes of the points or gradients alone.

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <unordered_map>
#include <vector>

#include "path_integral/kernels.h"

SUBLIMATE_DECLARE_PATH_INTEGRAL(base)

namespace {

using namespace sublimate;
using namespace sublimate::path_integral;

constexpr uintptr_t LINE = 64;

struct Line {
  uintptr_t address;
  bool dirty, counted;
};

struct Cache {
  std::list<Line> order;  // the last used in front
  std::unordered_map<uintptr_t, std::list<Line>::iterator> at;
  std::vector<std::pair<uintptr_t, uintptr_t>> arrays;
  size_t lines = 0;
  int64_t read = 0, written = 0;
  bool on = false;

  void start() {
    order.clear();
    at.clear();
    read = written = 0;
    on = true;
  }
  bool in_array(uintptr_t a) const {
    for (const auto& [begin, end] : arrays) {
      if (a >= begin && a < end) return true;
    }
    return false;
  }
  void touch(const void* p, size_t size, bool write) {
    if (!on || !size) return;
    const uintptr_t first = reinterpret_cast<uintptr_t>(p) / LINE;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(p) + size - 1) / LINE;
    for (uintptr_t l = first; l <= last; ++l) line(l, write);
  }
  void line(uintptr_t l, bool write) {
    const auto found = at.find(l);
    if (found == at.end()) {
      order.push_front({l, false, in_array(l * LINE)});
      at[l] = order.begin();
      if (!write && order.front().counted) read += LINE;
      if (order.size() > lines) {
        at.erase(order.back().address);
        order.pop_back();
      }
    } else {
      order.splice(order.begin(), order, found->second);
    }
    Line& front = order.front();
    if (write && !front.dirty) {
      front.dirty = true;
      if (front.counted) written += LINE;
    }
  }
};
Cache cache;

}  // namespace

#define HOOKS(size)                                                                     \
  extern "C" void __tsan_read##size(void* p) { cache.touch(p, size, false); }           \
  extern "C" void __tsan_write##size(void* p) { cache.touch(p, size, true); }           \
  extern "C" void __tsan_unaligned_read##size(void* p) { cache.touch(p, size, false); } \
  extern "C" void __tsan_unaligned_write##size(void* p) { cache.touch(p, size, true); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) { cache.touch(p, n, false); }
extern "C" void __tsan_write_range(void* p, size_t n) { cache.touch(p, n, true); }
extern "C" void __tsan_vptr_read(void**) {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
// The linker sends the kernels' calls of these here (--wrap).
extern "C" void* __real_memcpy(void*, const void*, size_t);
extern "C" void* __real_memmove(void*, const void*, size_t);
extern "C" void* __real_memset(void*, int, size_t);
extern "C" void* __wrap_memcpy(void* to, const void* from, size_t n) {
  cache.touch(from, n, false);
  cache.touch(to, n, true);
  return __real_memcpy(to, from, n);
}
extern "C" void* __wrap_memmove(void* to, const void* from, size_t n) {
  cache.touch(from, n, false);
  cache.touch(to, n, true);
  return __real_memmove(to, from, n);
}
extern "C" void* __wrap_memset(void* p, int value, size_t n) {
  cache.touch(p, n, true);
  return __real_memset(p, value, n);
}

namespace {

// Zeros, on lines of their own, that the counts are about.
void* array(int64_t bytes) {
  const size_t room = (size_t(bytes) + LINE - 1) / LINE * LINE;
  void* p = std::aligned_alloc(LINE, room);
  __real_memset(p, 0, room);
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  cache.arrays.push_back({a, a + room});
  return p;
}

template <class Call>
void count(const char* kernel, DType dtype, int64_t chunk, int64_t beside, const Call& call) {
  static const char* names[] = {"float32", "float16", "bfloat16", "float64"};
  cache.start();
  const int status = call();
  cache.on = false;
  if (status != kOk) std::exit(2);
  std::printf("%s %s %" PRId64 " %" PRId64 " %" PRId64 "\n", kernel, names[int(dtype)],
              cache.read + cache.written, chunk + beside, chunk);
}

void cases(DType dtype) {
  const int type = int(dtype);
  const int64_t s = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2, a = s == 8 ? 8 : 4;
  const int64_t K = 24, B = 2, E = 6144, N = K * B * E, R = 64, row = B * E;
  const Exec exec{0, nullptr, 1};
  void *x = array(row * a), *base = array(row * a), *up = array(row * a), *refs = array(R * E * a);
  void *chunk = array(N * s), *first = array(row * a), *second = array(row * a);
  void *alpha = array(K * a), *each = array(K * B * a), *sums = array(B * a);
  auto* index = static_cast<int64_t*>(array(K * B * 8));
  for (int64_t i = 0; i < K * B; ++i) index[i] = i * 37 % R;
  void* stdev = array(B * a);
  auto *seed = static_cast<int64_t*>(array(8)), *rows = static_cast<int64_t*>(array(B * 8));
  const auto* table = static_cast<const float*>(array(2 * 65536 * 4));
  const Starts plain{base, B, nullptr}, shared{base, 1, nullptr}, gather{refs, R, index};
  const Noise none{}, noise{stdev, seed, rows, E, table};
  const Weights one{alpha, false}, all{each, true};

  // Straight paths: a point is written once, x and base are read once for all points.
  count("points", dtype, N * s, 2 * row * a,
        [&] { return base::points({type, x, plain, one, none, chunk, K, B, E, exec}); });
  count("points_shared_base", dtype, N * s, row * a + E * a,
        [&] { return base::points({type, x, shared, one, none, chunk, K, B, E, exec}); });
  count("points_each_sample", dtype, N * s, 2 * row * a,
        [&] { return base::points({type, x, plain, all, none, chunk, K, B, E, exec}); });
  // SmoothGrad's noisy batch: the noise is never stored. Its table is read where a draw falls.
  count("points_noise", dtype, N * s, row * a,
        [&] { return base::points({type, x, {x, B, nullptr}, one, noise, chunk, K, B, E, exec}); });
  // A gradient is read once, the sums are written once.
  count("sums", dtype, N * s, row * a, [&] {
    return base::accumulate(
        {type, chunk, one, nullptr, plain, nullptr, nullptr, first, nullptr, K, B, E, exec});
  });
  count("sums_and_before", dtype, N * s, 2 * row * a, [&] {
    return base::accumulate(
        {type, chunk, one, nullptr, plain, up, nullptr, first, nullptr, K, B, E, exec});
  });
  count("moments", dtype, N * s, 2 * row * a, [&] {
    return base::accumulate(
        {type, chunk, all, nullptr, plain, nullptr, nullptr, first, second, K, B, E, exec});
  });
  count("difference_sums", dtype, N * s, 3 * row * a, [&] {
    return base::accumulate(
        {type, chunk, one, x, plain, nullptr, nullptr, first, nullptr, K, B, E, exec});
  });
  // Expected gradients: a reference is read for each point, and x - reference is never stored.
  count("gathered_points", dtype, N * s, N * a + row * a,
        [&] { return base::points({type, x, gather, all, none, chunk, K, B, E, exec}); });
  count("gathered_sums", dtype, N * s, N * a + 2 * row * a, [&] {
    return base::accumulate(
        {type, chunk, all, x, gather, nullptr, nullptr, first, nullptr, K, B, E, exec});
  });
  count("gathered_difference", dtype, N * s, N * a + 2 * row * a,
        [&] { return base::difference({type, up, all, x, gather, chunk, K, B, E, exec}); });
  count("difference", dtype, N * s, 3 * row * a,
        [&] { return base::difference({type, up, one, x, plain, chunk, K, B, E, exec}); });
  // Mask paths: image and base once, the mask in the cache; its gradient passes by way of pixels.
  const int64_t P = 10, I = 1, C = 3, H = 224, W = 224, M = 28, picture = I * C * H * W;
  void *image = array(picture * a), *start = array(picture * a), *mask = array(I * M * M * a);
  void *grads = array(P * picture * s), *pixels = array(I * H * W * a);
  void* slope = array(I * M * M * a);
  count("mask_points", dtype, P * s * picture, 2 * a * picture + I * M * M * a, [&] {
    return base::mask_points(
        {type, image, start, mask, alpha, I, none, grads, P, I, C, H, W, M, M, exec});
  });
  count("mask_gradient", dtype, P * s * picture, 2 * a * picture + I * M * M * a, [&] {
    return base::mask_grad(
        {type, grads, image, start, alpha, I, pixels, slope, P, I, C, H, W, M, M, exec});
  });
  if (s < 4) return;
  count("scale", dtype, 0, 4 * row * a,
        [&] { return base::scale({type, up, x, base, B, first, sums, B, E, exec}); });
  count("mask_penalty", dtype, 0, I * M * M * a,
        [&] { return base::mask_penalty({type, mask, sums, each, nullptr, I, M, M, exec}); });
  count("mask_penalty_gradient", dtype, 0, 2 * I * M * M * a,
        [&] { return base::mask_penalty({type, mask, sums, each, slope, I, M, M, exec}); });
}

}  // namespace

int main(int count, char** values) {
  if (count != 2) return 1;
  cache.lines = size_t(std::atoll(values[1])) / LINE;
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64}) cases(dtype);
  return 0;
}
