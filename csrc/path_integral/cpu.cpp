// Path integrals on the CPU: straight paths and the sums along them. Compiled once per
// instruction-set level (common/isa.h).
//
// Work is cut into pieces of one sample by BLOCK numbers; a piece goes through all points while x,
// the start and the sums lie in L1, so that memory sees each point once. Where the samples of a
// point do not differ in weight, index or noise, they are one long sample: rows of a few numbers
// would not fill a register (20 numbers: 8 times as fast).

#include "path_integral/cpu.h"

#include <algorithm>
#include <cmath>

namespace sublimate::path_integral::SUBLIMATE_ISA {
namespace {

template <class A>
void subtract(const A* x, const A* start, int n, A* along) {
  for (int i = 0; i < n; ++i) along[i] = x[i] - start[i];
}

// Starts of numbers e .. e + n of all samples in one row, copied to `tile` where samples share one
// that ends on the way.
template <class A>
const A* start_run(const Starts& s, int64_t samples, int64_t size, int64_t e, int n, A* tile) {
  const A* data = static_cast<const A*>(s.data);
  if (s.rows != 1 || samples == 1) return data + e;
  const int64_t first = e % size;
  if (first + n <= size) return data + first;
  int64_t at = first;
  for (int i = 0; i < n; at = 0) {
    const int m = int(std::min<int64_t>(n - i, size - at));
    for (int j = 0; j < m; ++j) tile[i + j] = data[at + j];
    i += m;
  }
  return tile;
}

template <class T>
int points_as(const Points& p) {
  using A = arith_t<T>;
  const bool stream = past_caches(p.points * p.samples * p.size * int64_t(sizeof(T)));
  if (!p.starts.index && !p.alpha.each_sample && !p.noise.stdev) {
    const int64_t total = p.samples * p.size;
    each_piece(1, total, p.points, p.exec.threads, [&](int64_t, int64_t e, int n) {
      alignas(64) A along[BLOCK + 64], tile[BLOCK + 64];
      const A* start = start_run(p.starts, p.samples, p.size, e, n, tile);
      subtract(static_cast<const A*>(p.x) + e, start, n, along);
      for (int64_t k = 0; k < p.points; ++k) {
        T* out = static_cast<T*>(p.out) + k * total + e;
        write_point<T, A>(p.noise, 0, k, e, n, weight_at<A>(p.alpha, k, 0, 1), start, along,
                          nullptr, out, stream);
      }
      end_streaming(stream);
    });
    return kOk;
  }
  each_piece(p.samples, p.size, p.points, p.exec.threads, [&](int64_t b, int64_t e, int n) {
    alignas(64) A along[BLOCK + 64], normal[BLOCK + 64];
    const A* x = static_cast<const A*>(p.x) + b * p.size + e;
    const A* before = nullptr;
    for (int64_t k = 0; k < p.points; ++k) {
      const A* start = start_of<A>(p.starts, k, b, p.samples, p.size) + e;
      if (start != before) subtract(x, start, n, along);
      before = start;
      T* out = static_cast<T*>(p.out) + (k * p.samples + b) * p.size + e;
      write_point(p.noise, b, k, e, n, weight_at<A>(p.alpha, k, b, p.samples), start, along, normal,
                  out, stream);
    }
    end_streaming(stream);
  });
  return kOk;
}

// first and second sums of BLOCK numbers, times factor and its square if there is one.
template <class T>
struct SumPiece {
  using A = arith_t<T>;
  static constexpr int L = LANES<A>;
  const Accumulate& a;

