// Mask paths on the CPU: points between an image and its baseline under a small mask, the gradient
// of the mask, and its penalties. Compiled once per instruction-set level (common/isa.h).

#include <cmath>

#include "path_integral/cpu.h"

namespace sublimate::path_integral::SUBLIMATE_ISA {
namespace {

// Which columns of the mask each column of the image lies between; an integer division each, so
// once for all rows.
template <class A>
bool columns(int64_t width, int64_t mask_width, const Scratch<Between<A>>& across) {
  if (!across.get()) return false;
  for (int64_t x = 0; x < width; ++x) across.get()[x] = between<A>(x, width, mask_width);
  return true;
}

// U at pixels e .. e + n of the image, row after row.
template <class A>
void upsample(const A* mask, int64_t e, int n, int64_t height, int64_t width, int64_t mask_height,
              int64_t mask_width, const Between<A>* across, A* up) {
  int64_t y = e / width, x = e % width;
  Between<A> down = between<A>(y, height, mask_height);
  for (int i = 0; i < n; ++i) {
    up[i] = upsampled(mask, down, across[x], mask_width);
    if (++x == width) {
      x = 0;
      down = between<A>(++y, height, mask_height);
    }
  }
}

template <class T>
int mask_points_as(const MaskPoints& m) {
  using A = arith_t<T>;
  const int64_t area = m.height * m.width, size = m.channels * area;
  const Scratch<Between<A>> across(std::max<int64_t>(m.width, 1));
  if (!columns(m.width, m.mask_width, across)) return kOutOfMemory;
  const bool stream = past_caches(m.points * m.images * size * int64_t(sizeof(T)));
  each_piece(
      m.images, area, m.points * m.channels, m.exec.threads, [&](int64_t n, int64_t e, int count) {
        alignas(64) A up[BLOCK], along[BLOCK + 64], normal[BLOCK + 64];
        upsample(static_cast<const A*>(m.mask) + n * m.mask_height * m.mask_width, e, count,
                 m.height, m.width, m.mask_height, m.mask_width, across.get(), up);
        for (int64_t c = 0; c < m.channels; ++c) {
          const int64_t at = c * area + e;
          const A* image = static_cast<const A*>(m.image) + n * size + at;
          const A* base = static_cast<const A*>(m.base) + (m.base_images == 1 ? 0 : n * size) + at;
          for (int i = 0; i < count; ++i) along[i] = up[i] * (image[i] - base[i]);
          for (int64_t k = 0; k < m.points; ++k) {
            T* out = static_cast<T*>(m.out) + (k * m.images + n) * size + at;
            write_point(m.noise, n, k, at, count, static_cast<const A*>(m.alpha)[k], base, along,
                        normal, out, stream);
          }
        }
        end_streaming(stream);
      });
  return kOk;
}

// What arrives at pixels e .. e + count of U: the sum over channels of (image - base) times the
// weighted sum over points.
template <class T>
void arriving(const MaskGrad& m, int64_t n, int64_t e, int count, arith_t<T>* total) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>;
  const int64_t area = m.height * m.width, size = m.channels * area;
  alignas(64) A sum[BLOCK + 64];
  std::fill_n(total, count, A(0));
  for (int64_t c = 0; c < m.channels; ++c) {
    const int64_t at = c * area + e;
    const A* image = static_cast<const A*>(m.image) + n * size + at;
    const A* base = static_cast<const A*>(m.base) + (m.base_images == 1 ? 0 : n * size) + at;
    std::fill_n(sum, count + L, A(0));
    for (int64_t k = 0; k < m.points; ++k) {
      const A alpha = static_cast<const A*>(m.alpha)[k];
      const T* g = static_cast<const T*>(m.grads) + (k * m.images + n) * size + at;
      int i = 0;
      const T* next = k + 1 < m.points ? g + m.images * size : g;  // far away: read ahead
      for (; i + L <= count; i += L) {
        __builtin_prefetch(next + i);
        tile::store(sum + i, tile::load(sum + i) + alpha * load_lanes(g + i));
      }
      if (i < count) {
        tile::store(sum + i, tile::load(sum + i) + alpha * load_some(g + i, count - i));
      }
    }
    for (int i = 0; i < count; ++i) total[i] += sum[i] * (image[i] - base[i]);
  }
}

// Row i of the gradient of one mask: the rows of pixels that read it, weighted and summed, and then
// each of the columns given to the two of the mask that it lies between.
template <class A>
void gather_row(const MaskGrad& m, const A* pixels, int64_t i, const Between<A>* across, A* out) {
  int64_t top, bottom;
  readers(i, m.height, m.mask_height, &top, &bottom);
  std::fill_n(out, m.mask_width, A(0));
  for (int64_t left = 0; left < m.width; left += BLOCK) {
    const int count = int(std::min<int64_t>(BLOCK, m.width - left));
    A sum[BLOCK] = {};
    for (int64_t y = top; y < bottom; ++y) {
      const A weight = weight_of<A>(i, y, m.height, m.mask_height);
      const A* row = pixels + y * m.width + left;
      for (int x = 0; x < count; ++x) sum[x] += weight * row[x];
    }
    for (int x = 0; x < count; ++x) {
      const Between<A> at = across[left + x];
      out[at.low] += (A(1) - at.part) * sum[x];
      out[at.high] += at.part * sum[x];
    }
  }
}

template <class T>
int mask_grad_as(const MaskGrad& m) {
  using A = arith_t<T>;
  const int64_t area = m.height * m.width;
  A* const pixels = static_cast<A*>(m.pixels);
  const Scratch<Between<A>> across(std::max<int64_t>(m.width, 1));
  if (!columns(m.width, m.mask_width, across)) return kOutOfMemory;
  each_piece(
      m.images, area, m.points * m.channels, m.exec.threads,
      [&](int64_t n, int64_t e, int count) { arriving<T>(m, n, e, count, pixels + n * area + e); });
  const int64_t grain = ceil_div(GRAIN * m.mask_height, std::max<int64_t>(area, 1));
  parallel_for(m.images * m.mask_height, 1, grain, m.exec.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / m.mask_height;
      gather_row(m, pixels + n * area, r % m.mask_height, across.get(),
                 static_cast<A*>(m.out) + r * m.mask_width);
    }
  });
  return kOk;
}

