#include "multicut/graph.h"

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "common/error.h"

namespace sublimate::multicut {
namespace {

// Cost of each present edge by its ends (lower < higher): open addressing with linear probing, and
// deletion by shifting back, so that lookups stay short however many edges have come and gone.
class EdgeTable {
 public:
  explicit EdgeTable(int64_t edges) {
    size_t size = 16;
    while (size < size_t(edges) * 2) size *= 2;
    mask_ = size - 1;
    slots_.assign(size, Slot{kEmpty, 0});
  }

  // The cost, or null.
  double* find(int64_t u, int64_t v) {
    const uint64_t key = key_of(u, v);
    for (size_t i = home(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return &slots_[i].cost;
      if (slots_[i].key == kEmpty) return nullptr;
    }
  }

  // The edge must be absent, and the number of edges at most that of construction.
  void insert(int64_t u, int64_t v, double cost) {
    const uint64_t key = key_of(u, v);
    size_t i = home(key);
    while (slots_[i].key != kEmpty) i = (i + 1) & mask_;
    slots_[i] = {key, cost};
  }

  // Removes the edge and returns its cost; it must be present.
  double take(int64_t u, int64_t v) {
    const uint64_t key = key_of(u, v);
    size_t hole = home(key);
    while (slots_[hole].key != key) hole = (hole + 1) & mask_;
    const double cost = slots_[hole].cost;
    for (size_t i = (hole + 1) & mask_; slots_[i].key != kEmpty; i = (i + 1) & mask_) {
      // An entry may move back to the hole unless its home lies cyclically in (hole, i].
      const size_t h = home(slots_[i].key);
      if (((i - h) & mask_) < ((i - hole) & mask_)) continue;
      slots_[hole] = slots_[i];
      hole = i;
    }
    slots_[hole].key = kEmpty;
    return cost;
  }

 private:
  struct Slot {
    uint64_t key;
    double cost;
  };
  static constexpr uint64_t kEmpty = ~uint64_t(0);

  static uint64_t key_of(int64_t u, int64_t v) {
    return uint64_t(std::min(u, v)) << 32 | uint64_t(std::max(u, v));
  }
  size_t home(uint64_t key) const {
    key ^= key >> 32;
    key *= 0x9E3779B97F4A7C15ull;
    return size_t(key ^ key >> 29) & mask_;
  }

  std::vector<Slot> slots_;
  size_t mask_;
};

struct Candidate {
  double cost;
  int32_t low, high;
};

// Heap order: largest cost first, then lower, then higher node.
bool after(const Candidate& a, const Candidate& b) {
  if (a.cost != b.cost) return a.cost < b.cost;
  if (a.low != b.low) return a.low > b.low;
  return a.high > b.high;
}

class Contraction {
 public:
  explicit Contraction(const GraphGaec& k)
      : k_(k), table_(k.m), neighbours_(size_t(k.nodes)), parent_(size_t(k.nodes)) {
    for (int64_t i = 0; i < k.nodes; ++i) parent_[size_t(i)] = int32_t(i);
    for (int64_t e = 0; e < k.m; ++e) {
      const int64_t u = k.edges[2 * e], v = k.edges[2 * e + 1];
      if (double* cost = table_.find(u, v)) {
        *cost += k.costs[e];
        continue;
      }
      table_.insert(u, v, k.costs[e]);
      neighbours_[size_t(u)].push_back(int32_t(v));
      neighbours_[size_t(v)].push_back(int32_t(u));
    }
    for (int64_t u = 0; u < k.nodes; ++u) {
      for (const int32_t v : neighbours_[size_t(u)]) {
        const double cost = *table_.find(u, v);
        if (u < v && cost > 0) heap_.push_back({cost, int32_t(u), v});
      }
    }
    std::make_heap(heap_.begin(), heap_.end(), after);
  }

  void run() {
    int64_t merges = 0;
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), after);
      const Candidate best = heap_.back();
      heap_.pop_back();
      // Entries are not removed when their edge changes: one that no longer tells the truth is old.
      const double* cost = table_.find(best.low, best.high);
      if (!cost || *cost != best.cost) continue;
      k_.merges[2 * merges] = best.low;
      k_.merges[2 * merges + 1] = best.high;
      k_.gains[merges++] = best.cost;
      contract(best.low, best.high);
    }
    *k_.count = merges;
    std::vector<int64_t> number(size_t(k_.nodes), -1);
    int64_t clusters = 0;
    for (int64_t i = 0; i < k_.nodes; ++i) {
      // The root is the smallest member, hence numbered before any other member comes.
      parent_[size_t(i)] = parent_[size_t(parent_[size_t(i)])];
      const size_t root = size_t(parent_[size_t(i)]);
      if (number[root] < 0) number[root] = clusters++;
      k_.labels[i] = number[root];
    }
  }

 private:
  void contract(int32_t low, int32_t high) {
    parent_[size_t(high)] = low;
    table_.take(low, high);
    for (const int32_t c : neighbours_[size_t(high)]) {
      // A list also names what has been absorbed since; c itself may be listed twice.
      if (!table_.find(high, c)) continue;
      double cost = table_.take(high, c);
      if (double* present = table_.find(low, c)) {
        cost = *present += cost;
      } else {
        table_.insert(low, c, cost);
        neighbours_[size_t(low)].push_back(c);
        neighbours_[size_t(c)].push_back(low);
      }
      if (cost > 0) {
        heap_.push_back({cost, std::min(low, c), std::max(low, c)});
        std::push_heap(heap_.begin(), heap_.end(), after);
      }
    }
    std::vector<int32_t>().swap(neighbours_[size_t(high)]);
  }

  const GraphGaec& k_;
  EdgeTable table_;
  std::vector<std::vector<int32_t>> neighbours_;
  std::vector<int32_t> parent_;  // always smaller than the child, so one step up in order suffices
  std::vector<Candidate> heap_;
};

}  // namespace

int graph_gaec(const GraphGaec& k) {
  if (k.m < 0 || k.nodes < 0 || k.nodes > std::numeric_limits<int32_t>::max()) return kBadArgument;
  try {
    Contraction(k).run();
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kOk;
}

void bind_graph(pybind11::module_& m) {
  namespace py = pybind11;
  using Address = uintptr_t;
  m.def(
      "multicut_gaec_graph",
      [](Address edges, Address costs, int64_t edge_count, int64_t nodes, Address labels,
         Address merges, Address gains, Address count, int device, Address stream, int threads) {
        return graph_gaec({reinterpret_cast<const int64_t*>(edges),
                           reinterpret_cast<const double*>(costs),
                           edge_count,
                           nodes,
                           reinterpret_cast<int64_t*>(labels),
                           reinterpret_cast<int64_t*>(merges),
                           reinterpret_cast<double*>(gains),
                           reinterpret_cast<int64_t*>(count),
                           {device, reinterpret_cast<void*>(stream), threads}});
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace sublimate::multicut
