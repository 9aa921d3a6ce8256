// Dense sketches: a panel of S (some outputs by some rows of x) is drawn into the cache, used for
// all columns by register tiles (common/tile.h), and forgotten. S is drawn once per range of
// columns, x is packed (and widened) once per panel.
//
// Each panel's product is summed on its own and then added, so that the error grows with the square
// roots of the panel's length and the number of panels, not of their product.

#include <type_traits>

#include "common/normal.h"
#include "common/parallel.h"
#include "randomized_linear/cpu.h"

namespace sublimate::randomized_linear::SUBLIMATE_ISA {
namespace {

constexpr int INNER = 128;     // rows of x in a panel
constexpr int OUTPUTS = 192;   // rows of S^T in a panel: a multiple of tile::ROWS and of 32
constexpr int COLUMNS = 1024;  // columns for which a panel of S is drawn once

template <class A>
constexpr int STRIP = tile::COLS<A>;

// Panel of S^T: row j - first at a distance of INNER, columns n0 .. n0 + inner; `first` is a
// multiple of 32. Rows up to the next group of the generator are drawn too.
template <class A>
void draw_gaussian(const Project& p, const float* table, int64_t first, int outputs, int64_t n0,
                   int inner, A* panel) {
  uint32_t words[4][INNER];
  for (int j = 0; j < outputs; j += 4) {
    for (int i = 0; i < inner; ++i) {
      const Philox4 r = gaussian_words(uint64_t(*p.seed), n0 + i, p.k, (first + j) / 4);
      for (int w = 0; w < 4; ++w) words[w][i] = r.w[w];
    }
    for (int w = 0; w < 4; ++w) {
      A* row = panel + (j + w) * INNER;
      for (int i = 0; i < inner; ++i) row[i] = A(normal_of(words[w][i], table));
    }
  }
}

template <class A>
void draw_rademacher(const Project& p, int64_t first, int outputs, int64_t n0, int inner,
                     A* panel) {
  uint32_t words[4][INNER];
  int64_t drawn = -1;
  for (int j = 0; j < outputs; j += 32) {
    const int64_t group = (first + j) / 128;
    if (group != drawn) {
      for (int i = 0; i < inner; ++i) {
        const Philox4 r = rademacher_words(uint64_t(*p.seed), n0 + i, p.k, group);
        for (int w = 0; w < 4; ++w) words[w][i] = r.w[w];
      }
      drawn = group;
    }
    const uint32_t* word = words[(first + j) / 32 % 4];
    for (int bit = 0; bit < 32; ++bit) {
      A* row = panel + (j + bit) * INNER;
      for (int i = 0; i < inner; ++i) {
        row[i] = A(float_of(0x3f800000u | (word[i] >> bit) << 31));
      }
    }
  }
}

// inner rows of up to STRIP columns, widened, one after the other; missing columns are zero.
template <class T, class A>
SUBLIMATE_HD void pack_strip(const T* x, int64_t row_stride, int inner, int columns, A* strip) {
  constexpr int L = LANES<A>;
  for (int i = 0; i < inner; ++i) {
    const T* row = x + i * row_stride;
    A* to = strip + i * STRIP<A>;
    if (columns >= STRIP<A>) {
      tile::store(to, load_lanes(row));
      tile::store(to + L, load_lanes(row + L));
    } else {
      tile::store(to, columns >= L ? load_lanes(row) : load_some(row, columns));
      tile::store(to + L, columns > L ? load_some(row + L, columns - L) : Vector<A>{});
    }
  }
}

// Outputs [j_begin, j_end) (j_begin a multiple of 32) of columns [left, right).
template <class T>
struct Piece {
  using A = arith_t<T>;
  const Project& p;
  const float* table;
  A scale;
  A *panel, *strip, *sum;

  static constexpr int64_t panel_size = int64_t(OUTPUTS) * INNER;
  static constexpr int64_t strip_size = int64_t(INNER) * STRIP<A>;
  static constexpr int64_t sum_size = int64_t(OUTPUTS) * COLUMNS;