template <class A>
int mask_penalty_as(const MaskPenalty& p) {
  const int64_t h = p.height, w = p.width;
  A *const variation = static_cast<A*>(p.variation), *const area = static_cast<A*>(p.area);
  const int64_t grain = ceil_div(GRAIN, h * w);
  parallel_for(p.images, 1, grain, p.exec.threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const A* m = static_cast<const A*>(p.mask) + n * h * w;
      if (p.grad) {
        A* const grad = static_cast<A*>(p.grad) + n * h * w;
        for (int64_t i = 0; i < h * w; ++i) {
          grad[i] = penalty_slope(m, i / w, i % w, h, w, variation[n], area[n]);
        }
        continue;
      }
      double vertical = 0, horizontal = 0, away = 0;
      for (int64_t y = 0; y < h; ++y) {
        for (int64_t x = 0; x < w; ++x) {
          const A at = m[y * w + x];
          if (y > 0) vertical += double(at - m[(y - 1) * w + x]) * double(at - m[(y - 1) * w + x]);
          if (x > 0) horizontal += double(at - m[y * w + x - 1]) * double(at - m[y * w + x - 1]);
          away += double(std::abs(A(1) - at));
        }
      }
      variation[n] = A((h > 1 ? vertical / double((h - 1) * w) : 0) +
                       (w > 1 ? horizontal / double(h * (w - 1)) : 0));
      area[n] = A(away / double(h * w));
    }
  });
  return kOk;
}

}  // namespace

int mask_points(const MaskPoints& m) { SUBLIMATE_PATH_RUN(mask_points_as, m); }
int mask_grad(const MaskGrad& m) { SUBLIMATE_PATH_RUN(mask_grad_as, m); }
int mask_penalty(const MaskPenalty& p) { SUBLIMATE_PATH_RUN_WIDE(mask_penalty_as, p); }

}  // namespace sublimate::path_integral::SUBLIMATE_ISA