  // Adds points k .. k + U to the sums, in their order. Several at once: the sums are read and
  // written once for all, and memory has as many rows to read ahead in (four against one: 1.3 to
  // 2 times as fast, wherever the gradients lie). Two registers at once, since U sums follow one
  // another in each: half the time where the gradients lie in a cache. Without differences the
  // numbers of a pair of registers stand in its split (in_order).
  template <bool difference, bool second, int U>
  void add(int64_t k, int64_t b, int64_t e, int n, A* sum, A* squares) const {
    A w[U];
    const T* g[U];
    const A* start[U];
    for (int u = 0; u < U; ++u) {
      w[u] = weight_at<A>(a.weight, k + u, b, a.samples);
      g[u] = static_cast<const T*>(a.grads) + ((k + u) * a.samples + b) * a.size + e;
      start[u] = difference ? start_of<A>(a.starts, k + u, b, a.samples, a.size) + e : nullptr;
    }
    const A* x = difference ? static_cast<const A*>(a.x) + b * a.size + e : nullptr;
    const auto one = [&](Vector<A> t, int u, Vector<A>& first, Vector<A>& squared)
                         __attribute__((always_inline)) {
                           first = first + w[u] * t;
                           if (second) squared = squared + w[u] * (t * t);
                         };
    const auto pair = [&](int i) __attribute__((always_inline)) {
      Vector<A> first[2], squared[2] = {}, at[2] = {};
      for (int h = 0; h < 2; ++h) {
        first[h] = tile::load(sum + i + h * L);
        if (second) squared[h] = tile::load(squares + i + h * L);
        if (difference) at[h] = load_lanes(x + i + h * L);
      }
      for (int u = 0; u < U; ++u) {
        if (difference) {
          for (int h = 0; h < 2; ++h) {
            const int j = i + h * L;
            one(load_lanes(g[u] + j) * (at[h] - load_lanes(start[u] + j)), u, first[h], squared[h]);
          }
        } else {
          const LanePair<A> t = load_lane_pair(g[u] + i);
          one(t.first, u, first[0], squared[0]);
          one(t.second, u, first[1], squared[1]);
        }
      }
      for (int h = 0; h < 2; ++h) {
        tile::store(sum + i + h * L, first[h]);
        if (second) tile::store(squares + i + h * L, squared[h]);
      }
    };
    const auto lanes = [&](int i, int m) __attribute__((always_inline)) {
      Vector<A> first = tile::load(sum + i), squared{}, at{};
      if (second) squared = tile::load(squares + i);
      if (difference) at = get(x + i, m);
      for (int u = 0; u < U; ++u) {
        Vector<A> t = get(g[u] + i, m);
        if (difference) t = t * (at - get(start[u] + i, m));
        one(t, u, first, squared);
      }
      tile::store(sum + i, first);
      if (second) tile::store(squares + i, squared);
    };
    int i = 0;
    for (; i + 2 * L <= n; i += 2 * L) pair(i);
    for (; i < n; i += L) lanes(i, std::min(L, n - i));
  }

  template <bool difference, bool second>
  void run(int64_t b, int64_t e, int n, const A* factor) const {
    alignas(64) A sum[BLOCK + 64], squares[BLOCK + 64];
    std::fill_n(sum, n + L, A(0));
    if (second) std::fill_n(squares, n + L, A(0));
    int64_t k = 0;
    for (; k + 4 <= a.points; k += 4) add<difference, second, 4>(k, b, e, n, sum, squares);
    for (; k < a.points; ++k) add<difference, second, 1>(k, b, e, n, sum, squares);
    for (int i = 0; !difference && i + 2 * L <= n; i += 2 * L) {
      in_order<T>(sum + i);
      if (second) in_order<T>(squares + i);
    }
    if (factor) {
      for (int i = 0; i < n; ++i) sum[i] *= factor[i];
      if (second) {
        for (int i = 0; i < n; ++i) squares[i] *= factor[i] * factor[i];
      }
    }
    finish(sum, a.acc, a.first, b * a.size + e, n);
    if (second) finish(squares, a.square, a.second, b * a.size + e, n);
  }

