// Sums of clusters, the best cluster of each node, and moves. Compiled once per instruction-set
// level (common/isa.h).

#include "multicut/leaders.h"
#include "multicut/pairs.h"
#include "multicut/state.h"

SUBLIMATE_DECLARE_MULTICUT(SUBLIMATE_ISA)

namespace sublimate::multicut {
namespace {

// --------------------------------------------------------------------------------------- contract

// Adds the members of clusters [begin, end), listed in ascending order from members[starts[c]].
template <class T>
void sum_clusters(const Contract& k, const int64_t* starts, const int64_t* members, int64_t begin,
                  int64_t end) {
  const T* x = static_cast<const T*>(k.features);
  const T* w = static_cast<const T*>(k.weights);
  for (int64_t c = begin; c < end; ++c) {
    double* sum = k.sums + c * k.dims;
    double mass = 0;
    for (int64_t p = 0; p < k.dims; ++p) sum[p] = 0;
    for (int64_t m = starts[c]; m < starts[c + 1]; ++m) {
      accumulate(sum, x + members[m] * k.dims, k.dims, 1.0);
      mass += weight(w, members[m]);
    }
    k.masses[c] = mass;
    k.counts[c] = starts[c + 1] - starts[c];
  }
}

template <class T>
int run_contract(const Contract& k) {
  Scratch<int64_t> starts(k.clusters + 2), members(k.rows);
  if (!starts || !members) return kOutOfMemory;
  // Counting sort; while members are listed, starts[c + 1] is where cluster c goes on.
  for (int64_t c = 0; c < k.clusters + 2; ++c) starts[c] = 0;
  for (int64_t i = 0; i < k.rows; ++i) {
    if (k.labels[i] < 0 || k.labels[i] >= k.clusters) return kBadArgument;
    ++starts[k.labels[i] + 2];
  }
  for (int64_t c = 1; c < k.clusters + 2; ++c) starts[c] += starts[c - 1];
  for (int64_t i = 0; i < k.rows; ++i) members[starts[k.labels[i] + 1]++] = i;
  const int64_t bounds[2] = {0, ceil_div(k.clusters, 16)};
  int64_t quantum[2];
  quanta(bounds, 1, 1, quantum);
  const int threads = useful_threads(k.exec.threads, k.rows * k.dims / 4, SCALAR_GRAIN);
  each_quantum(quantum, 1, threads, [&](int, int64_t, int64_t q) {
    sum_clusters<T>(k, starts.get(), members.get(), q * 16,
                    std::min<int64_t>(k.clusters, q * 16 + 16));
  });
  return kOk;
}

// ----------------------------------------------------------------------------------- best cluster

// Value of node i to its own cluster without it.
template <class T>
double staying(const Nodes& nodes, const Clusters& clusters, int64_t i) {
  const int64_t c = clusters.labels[i];
  if (clusters.counts[c] == 1) return 0;
  const T* x = static_cast<const T*>(nodes.features) + i * nodes.dims;
  const double w = weight(static_cast<const T*>(nodes.weights), i);
  return product(x, clusters.sums + c * nodes.dims, nodes.dims, nodes.negative) -
         product(x, x, nodes.dims, nodes.negative) - nodes.alpha * w * (clusters.masses[c] - w);
}

template <class T>
int run_best_cluster(const BestCluster& k) {
  const Nodes& nodes = k.nodes;
  const Clusters& clusters = k.clusters;
  const int64_t dims = nodes.dims;
  Scratch<T> sums(clusters.slots * dims), masses(clusters.slots);
  Scratch<int64_t> starts(nodes.instances + 1), blocks(nodes.instances + 1);
  if (!sums || !masses || !starts || !blocks) return kOutOfMemory;
  for (int64_t e = 0; e < clusters.slots * dims; ++e) sums[e] = T(clusters.sums[e]);
  for (int64_t c = 0; c < clusters.slots; ++c) masses[c] = T(clusters.masses[c]);
  const Side<T> rows_side = side_of<T>(nodes, nodes.features, nodes.weights);
  const Side<T> columns_side = side_of<T>(nodes, sums.get(), masses.get());
  quanta(clusters.offsets, nodes.instances, COLS<T>, starts.get());
  quanta(nodes.offsets, nodes.instances, BLOCK_ROWS, blocks.get());
  const int64_t inner = rows_side.inner();
  const int64_t work = pairs_of(nodes.offsets, clusters.offsets, nodes.instances) * inner;
  const int threads =
      int(std::max<int64_t>(1, std::min<int64_t>(useful_threads(k.exec.threads, work, TILE_GRAIN),
                                                 blocks[nodes.instances])));
  Scratch<T> packed(starts[nodes.instances] * inner * COLS<T>);
  Scratch<T> row_store(threads * BLOCK_ROWS * inner);
  if (!packed || !row_store) return kOutOfMemory;
  const bool tame = pack_panels(columns_side, clusters.offsets, starts.get(), nodes.instances,
                                threads, packed.get());
  const Panels<T> panels{packed.get(), clusters.offsets, starts.get(), inner, tame};

  each_quantum(blocks.get(), nodes.instances, threads, [&](int t, int64_t b, int64_t block) {
    const int64_t first = nodes.offsets[b] + block * BLOCK_ROWS, base = clusters.offsets[b];
    const int64_t count = std::min(BLOCK_ROWS, nodes.offsets[b + 1] - first);
    T* const rows = row_store.get() + t * BLOCK_ROWS * inner;
    const bool both_tame = pack_rows(rows_side, first, count, rows) && tame;
    Leaders<T> leaders[BLOCK_ROWS];
    Candidate<T> best[BLOCK_ROWS];
    alignas(64) T least[BLOCK_ROWS];
    int64_t own[BLOCK_ROWS];
    for (int64_t r = 0; r < BLOCK_ROWS; ++r) {
      leaders[r] = {best + r, 1, 1, 0, NEGATIVE_INFINITY<T>};
      least[r] = r < count ? NEGATIVE_INFINITY<T> : std::numeric_limits<T>::infinity();
      own[r] = r < count ? clusters.labels[first + r] - base : -1;
    }
    walk_all(panels, b, rows, both_tame, count, own, least, leaders);
    for (int64_t r = 0; r < count; ++r) {
      const bool there = leaders[r].count > 0;
      k.target[first + r] = there ? best[r].index + base : -1;
      static_cast<T*>(k.gain)[first + r] =
          there ? T(double(best[r].value) - staying<T>(nodes, clusters, first + r))
                : NEGATIVE_INFINITY<T>;
    }
  });
  return kOk;
}

// ------------------------------------------------------------------------------------------- moves

template <class T>
int64_t move_instance(const Move& k, int64_t b) {
  const Nodes& nodes = k.nodes;
  const Clusters& clusters = k.clusters;
  const int64_t dims = nodes.dims, end = clusters.offsets[b + 1];
  int64_t moved = 0, empty = clusters.offsets[b];  // no slot below `empty` is empty
  for (int64_t at = k.order_offsets[b]; at < k.order_offsets[b + 1]; ++at) {
    const int64_t i = k.order[at], c = clusters.labels[i];
    int64_t t = k.target[i];
    const T* x = static_cast<const T*>(nodes.features) + i * dims;
    const double w = weight(static_cast<const T*>(nodes.weights), i);
    double there = product(x, clusters.sums + t * dims, dims, nodes.negative) -
                   nodes.alpha * w * clusters.masses[t];
    if (there < 0 && clusters.counts[t] > 0) {
      while (empty < end && clusters.counts[empty] > 0) ++empty;
      if (empty == end) continue;
      t = empty, there = 0;
    }
    if (t == c || (clusters.counts[c] == 1 && clusters.counts[t] == 0)) continue;
    const double here = staying<T>(nodes, clusters, i);
    if (!(there - here > 1e-10 * (std::fabs(there) + std::fabs(here)))) continue;
    clusters.labels[i] = t;
    accumulate(clusters.sums + t * dims, x, dims, 1.0);
    clusters.masses[t] += w;
    ++clusters.counts[t];
    --clusters.counts[c];
    if (clusters.counts[c] == 0) {
      for (int64_t p = 0; p < dims; ++p) clusters.sums[c * dims + p] = 0;
      clusters.masses[c] = 0;
      empty = std::min(empty, c);
    } else {
      accumulate(clusters.sums + c * dims, x, dims, -1.0);
      clusters.masses[c] -= w;
    }
    ++moved;
  }
  return moved;
}

template <class T>
int run_move(const Move& k) {
  const int64_t bounds[2] = {0, k.nodes.instances};
  const int64_t work = k.order_offsets[k.nodes.instances] * k.nodes.dims;
  each_quantum(bounds, 1, useful_threads(k.exec.threads, work, SCALAR_GRAIN),
               [&](int, int64_t, int64_t b) { k.moved[b] = move_instance<T>(k, b); });
  return kOk;
}

}  // namespace

namespace SUBLIMATE_ISA {
int contract(const Contract& k) { SUBLIMATE_MULTICUT_RUN(run_contract, k, k.dtype); }
int best_cluster(const BestCluster& k) {
  SUBLIMATE_MULTICUT_RUN(run_best_cluster, k, k.nodes.dtype);
}
int move(const Move& k) { SUBLIMATE_MULTICUT_RUN(run_move, k, k.nodes.dtype); }
}  // namespace SUBLIMATE_ISA
}  // namespace sublimate::multicut
