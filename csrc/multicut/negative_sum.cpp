// The sum of all negative pairs: the trivial lower bound. Compiled once per instruction-set level
// (common/isa.h).

#include "multicut/pairs.h"
#include "multicut/state.h"

SUBLIMATE_DECLARE_MULTICUT(SUBLIMATE_ISA)

namespace sublimate::multicut {
namespace {

// Sum of min(0, s_ij) over the tile's pairs with row < column < n: lanes first, then the lanes.
template <class T>
double negative_part(const T (*values)[COLS<T>], int64_t i, int64_t j, int64_t n) {
  double sum = 0;
  for (int r = 0; r < ROWS && i + r < n; ++r)
    for (int c = 0; c < COLS<T> && j + c < n; ++c)
      // Not below zero and not NaN is left out: NaN shows in the sum.
      if (j + c > i + r && !(values[r][c] >= 0)) sum += double(values[r][c]);
  return sum;
}

// The same for a tile that lies above the diagonal and inside.
template <class T>
SUBLIMATE_HD double whole_negative_part(const Tile<T>& t) {
  const tile::Vector<T> zero{};
  tile::Vector<T> low{}, high{};
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    low += tile::larger<T>(zero, -t.sum[r][0]);  // NaN stays, as the second operand
    high += tile::larger<T>(zero, -t.sum[r][1]);
  }
  low += high;
  double sum = 0;
  for (int l = 0; l < LANES<T>; ++l) sum += double(low[l]);
  return -sum;
}

template <class T>
double block_sum(const Panels<T>& panels, int64_t instance, int64_t block, const T* rows) {
  const int64_t n = panels.columns(instance), inner = panels.inner, first = block * BLOCK_ROWS;
  const int64_t count = std::min(BLOCK_ROWS, n - first);
  double sum = 0;
  for (int64_t panel = first / COLS<T>; panel * COLS<T> < n; ++panel) {
    const int64_t j = panel * COLS<T>;
    const T* columns = panels.at(instance, panel);
    for (int64_t r = 0; r < count; r += ROWS) {
      const int64_t i = first + r;
      if (j + COLS<T> - 1 <= i) break;
      const Tile<T> t = product(rows + r * inner, columns, inner);
      if (j >= i + ROWS && j + COLS<T> <= n && r + ROWS <= count) {
        sum += whole_negative_part(t);
      } else {
        alignas(64) T values[ROWS][COLS<T>];
        spill(t, values);
        sum += negative_part(values, i, j, n);
      }
    }
  }
  return sum;
}

template <class T>
int run_negative_sum(const NegativeSum& k) {
  const Nodes& nodes = k.nodes;
  const Side<T> side = side_of<T>(nodes, nodes.features, nodes.weights);
  const int64_t inner = side.inner(), instances = nodes.instances;
  Scratch<int64_t> starts(instances + 1), blocks(instances + 1);
  if (!starts || !blocks) return kOutOfMemory;
  quanta(nodes.offsets, instances, COLS<T>, starts.get());
  quanta(nodes.offsets, instances, BLOCK_ROWS, blocks.get());
  const int64_t work = pairs_of(nodes.offsets, nodes.offsets, instances) * inner / 2;
  const int threads = int(std::max<int64_t>(
      1, std::min<int64_t>(useful_threads(k.exec.threads, work, TILE_GRAIN), blocks[instances])));
  Scratch<T> packed(starts[instances] * inner * COLS<T>), row_store(threads * BLOCK_ROWS * inner);
  Scratch<double> sums(blocks[instances]);
  if (!packed || !row_store || !sums) return kOutOfMemory;
  const bool tame =
      pack_panels(side, nodes.offsets, starts.get(), instances, threads, packed.get());
  const Panels<T> panels{packed.get(), nodes.offsets, starts.get(), inner, tame};
  each_quantum(blocks.get(), instances, threads, [&](int t, int64_t b, int64_t block) {
    T* const rows = row_store.get() + t * BLOCK_ROWS * inner;
    const int64_t first = block * BLOCK_ROWS;
    pack_rows(side, nodes.offsets[b] + first, std::min(BLOCK_ROWS, panels.columns(b) - first),
              rows);
    sums[blocks[b] + block] = block_sum(panels, b, block, rows);
  });
  for (int64_t b = 0; b < instances; ++b) {
    k.sums[b] = 0;
    for (int64_t block = blocks[b]; block < blocks[b + 1]; ++block) k.sums[b] += sums[block];
  }
  return kOk;
}

}  // namespace

namespace SUBLIMATE_ISA {
int negative_sum(const NegativeSum& k) {
  SUBLIMATE_MULTICUT_RUN(run_negative_sum, k, k.nodes.dtype);
}
}  // namespace SUBLIMATE_ISA
}  // namespace sublimate::multicut
