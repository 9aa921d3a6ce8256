// Subsampled randomized Hadamard transform: a block of rows by a few registers of columns is
// gathered with its signs into the cache, transformed there, and only the chosen rows are written.

#include "common/parallel.h"
#include "randomized_linear/butterfly.h"
#include "randomized_linear/cpu.h"

namespace sublimate::randomized_linear::SUBLIMATE_ISA {
namespace {

// Strips of one register side by side: 256 bytes of each row of the tile, 256 KiB in all.
constexpr int STRIPS = 4;

// Signs of a block's rows, and which of its transformed rows are outputs.
template <class A>
struct Block {
  A sign[SRHT_ROWS];
  uint32_t position[SRHT_ROWS], target[SRHT_ROWS];
  int chosen = 0;

  void find(const SrhtBlocks& shape, const Permutation& order, uint64_t seed, int64_t block,
            int64_t rows, int64_t k) {
    const int64_t first = block * shape.chunk;
    const int count = int(std::min(shape.chunk, rows - first));
    uint32_t word = 0;
    for (int i = 0; i < count; ++i) {
      const int64_t n = first + i;
      if (i == 0 || n % 32 == 0) word = sign_word(seed, n / 32);
      sign[i] = (word >> (n % 32)) & 1u ? A(-1) : A(1);
    }
    chosen = 0;
    const int size = int(shape.size());
    uint32_t image[INDEX_BLOCK];
    for (int at = 0; at < size; at += INDEX_BLOCK) {
      const int n = std::min(INDEX_BLOCK, size - at);
      for (int i = 0; i < n; ++i) image[i] = uint32_t(block * size + at + i);
      permute_block<true>(order, image, n);
      for (int i = 0; i < n; ++i) {
        position[chosen] = uint32_t(at + i);
        target[chosen] = image[i];
        chosen += image[i] < k;
      }
    }
  }
};

// The tile is STRIPS strips one after the other, so that rows of a pass do not share cache sets.
template <class T>
struct Tiles {
  using A = arith_t<T>;
  static constexpr int L = LANES<A>;
  const Project& p;
  const SrhtBlocks& shape;
  A scale;

  // First pass: 2^log consecutive rows at a time, with their signs; rows past the data are zero.
  template <int log>
  SUBLIMATE_HD void gather(const Block<A>& block, const T* x, int count, int columns,
                           A* tile) const {
    constexpr int group = 1 << log;
    const int size = int(shape.size());
    for (int row = 0; row < size; row += group) {
      for (int s = 0; s < STRIPS && s * L < columns; ++s) {
        const int wide = std::min(L, columns - s * L);
        const T* from = x + row * p.row_stride + s * L;
        Vector<A> v[group];
        if (row + group <= count && wide == L) {
#pragma GCC unroll 16
          for (int i = 0; i < group; ++i) {
            v[i] = block.sign[row + i] * load_lanes(from + i * p.row_stride);
          }
        } else {
          for (int i = 0; i < group; ++i) {
            v[i] = row + i < count ? block.sign[row + i] * load_some(from + i * p.row_stride, wide)
                                   : Vector<A>{};
          }
        }
        across_registers<log>(v);
        A* to = tile + (int64_t(s) * size + row) * L;
#pragma GCC unroll 16
        for (int i = 0; i < group; ++i) tile::store(to + i * L, v[i]);
      }
    }
  }

  // What is gathered after this tile.
  Ahead after(int64_t b, int64_t column) const {
    column += STRIPS * L;
    if (column >= p.columns) column = 0, ++b;
    const int64_t first = b * shape.chunk, count = std::min(shape.chunk, p.rows - first);
    return Ahead::rows(static_cast<const T*>(p.x) + first * p.row_stride + column, count,
                       std::min<int64_t>(STRIPS * L, p.columns - column), p.row_stride);
  }

  void run(const Block<A>& block, int64_t b, int64_t column, A* tile) const {
    const int64_t first = b * shape.chunk;
    const int count = int(std::min(shape.chunk, p.rows - first));
    const int columns = int(std::min<int64_t>(STRIPS * L, p.columns - column));
    const T* x = static_cast<const T*>(p.x) + first * p.row_stride + column;
    const int stages = stages_of_pass(shape.log_size);
    with_log(stages, [&](auto log) { gather<log.value>(block, x, count, columns, tile); });
    Ahead ahead = after(b, column);
    for (int s = 0; s < STRIPS && s * L < columns; ++s) {
      transform_strip(tile + s * shape.size() * L, shape.log_size, stages, ahead);
    }
    T* out = static_cast<T*>(p.out) + column;
    for (int c = 0; c < block.chosen; ++c) {
      T* to = out + int64_t(block.target[c]) * p.columns;
      const A* from = tile + int64_t(block.position[c]) * L;
      for (int s = 0; s < STRIPS && s * L < columns; ++s) {
        const Vector<A> z = scale * tile::load(from + s * shape.size() * L);
        const int wide = columns - s * L;
        if (wide >= L) {
          store_lanes(to + s * L, z);
        } else {
          store_some(to + s * L, z, wide);
        }
      }
    }
  }
};

template <class T>
int srht_as(const Project& p) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>;
  T* out = static_cast<T*>(p.out);
  if (p.rows == 0 || p.k == 0 || p.columns == 0) {
    zero_rows(out, p.columns, 0, p.k);
    return kOk;
  }
  const SrhtBlocks shape = srht_blocks(p.rows);
  zero_rows(out, p.columns, std::min(p.k, shape.transformed()), p.k);
  const uint64_t seed = uint64_t(*p.seed);
  const Permutation order = make_permutation(seed, shape.transformed());
  const Tiles<T> tiles{p, shape, A(srht_scale(shape, p.k))};
  const int64_t across = ceil_div(p.columns, STRIPS * L);
  bool failed = false;
  const int64_t grain = ceil_div(GRAIN, shape.size() * std::min<int64_t>(STRIPS * L, p.columns));
  parallel_for(shape.blocks * across, 1, grain, p.exec.threads, [&](int64_t begin, int64_t end) {
    const Scratch<A> tile(shape.size() * STRIPS * L);
    if (!tile.get()) {
#pragma omp atomic write
      failed = true;
      return;
    }
    Block<A> block;
    for (int64_t w = begin; w < end; ++w) {
      const int64_t b = w / across;
      if (w == begin || w % across == 0) block.find(shape, order, seed, b, p.rows, p.k);
      tiles.run(block, b, w % across * STRIPS * L, tile.get());
    }
  });
  return failed ? kOutOfMemory : kOk;
}

}  // namespace

int project_srht(const Project& p) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(srht_as, p); }

}  // namespace sublimate::randomized_linear::SUBLIMATE_ISA
