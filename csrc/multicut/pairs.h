// Pairs of nodes tile by tile (common/tile.h): how nodes are packed so that a tile's sum is s_ij,
// and walks over all tiles of an instance. Included by per-level sources only (common/isa.h);
// everything has internal linkage.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/ceil_div.h"
#include "common/scratch.h"
#include "common/tile.h"
#include "multicut/kernels.h"

namespace sublimate::multicut {
namespace {

using tile::COLS;
using tile::LANES;
using tile::ROWS;
using tile::Tile;

template <class T>
constexpr T NEGATIVE_INFINITY = -std::numeric_limits<T>::infinity();

// Rows of a block share a walk over the columns: a multiple of a tile's rows and of the columns of
// every level, so that a block starts with a panel.
constexpr int64_t BLOCK_ROWS = 96;
static_assert(BLOCK_ROWS % ROWS == 0 && BLOCK_ROWS % COLS<float> == 0);

// One side of the product. A node is its coordinates and, if alpha is not 0, one more: sqrt |alpha|
// w, which one side carries with the sign of -alpha. So s_ij is one chain of multiply-adds with the
// same bits either way round.
template <class T>
struct Side {
  const T* features;
  const T* weights;  // or null
  int64_t dims, negative;
  T root;  // sqrt |alpha|
  bool has_alpha, alpha_positive;

  int64_t inner() const { return dims + has_alpha; }
  T last(int64_t i) const { return weights ? root * weights[i] : root; }
};

template <class T>
Side<T> side_of(const Nodes& n, const void* features, const void* weights) {
  return {static_cast<const T*>(features),
          static_cast<const T*>(weights),
          n.dims,
          n.negative,
          T(std::sqrt(std::fabs(n.alpha))),
          n.alpha != 0,
          n.alpha > 0};
}

// Beyond this magnitude products may overflow, and sums be NaN.
template <class T>
constexpr T TAME = sizeof(T) == 4 ? T(1e15) : T(1e150);

// `width` nodes side by side: packed[p * width + c] is coordinate p of node first + c; zeros past
// `count` nodes. As columns, they carry the signs. Returns whether all are of tame magnitude.
template <class T, int width, bool column>
bool pack(const Side<T>& side, int64_t first, int64_t count, T* packed) {
  const int64_t dims = side.dims, plain = column ? dims - side.negative : dims;
  bool tame = true;
  for (int c = 0; c < width; ++c) {
    if (c >= count) {
      for (int64_t p = 0; p < side.inner(); ++p) packed[p * width + c] = T(0);
      continue;
    }
    const T* x = side.features + (first + c) * dims;
    for (int64_t p = 0; p < plain; ++p) {
      packed[p * width + c] = x[p];
      tame &= std::fabs(x[p]) <= TAME<T>;
    }
    for (int64_t p = plain; p < dims; ++p) {
      packed[p * width + c] = -x[p];
      tame &= std::fabs(x[p]) <= TAME<T>;
    }
    if (side.has_alpha) {
      const T u = side.last(first + c);
      packed[dims * width + c] = column && side.alpha_positive ? -u : u;
      tame &= std::fabs(u) <= TAME<T>;
    }
  }
  return tame;
}

// The columns of all instances in panels of COLS, an instance starting a new panel.
template <class T>
struct Panels {
  const T* data;           // [panel][inner][COLS]
  const int64_t* offsets;  // (instances + 1,) in columns
  const int64_t* starts;   // (instances + 1,) first panel
  int64_t inner;
  bool tame;