  void run(int64_t first, int outputs, int64_t left, int columns) const {
    const T* x = static_cast<const T*>(p.x) + left;
    const int tiles = int(ceil_div(outputs, tile::ROWS));
    const int strips = int(ceil_div(columns, STRIP<A>));
    std::fill_n(sum, int64_t(tiles) * tile::ROWS * strips * STRIP<A>, A(0));
    // Rows of the last tile past those drawn are multiplied but not used.
    std::fill_n(panel, panel_size, A(0));
    for (int64_t n0 = 0; n0 < p.rows; n0 += INNER) {
      const int inner = int(std::min<int64_t>(INNER, p.rows - n0));
      if (Sketch(p.sketch) == Sketch::gaussian) {
        draw_gaussian(p, table, first, outputs, n0, inner, panel);
      } else {
        draw_rademacher(p, first, outputs, n0, inner, panel);
      }
      for (int s = 0; s < strips; ++s) {
        const int column = s * STRIP<A>;
        pack_strip(x + n0 * p.row_stride + column, p.row_stride, inner, columns - column, strip);
        A* at = sum + int64_t(s) * tiles * tile::ROWS * STRIP<A>;
        for (int t = 0; t < tiles; ++t) add_tile(t, inner, at);
      }
    }
    for (int j = 0; j < outputs; ++j) store_row(first + j, j, tiles, left, columns);
  }

  SUBLIMATE_HD void add_tile(int t, int inner, A* at) const {
    constexpr int L = LANES<A>;
    tile::Tile<A> product;
    product.clear();
    product.add(panel + t * tile::ROWS * INNER, INNER, 1, strip, STRIP<A>, inner);
    A* to = at + t * tile::ROWS * STRIP<A>;
#pragma GCC unroll 16
    for (int r = 0; r < tile::ROWS; ++r, to += STRIP<A>) {
      tile::store(to, tile::load(to) + product.sum[r][0]);
      tile::store(to + L, tile::load(to + L) + product.sum[r][1]);
    }
  }

  void store_row(int64_t j, int row, int tiles, int64_t left, int columns) const {
    constexpr int L = LANES<A>;
    T* to = static_cast<T*>(p.out) + j * p.columns + left;
    for (int c = 0; c < columns; c += L) {
      const int64_t at = int64_t(c / STRIP<A>) * tiles * tile::ROWS + row;
      const Vector<A> y = scale * tile::load(sum + at * STRIP<A> + c % STRIP<A>);
      if (c + L <= columns) {
        store_lanes(to + c, y);
      } else {
        store_some(to + c, y, columns - c);
      }
    }
  }
};

template <class T>
int dense_as(const Project& p) {
  using A = arith_t<T>;
  if (p.rows == 0 || p.k == 0 || p.columns == 0) {
    zero_rows(static_cast<T*>(p.out), p.columns, 0, p.k);
    return kOk;
  }
  // Threads share out the outputs; where those are few, the columns too.
  const int64_t rows_of = std::min<int64_t>(p.exec.threads, ceil_div(p.k, 96));
  const int64_t across = std::min<int64_t>(std::max<int64_t>(1, p.exec.threads / rows_of),
                                           ceil_div(p.columns, STRIP<A>));
  const int64_t height = ceil_div(ceil_div(p.k, rows_of), 32) * 32;
  const int64_t panel = ceil_div(ceil_div(height, ceil_div(height, OUTPUTS)), 32) * 32;
  const int64_t width = ceil_div(ceil_div(p.columns, across), STRIP<A>) * STRIP<A>;
  const int64_t work = ceil_div(p.k, height) * ceil_div(p.columns, width);
  const int64_t grain = ceil_div(GRAIN, p.rows * height * std::min(width, p.columns) / 32 + 1);
  bool failed = false;
  parallel_for(work, 1, grain, p.exec.threads, [&](int64_t begin, int64_t end) {
    using P = Piece<T>;
    const Scratch<A> memory(P::panel_size + P::strip_size + P::sum_size);
    if (!memory.get()) {
#pragma omp atomic write
      failed = true;
      return;
    }
    A* m = memory.get();
    const P piece{p, p.normal_table,    A(dense_scale(p.k)),
                  m, m + P::panel_size, m + P::panel_size + P::strip_size};
    const int64_t ranges = ceil_div(p.columns, width);
    for (int64_t w = begin; w < end; ++w) {
      const int64_t j_end = std::min(p.k, (w / ranges + 1) * height);
      const int64_t right = std::min(p.columns, (w % ranges + 1) * width);
      for (int64_t left = w % ranges * width; left < right; left += COLUMNS) {
        for (int64_t j = w / ranges * height; j < j_end; j += panel) {
          piece.run(j, int(std::min<int64_t>(panel, j_end - j)), left,
                    int(std::min<int64_t>(COLUMNS, right - left)));
        }
      }
    }
  });
  return failed ? kOutOfMemory : kOk;
}

}  // namespace

int project_dense(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(dense_as, p); }

}  // namespace sublimate::randomized_linear::SUBLIMATE_ISA
