// Mask paths on the CPU: points between an image and its baseline under a small mask, the gradient
// of the mask, and its penalties. Compiled once per instruction-set level (common/isa.h).

#include <cmath>

#include "path_integral/cpu.h"

namespace sublimate::path_integral::SUBLIMATE_ISA {
namespace {

constexpr int WIDE = 512;  // pixels of a row done together

// U at pixels x .. x + n of row y.
template <class A>
void upsample_row(const A* mask, int64_t y, int64_t x, int n, int64_t height, int64_t width,
                  int64_t mask_height, int64_t mask_width, A* up) {
  const Between<A> down = between<A>(y, height, mask_height);
  for (int i = 0; i < n; ++i) {
    up[i] = upsampled(mask, down, between<A>(x + i, width, mask_width), mask_width);
  }
}

template <class T>
int mask_points_as(const MaskPoints& m) {
  using A = arith_t<T>;
  const int64_t area = m.height * m.width, size = m.channels * area;
  const int64_t across = divide_up(m.width, WIDE);
  const int64_t grain = divide_up(GRAIN, std::max<int64_t>(1, m.width * m.channels * m.points));
  const auto piece = [&](int64_t n, int64_t y, int64_t x, int count) {
    alignas(64) A up[WIDE], normal[BLOCK + 64];
    upsample_row(static_cast<const A*>(m.mask) + n * m.mask_height * m.mask_width, y, x, count,
                 m.height, m.width, m.mask_height, m.mask_width, up);
    const A stdev = m.noise.stdev ? static_cast<const A*>(m.noise.stdev)[n] : A(0);
    for (int64_t c = 0; c < m.channels; ++c) {
      const int64_t at = c * area + y * m.width + x;
      const A* image = static_cast<const A*>(m.image) + n * size + at;
      const A* base = static_cast<const A*>(m.base) + (m.base_images == 1 ? 0 : n * size) + at;
      for (int64_t k = 0; k < m.points; ++k) {
        const A alpha = static_cast<const A*>(m.alpha)[k];
        T* out = static_cast<T*>(m.out) + (k * m.images + n) * size + at;
        if (m.noise.stdev) {
          draw(m.noise, m.noise.row[n] + k * m.noise.step + at, count, normal);
          for (int i = 0; i < count; ++i) {
            const A z = base[i] + alpha * up[i] * (image[i] - base[i]) + stdev * normal[i];
            out[i] = store_value<T>(z);
          }
        } else {
          for (int i = 0; i < count; ++i) {
            out[i] = store_value<T>(base[i] + alpha * up[i] * (image[i] - base[i]));
          }
        }
      }
    }
  };
  parallel_for(m.images * m.height, 1, grain, m.exec.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t s = 0; s < across; ++s) {
        const int count = int(std::min<int64_t>(WIDE, m.width - s * WIDE));
        piece(r / m.height, r % m.height, s * WIDE, count);
      }
    }
  });
  return kOk;
}

// First what arrives at each pixel of U, summed over points and channels; then, for each mask cell,
// the pixels that read it, row by row.
template <class T>
int mask_grad_as(const MaskGrad& m) {
  using A = arith_t<T>;
  const int64_t area = m.height * m.width, size = m.channels * area;
  A* const pixels = static_cast<A*>(m.pixels);
  const int64_t grain = divide_up(GRAIN, std::max<int64_t>(1, m.width * m.channels * m.points));
  parallel_for(m.images * m.height, 1, grain, m.exec.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / m.height, row = r % m.height * m.width;
      A* const to = pixels + n * area + row;
      for (int64_t left = 0; left < m.width; left += WIDE) {
        const int count = int(std::min<int64_t>(WIDE, m.width - left));
        A total[WIDE] = {};
        for (int64_t c = 0; c < m.channels; ++c) {
          const int64_t at = c * area + row + left;
          const A* image = static_cast<const A*>(m.image) + n * size + at;
          const A* base = static_cast<const A*>(m.base) + (m.base_images == 1 ? 0 : n * size) + at;
          A sum[WIDE] = {};
          for (int64_t k = 0; k < m.points; ++k) {
            const A alpha = static_cast<const A*>(m.alpha)[k];
            const T* g = static_cast<const T*>(m.grads) + (k * m.images + n) * size + at;
            for (int i = 0; i < count; ++i) sum[i] += alpha * load_value(g[i]);
          }
          for (int i = 0; i < count; ++i) total[i] += sum[i] * (image[i] - base[i]);
        }
        std::copy_n(total, count, to + left);
      }
    }
  });
  const int64_t cells = m.mask_height * m.mask_width;
  parallel_for(m.images * cells, 1, 64, m.exec.threads, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) {
      const int64_t n = cell / cells, i = cell % cells / m.mask_width, j = cell % m.mask_width;
      int64_t top, bottom, left, right;
      readers(i, m.height, m.mask_height, &top, &bottom);
      readers(j, m.width, m.mask_width, &left, &right);
      double sum = 0;
      for (int64_t y = top; y < bottom; ++y) {
        A row = A(0);
        for (int64_t x = left; x < right; ++x) {
          row += weight_of<A>(j, x, m.width, m.mask_width) * pixels[n * area + y * m.width + x];
        }
        sum += double(weight_of<A>(i, y, m.height, m.mask_height) * row);
      }
      static_cast<A*>(m.out)[cell] = A(sum);
    }
  });
  return kOk;
}

template <class A>
int mask_penalty_as(const MaskPenalty& p) {
  const int64_t h = p.height, w = p.width;
  A *const variation = static_cast<A*>(p.variation), *const area = static_cast<A*>(p.area);
  const int64_t grain = divide_up(GRAIN, h * w);
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