  const T* at(int64_t instance, int64_t panel) const {
    return data + (starts[instance] + panel) * inner * COLS<T>;
  }
  int64_t columns(int64_t instance) const { return offsets[instance + 1] - offsets[instance]; }
};

// A thread is not worth waking for less than so many multiply-adds of tiles, or so many steps of
// scalar code: some 20 us either way. Waking costs a few, and a whole time slice of the scheduler
// where other processes keep the processors busy.
constexpr int64_t TILE_GRAIN = 1 << 20, SCALAR_GRAIN = 1 << 15;

inline int useful_threads(int threads, int64_t work, int64_t grain) {
  return int(std::max<int64_t>(1, std::min<int64_t>(threads, work / grain)));
}

// Pairs of rows and columns of the same instance.
inline int64_t pairs_of(const int64_t* rows, const int64_t* columns, int64_t instances) {
  int64_t pairs = 0;
  for (int64_t b = 0; b < instances; ++b)
    pairs += (rows[b + 1] - rows[b]) * (columns[b + 1] - columns[b]);
  return pairs;
}

// First quantum of each instance when every instance is cut in quanta of `size` items.
inline void quanta(const int64_t* offsets, int64_t instances, int64_t size, int64_t* starts) {
  starts[0] = 0;
  for (int64_t b = 0; b < instances; ++b)
    starts[b + 1] = starts[b] + ceil_div(offsets[b + 1] - offsets[b], size);
}

// The instance of a quantum at or after that of `instance`.
inline int64_t instance_of(const int64_t* starts, int64_t quantum, int64_t instance) {
  while (starts[instance + 1] <= quantum) ++instance;
  return instance;
}

// Calls body(thread, instance, quantum of the instance) for every quantum, each thread in ascending
// order, in at most `threads` threads; whoever is free takes the next.
template <class Body>
void each_quantum(const int64_t* starts, int64_t instances, int threads, const Body& body) {
  const int64_t count = starts[instances];
  if (count == 0) return;
  int64_t next = 0;
  const int useful = int(std::min<int64_t>(threads, count));
#pragma omp parallel num_threads(useful) if (useful > 1 && !omp_in_parallel())
  {
    const int thread = omp_get_thread_num();
    int64_t instance = 0;
    for (;;) {
      const int64_t quantum = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (quantum >= count) break;
      instance = instance_of(starts, quantum, instance);
      body(thread, instance, quantum - starts[instance]);
    }
  }
}

template <class T>
bool pack_panels(const Side<T>& side, const int64_t* offsets, const int64_t* starts,
                 int64_t instances, int threads, T* data) {
  bool tame = true;
  const int64_t stride = side.inner() * COLS<T>;
  each_quantum(starts, instances, threads, [&](int, int64_t b, int64_t panel) {
    const int64_t first = offsets[b] + panel * COLS<T>;
    const int64_t count = std::min<int64_t>(COLS<T>, offsets[b + 1] - first);
    if (!pack<T, COLS<T>, true>(side, first, count, data + (starts[b] + panel) * stride))
      __atomic_store_n(&tame, false, __ATOMIC_RELAXED);
  });
  return tame;
}

// Packs `count` rows from `first` in groups of ROWS: [group][inner][ROWS]. Returns whether tame.
template <class T>
bool pack_rows(const Side<T>& side, int64_t first, int64_t count, T* packed) {
  bool tame = true;
  for (int64_t r = 0; r < count; r += ROWS)
    tame &= pack<T, ROWS, false>(side, first + r, count - r, packed + r * side.inner());
  return tame;
}

// The tile of a packed group of rows and a panel.
template <class T>
SUBLIMATE_HD Tile<T> product(const T* group, const T* panel, int64_t inner) {
  Tile<T> t;
  t.clear();
  t.add(group, 1, ROWS, panel, COLS<T>, inner);
  return t;
}

template <class T>
SUBLIMATE_HD void spill(const Tile<T>& t, T (*values)[COLS<T>]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    tile::store(values[r], t.sum[r][0]);
    tile::store(values[r] + LANES<T>, t.sum[r][1]);
  }
}

// Whether candidate (a, i) goes before (b, j): larger value, NaN first, then lower index.
template <class T>
SUBLIMATE_HD bool before(T a, int64_t i, T b, int64_t j) {
  if (a > b) return true;
  if (a < b) return false;
  if (a == b) return i < j;
  const bool na = a != a, nb = b != b;
  return na && nb ? i < j : na;
}

}  // namespace
}  // namespace sublimate::multicut
