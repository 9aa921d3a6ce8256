// Sketches that pick and add whole rows, and the entry points. Bound by memory: x is read once, the
// indices and signs are computed in vectors, a block of rows ahead.

#include "randomized_linear/cpu.h"

#include "common/parallel.h"

namespace sublimate::randomized_linear::SUBLIMATE_ISA {
namespace {

template <class T>
SUBLIMATE_HD void scale_row(const T* x, int64_t columns, arith_t<T> scale, T* out) {
  constexpr int L = lanes_of<T>;
  int64_t c = 0;
  for (; c + L <= columns; c += L) store_lanes(out + c, scale * load_lanes(x + c));
  if (c < columns) {
    store_some(out + c, scale * load_some(x + c, int(columns - c)), int(columns - c));
  }
}

// Rows that make a piece of work worth a thread.
inline int64_t grain_rows(int64_t columns) {
  return std::max<int64_t>(1, GRAIN / std::max<int64_t>(columns, 1));
}

template <class T>
int rows_as(const Project& p) {
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.out);
  const int64_t chosen = std::min(p.k, p.rows);
  zero_rows(out, p.columns, chosen, p.k);
  if (chosen == 0 || p.columns == 0) return kOk;
  const auto scale = arith_t<T>(subset_scale(p.rows, p.k));
  const Permutation order = make_permutation(uint64_t(*p.seed), p.rows);
  const int64_t grain = std::max<int64_t>(INDEX_BLOCK, grain_rows(p.columns));
  parallel_for(chosen, INDEX_BLOCK, grain, p.exec.threads, [&](int64_t begin, int64_t end) {
    uint32_t source[INDEX_BLOCK];
    for (int64_t first = begin; first < end; first += INDEX_BLOCK) {
      const int n = int(std::min<int64_t>(INDEX_BLOCK, end - first));
      for (int i = 0; i < n; ++i) source[i] = uint32_t(first + i);
      permute_block<false>(order, source, n);
      for (int i = 0; i < n; ++i) {
        scale_row(x + source[i] * p.row_stride, p.columns, scale, out + (first + i) * p.columns);
      }
    }
  });
  return kOk;
}

template <class T>
int gather_as(const Gather& g) {
  using A = arith_t<T>;
  const T* x = static_cast<const T*>(g.x);
  const A* scale = static_cast<const A*>(g.scale);
  T* out = static_cast<T*>(g.out);
  parallel_for(g.k, 1, grain_rows(g.columns), g.exec.threads, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const T* row = x + g.index[j] * g.row_stride;
      if (scale) {
        scale_row(row, g.columns, scale[j], out + j * g.columns);
      } else {
        std::copy_n(row, g.columns, out + j * g.columns);
      }
    }
  });
  return kOk;
}

// ------------------------------------------------------------------------------------ count sketch

constexpr int SUM = 1024;  // columns summed in L1

// The rows of buckets first .. first + buckets, their t-th rows for t in [t0, t0 + terms): row
// number and sign of bucket b, term t at [t * buckets + b]. Past the last row the sign is 0.
struct Members {
  uint32_t row[INDEX_BLOCK];
  float sign[INDEX_BLOCK];

  void find(const Permutation& order, uint64_t seed, int64_t k, int64_t first, int buckets,
            int64_t t0, int terms) {
    const int n = buckets * terms;
    bool inside[INDEX_BLOCK];
    for (int t = 0; t < terms; ++t) {
      for (int b = 0; b < buckets; ++b) {
        const int64_t image = first + b + (t0 + t) * k;
        inside[t * buckets + b] = image < int64_t(order.size);
        row[t * buckets + b] = inside[t * buckets + b] ? uint32_t(image) : 0u;
      }
    }
    permute_block<true>(order, row, n);
    uint32_t words[4][INDEX_BLOCK];
    for (int i = 0; i < n; ++i) {
      const Philox4 r = philox_words(seed, row[i] >> 7, stream::sign);
      for (int w = 0; w < 4; ++w) words[w][i] = r.w[w];
    }
    for (int i = 0; i < n; ++i) {
      const uint32_t word = words[(row[i] >> 5) & 3u][i];
      sign[i] = !inside[i] ? 0.0f : (word >> (row[i] & 31u)) & 1u ? -1.0f : 1.0f;
    }
  }
};