  void finish(const A* sum, const void* before, void* after, int64_t at, int n) const {
    const A* from = static_cast<const A*>(before);
    A* to = static_cast<A*>(after) + at;
    for (int i = 0; i < n; ++i) to[i] = from ? from[at + i] + sum[i] : sum[i];
  }
};

// All samples as one; x - start does not depend on the point, so it multiplies the sums.
template <class T>
int accumulate_rows(const Accumulate& a) {
  using A = arith_t<T>;
  Accumulate row = a;
  row.samples = 1;
  row.size = a.samples * a.size;
  const SumPiece<T> piece{row};
  each_piece(1, row.size, a.points, a.exec.threads, [&](int64_t, int64_t e, int n) {
    alignas(64) A along[BLOCK + 64], tile[BLOCK + 64];
    if (a.x) {
      const A* start = start_run(a.starts, a.samples, a.size, e, n, tile);
      subtract(static_cast<const A*>(a.x) + e, start, n, along);
    }
    const A* factor = a.x ? along : nullptr;
    a.second ? piece.template run<false, true>(0, e, n, factor)
             : piece.template run<false, false>(0, e, n, factor);
  });
  return kOk;
}

template <class T>
int accumulate_as(const Accumulate& a) {
  if (!a.weight.each_sample && !(a.x && a.starts.index)) return accumulate_rows<T>(a);
  const SumPiece<T> piece{a};
  each_piece(a.samples, a.size, a.points, a.exec.threads, [&](int64_t b, int64_t e, int n) {
    if (a.x) {
      a.second ? piece.template run<true, true>(b, e, n, nullptr)
               : piece.template run<true, false>(b, e, n, nullptr);
    } else {
      a.second ? piece.template run<false, true>(b, e, n, nullptr)
               : piece.template run<false, false>(b, e, n, nullptr);
    }
  });
  return kOk;
}

template <class T>
int difference_as(const Difference& d) {
  using A = arith_t<T>;
  const bool stream = past_caches(d.points * d.samples * d.size * int64_t(sizeof(T)));
  each_piece(d.samples, d.size, d.points, d.exec.threads, [&](int64_t b, int64_t e, int n) {
    const A* x = static_cast<const A*>(d.x) + b * d.size + e;
    const A* up = static_cast<const A*>(d.up) + b * d.size + e;
    for (int64_t k = 0; k < d.points; ++k) {
      const A* start = start_of<A>(d.starts, k, b, d.samples, d.size) + e;
      const A w = weight_at<A>(d.weight, k, b, d.samples);
      T* out = static_cast<T*>(d.out) + (k * d.samples + b) * d.size + e;
      write_run(out, n, stream, [=](int i, int m) __attribute__((always_inline)) {
        return w * (get(up + i, m) * (get(x + i, m) - get(start + i, m)));
      });
    }
    end_streaming(stream);
  });
  return kOk;
}

// Rows are summed in double, on SUMS counters at once, which are added in their order.
template <class A>
int scale_as(const Scale& s) {
  constexpr int SUMS = 16;
  A* const sums = static_cast<A*>(s.sums);
  parallel_for(s.samples, 1, ceil_div(GRAIN, std::max<int64_t>(s.size, 1)), s.exec.threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b) {
                   const A* x = static_cast<const A*>(s.x) + b * s.size;
                   const A* base =
                       static_cast<const A*>(s.base) + (s.base_rows == 1 ? 0 : b * s.size);
                   const A* acc = static_cast<const A*>(s.acc) + b * s.size;
                   A* out = static_cast<A*>(s.out) + b * s.size;
                   double part[SUMS] = {};
                   int64_t e = 0;
                   for (; e + SUMS <= s.size; e += SUMS) {
                     A scaled[SUMS];
                     for (int i = 0; i < SUMS; ++i) {
                       scaled[i] = (x[e + i] - base[e + i]) * acc[e + i];
                     }
                     for (int i = 0; i < SUMS; ++i) part[i] += double(scaled[i]);
                     for (int i = 0; i < SUMS; ++i) out[e + i] = scaled[i];
                   }
                   for (; e < s.size; ++e) {
                     out[e] = (x[e] - base[e]) * acc[e];
                     part[e % SUMS] += double(out[e]);
                   }
                   double total = 0;
                   for (const double v : part) total += v;
                   sums[b] = A(total);
                 }
               });
  return kOk;
}

}  // namespace

int points(const Points& p) { SUBLIMATE_PATH_RUN(points_as, p); }
int accumulate(const Accumulate& a) { SUBLIMATE_PATH_RUN(accumulate_as, a); }
int difference(const Difference& d) { SUBLIMATE_PATH_RUN(difference_as, d); }
int scale(const Scale& s) { SUBLIMATE_PATH_RUN_WIDE(scale_as, s); }

}  // namespace sublimate::path_integral::SUBLIMATE_ISA
