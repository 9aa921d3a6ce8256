// The best columns of each row. Compiled once per instruction-set level (common/isa.h).
//
// A tile's values meet the best so far in registers; only when one beats them is the tile written
// down and looked at number by number. In random order that happens ln n times a row.

#include "multicut/leaders.h"
#include "multicut/pairs.h"

SUBLIMATE_DECLARE_MULTICUT(SUBLIMATE_ISA)

namespace sublimate::multicut {
namespace {

// --------------------------------------------------- best partner of each node, tiles used both
// ways

// Best so far of each node of an instance: among higher nodes (as row) or lower ones (as column).
template <class T>
struct Best {
  T* value;
  int32_t* index;  // within the instance; -1: none
};

template <class T>
void take(const Best<T>& best, int64_t at, T value, int64_t index) {
  if (value > best.value[at]) best.value[at] = value, best.index[at] = int32_t(index);
}
// The same for values that may be NaN or -inf. Indices come in ascending order.
template <class T>
void take_any(const Best<T>& best, int64_t at, T value, int64_t index) {
  const int64_t old = best.index[at] < 0 ? std::numeric_limits<int64_t>::max() : best.index[at];
  if (before(value, index, best.value[at], old))
    best.value[at] = value, best.index[at] = int32_t(index);
}

// Offers the tile of rows i.. and columns j.. to both; pairs with row < column < n count.
template <class T>
__attribute__((noinline)) void offer(const T (*values)[COLS<T>], int64_t i, int64_t j, int64_t n,
                                     const Best<T>& row, const Best<T>& column) {
  for (int r = 0; r < ROWS && i + r < n; ++r) {
    for (int h = 0; h < 2; ++h) {
      const auto v = tile::load(values[r] + h * LANES<T>);
      unsigned bits = tile::above<T>(v, tile::broadcast(row.value[r]));
      for (; bits; bits &= bits - 1) {
        const int c = h * LANES<T> + __builtin_ctz(bits);
        if (j + c > i + r && j + c < n) take(row, r, values[r][c], j + c);
      }
      bits = tile::above<T>(v, tile::load(column.value + h * LANES<T>));
      for (; bits; bits &= bits - 1) {
        const int c = h * LANES<T> + __builtin_ctz(bits);
        if (j + c > i + r && j + c < n) take(column, c, values[r][c], i + r);
      }
    }
  }
}

template <class T>
__attribute__((noinline)) void offer_any(const T (*values)[COLS<T>], int64_t i, int64_t j,
                                         int64_t n, const Best<T>& row, const Best<T>& column) {
  for (int r = 0; r < ROWS && i + r < n; ++r) {
    for (int c = 0; c < COLS<T> && j + c < n; ++c) {
      if (j + c <= i + r) continue;
      take_any(row, r, values[r][c], j + c);
      take_any(column, c, values[r][c], i + r);
    }
  }
}

// Whether a value of the tile beats its row's or its column's best.
template <class T>
SUBLIMATE_HD bool beats(const Tile<T>& t, const T* row, const T* column) {
  auto low = t.sum[0][0], high = t.sum[0][1];
  unsigned hit = tile::above<T>(tile::larger<T>(low, high), tile::broadcast(row[0]));
#pragma GCC unroll 16
  for (int r = 1; r < ROWS; ++r) {
    low = tile::larger<T>(low, t.sum[r][0]);
    high = tile::larger<T>(high, t.sum[r][1]);
    hit |= tile::above<T>(tile::larger<T>(t.sum[r][0], t.sum[r][1]), tile::broadcast(row[r]));
  }
  hit |= tile::above<T>(low, tile::load(column));
  hit |= tile::above<T>(high, tile::load(column + LANES<T>));
  return hit != 0;
}

// Row block `block` of an instance of n nodes against the columns at and after it.
template <class T>
void walk_upper(const Panels<T>& panels, int64_t instance, int64_t block, const T* rows, bool tame,
                const Best<T>& row, const Best<T>& column) {
  const int64_t n = panels.columns(instance), inner = panels.inner, first = block * BLOCK_ROWS;
  const int64_t count = std::min(BLOCK_ROWS, n - first);
  alignas(64) T values[ROWS][COLS<T>];
  for (int64_t panel = first / COLS<T>; panel * COLS<T> < n; ++panel) {
    const int64_t j = panel * COLS<T>;
    const T* columns = panels.at(instance, panel);
    const Best<T> there{column.value + j, column.index + j};
    for (int64_t r = 0; r < count; r += ROWS) {
      if (j + COLS<T> - 1 <= first + r) break;  // all at or below the diagonal, and so are the rest
      const Tile<T> t = product(rows + r * inner, columns, inner);
      const Best<T> here{row.value + r, row.index + r};
      if (__builtin_expect(tame, 1)) {
        if (__builtin_expect(!beats(t, here.value, there.value), 1)) continue;
        spill(t, values);
        offer(values, first + r, j, n, here, there);
      } else {
        spill(t, values);
        offer_any(values, first + r, j, n, here, there);
      }
    }
  }
}

template <class T>
int best_partner(const TopK& k, const Panels<T>& panels, const Side<T>& side, int most_threads) {
  const Nodes& nodes = k.nodes;
  Scratch<int64_t> blocks(nodes.instances + 1);
  if (!blocks) return kOutOfMemory;
  quanta(nodes.offsets, nodes.instances, BLOCK_ROWS, blocks.get());
  const int threads =
      int(std::min<int64_t>(most_threads, std::max<int64_t>(1, blocks[nodes.instances])));
  const int64_t padded = panels.starts[nodes.instances] * COLS<T>;
  Scratch<T> column_value(threads * padded), row_store(threads * BLOCK_ROWS * panels.inner);
  Scratch<int32_t> column_index(threads * padded);
  if (!column_value || !column_index || !row_store) return kOutOfMemory;
  T* values = static_cast<T*>(k.values);
  Scratch<char> seen(threads);
  if (!seen) return kOutOfMemory;
  for (int t = 0; t < threads; ++t) seen[t] = 0;

  each_quantum(blocks.get(), nodes.instances, threads, [&](int t, int64_t b, int64_t block) {
    T* const mine = column_value.get() + t * padded;
    int32_t* const mine_index = column_index.get() + t * padded;
    if (!seen[t]) {
      seen[t] = 1;
      for (int64_t j = 0; j < padded; ++j) mine[j] = NEGATIVE_INFINITY<T>, mine_index[j] = -1;
    }
    T* const rows = row_store.get() + t * BLOCK_ROWS * panels.inner;
    const int64_t n = panels.columns(b), first = block * BLOCK_ROWS;
    const int64_t count = std::min(BLOCK_ROWS, n - first);
    pack_rows(side, nodes.offsets[b] + first, count, rows);
    alignas(64) T best[BLOCK_ROWS];
    int32_t index[BLOCK_ROWS];
    for (int64_t r = 0; r < BLOCK_ROWS; ++r) {
      best[r] = r < count ? NEGATIVE_INFINITY<T> : std::numeric_limits<T>::infinity();
      index[r] = -1;
    }
    const int64_t start = panels.starts[b] * COLS<T>;
    walk_upper<T>(panels, b, block, rows, panels.tame, {best, index},
                  {mine + start, mine_index + start});
    for (int64_t r = 0; r < count; ++r) {
      values[nodes.offsets[b] + first + r] = best[r];
      k.indices[nodes.offsets[b] + first + r] = index[r];
    }
  });

  // What lower nodes found for a node goes before what it found itself among the higher.
  each_quantum(blocks.get(), nodes.instances, threads, [&](int, int64_t b, int64_t block) {
    const int64_t n = panels.columns(b), first = block * BLOCK_ROWS;
    for (int64_t i = first; i < std::min(n, first + BLOCK_ROWS); ++i) {
      T value = NEGATIVE_INFINITY<T>;
      int64_t index = std::numeric_limits<int64_t>::max();
      const auto consider = [&](T v, int64_t j) {
        if (j >= 0 && before(v, j, value, index)) value = v, index = j;
      };
      const int64_t at = nodes.offsets[b] + i;
      for (int t = 0; t < threads; ++t) {
        if (!seen[t]) continue;
        const int64_t slot = t * padded + panels.starts[b] * COLS<T> + i;
        consider(column_value[slot], column_index[slot]);
      }
      consider(values[at], k.indices[at]);
      const bool none = index == std::numeric_limits<int64_t>::max();
      values[at] = value;
      k.indices[at] = none ? -1 : index + nodes.offsets[b];
    }
  });
  return kOk;
}

// ------------------------------------------------------------------------- k best of other columns

template <class T>
int best_columns(const TopK& k, const Panels<T>& panels, const Side<T>& side, int most_threads) {
  const Nodes& nodes = k.nodes;
  Scratch<int64_t> blocks(nodes.instances + 1);
  if (!blocks) return kOutOfMemory;
  quanta(nodes.offsets, nodes.instances, BLOCK_ROWS, blocks.get());
  const int threads =
      int(std::min<int64_t>(most_threads, std::max<int64_t>(1, blocks[nodes.instances])));
  const int64_t room = std::max<int64_t>(2 * k.k, k.k + 16);
  Scratch<T> row_store(threads * BLOCK_ROWS * panels.inner);
  Scratch<Candidate<T>> lists(threads * BLOCK_ROWS * room);
  if (!row_store || !lists) return kOutOfMemory;

  each_quantum(blocks.get(), nodes.instances, threads, [&](int t, int64_t b, int64_t block) {
    const int64_t first = nodes.offsets[b] + block * BLOCK_ROWS, base = panels.offsets[b];
    const int64_t count = std::min(BLOCK_ROWS, nodes.offsets[b + 1] - first);
    T* const rows = row_store.get() + t * BLOCK_ROWS * panels.inner;
    const bool tame = pack_rows(side, first, count, rows) && panels.tame;
    Leaders<T> leaders[BLOCK_ROWS];
    alignas(64) T least[BLOCK_ROWS];
    int64_t skip[BLOCK_ROWS];
    for (int64_t r = 0; r < BLOCK_ROWS; ++r) {
      leaders[r] = {lists.get() + (t * BLOCK_ROWS + r) * room, k.k, room, 0, NEGATIVE_INFINITY<T>};
      least[r] = r < count ? NEGATIVE_INFINITY<T> : std::numeric_limits<T>::infinity();
      skip[r] = k.self < 0 ? -1 : k.self + first + r - base;
    }
    walk_all(panels, b, rows, tame, count, skip, least, leaders);
    for (int64_t r = 0; r < count; ++r) {
      Leaders<T>& mine = leaders[r];
      std::sort(mine.list, mine.list + mine.count, goes_before<T>);
      T* const values = static_cast<T*>(k.values) + (first + r) * k.k;
      int64_t* const indices = k.indices + (first + r) * k.k;
      for (int64_t c = 0; c < k.k; ++c) {
        const bool there = c < mine.count;
        values[c] = there ? mine.list[c].value : NEGATIVE_INFINITY<T>;
        indices[c] = there ? mine.list[c].index + base : -1;
      }
    }
  });
  return kOk;
}

template <class T>
int run_topk(const TopK& k) {
  const Nodes& nodes = k.nodes;
  const bool own = !k.other_offsets;
  const Side<T> rows = side_of<T>(nodes, nodes.features, nodes.weights);
  const Side<T> columns = own ? rows : side_of<T>(nodes, k.other, k.other_weights);
  const int64_t* offsets = own ? nodes.offsets : k.other_offsets;
  Scratch<int64_t> starts(nodes.instances + 1);
  if (!starts) return kOutOfMemory;
  quanta(offsets, nodes.instances, COLS<T>, starts.get());
  for (int64_t b = 0; b < nodes.instances; ++b)
    if (offsets[b + 1] - offsets[b] > std::numeric_limits<int32_t>::max()) return kBadArgument;
  const int64_t inner = rows.inner();
  Scratch<T> packed(starts[nodes.instances] * inner * COLS<T>);
  if (!packed) return kOutOfMemory;
  const bool half = own && k.k == 1 && k.self == 0;  // each pair once
  const int64_t work = pairs_of(nodes.offsets, offsets, nodes.instances) * inner / (half ? 2 : 1);
  const int threads = useful_threads(k.exec.threads, work, TILE_GRAIN);
  const bool tame =
      pack_panels(columns, offsets, starts.get(), nodes.instances, threads, packed.get());
  const Panels<T> panels{packed.get(), offsets, starts.get(), inner, tame};
  return half ? best_partner<T>(k, panels, rows, threads)
              : best_columns<T>(k, panels, rows, threads);
}

}  // namespace

namespace SUBLIMATE_ISA {
int topk(const TopK& k) { SUBLIMATE_MULTICUT_RUN(run_topk, k, k.nodes.dtype); }
}  // namespace SUBLIMATE_ISA
}  // namespace sublimate::multicut