// sum[0 .. n) += sign * x, in vectors; sum has room to the next multiple of LANES.
template <class T, class A>
SUBLIMATE_HD void add_row(const T* x, int n, A sign, A* sum) {
  constexpr int L = lanes_of<T>;
  int c = 0;
  for (; c + L <= n; c += L) tile::store(sum + c, tile::load(sum + c) + sign * load_lanes(x + c));
  if (c < n) tile::store(sum + c, tile::load(sum + c) + sign * load_some(x + c, n - c));
}

template <class T>
int countsketch_as(const Project& p) {
  using A = arith_t<T>;
  constexpr int L = lanes_of<T>;
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.out);
  const int64_t filled = std::min(p.k, p.rows);
  zero_rows(out, p.columns, filled, p.k);
  if (filled == 0 || p.columns == 0) return kOk;
  const uint64_t seed = uint64_t(*p.seed);
  const Permutation order = make_permutation(seed, p.rows);
  const int64_t terms = ceil_div(p.rows, p.k);
  const int together = int(std::max<int64_t>(1, INDEX_BLOCK / terms));  // buckets found at once
  const bool listed = terms <= INDEX_BLOCK;
  // Few buckets: threads share out the columns instead.
  const int64_t parts = filled >= 4 * p.exec.threads ? 1 : ceil_div(p.columns, SUM);
  const int64_t width = ceil_div(ceil_div(p.columns, parts), SUM) * SUM;
  const int64_t work = ceil_div(filled, together) * parts;
  const int64_t grain = ceil_div(GRAIN, together * terms * std::min(width, p.columns));
  parallel_for(work, 1, grain, p.exec.threads, [&](int64_t begin, int64_t end) {
    alignas(64) A sum[SUM];
    Members members;
    for (int64_t w = begin; w < end; ++w) {
      const int64_t first = w / parts * together;
      const int buckets = int(std::min<int64_t>(together, filled - first));
      const int64_t left = w % parts * width, right = std::min(left + width, p.columns);
      if (listed) members.find(order, seed, p.k, first, buckets, 0, int(terms));
      for (int b = 0; b < buckets; ++b) {
        for (int64_t c = left; c < right; c += SUM) {
          const int n = int(std::min<int64_t>(SUM, right - c));
          std::fill_n(sum, ceil_div(n, L) * L, A(0));
          for (int64_t t0 = 0; t0 < terms; t0 += INDEX_BLOCK) {
            const int count = int(std::min<int64_t>(INDEX_BLOCK, terms - t0));
            if (!listed) members.find(order, seed, p.k, first + b, 1, t0, count);
            for (int t = 0; t < count; ++t) {
              const int i = listed ? t * buckets + b : t;
              if (members.sign[i] == 0.0f) continue;
              add_row(x + members.row[i] * p.row_stride + c, n, A(members.sign[i]), sum);
            }
          }
          T* target = out + (first + b) * p.columns + c;
          int at = 0;
          for (; at + L <= n; at += L) store_lanes(target + at, tile::load(sum + at));
          if (at < n) store_some(target + at, tile::load(sum + at), n - at);
        }
      }
    }
  });
  return kOk;
}

}  // namespace

int project_rows(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(rows_as, p); }
int project_countsketch(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(countsketch_as, p); }
int gather(const Gather& g) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(gather_as, g); }

int project(const Project& p) {
  switch (Sketch(p.sketch)) {
    case Sketch::gaussian:
    case Sketch::rademacher:
      return project_dense(p);
    case Sketch::srht:
      return project_srht(p);
    case Sketch::countsketch:
      return project_countsketch(p);
    case Sketch::rows:
      return project_rows(p);
    default:
      return kBadArgument;  // dct, crs, wta are made of other kernels
  }
}

}  // namespace sublimate::randomized_linear::SUBLIMATE_ISA
