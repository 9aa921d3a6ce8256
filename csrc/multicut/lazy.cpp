// Greedy contraction along the edges of a nearest-neighbour graph. Compiled once per
// instruction-set level (common/isa.h).
//
// A heap of edges whose values are products of sums, so exact for every pair of clusters that some
// edge joins; neighbours of a union are those of its parts. Entries of clusters that have changed
// since are passed over.

#include "multicut/pairs.h"
#include "multicut/state.h"

SUBLIMATE_DECLARE_MULTICUT(SUBLIMATE_ISA)

namespace sublimate::multicut {
namespace {

struct Edge {
  double value;
  int32_t low, high;                  // clusters by their lowest members
  int32_t low_version, high_version;  // numbers of unions then
};

// Order of a heap whose top is the edge to contract next.
struct Later {
  bool operator()(const Edge& a, const Edge& b) const {
    if (a.value != b.value) return a.value < b.value;
    return a.low != b.low ? a.low > b.low : a.high > b.high;
  }
};

// Link of a cluster's list of neighbours: some member of the neighbour.
struct Link {
  int32_t node;
  int32_t next;
};

class Greedy {
 public:
  Greedy(const Lazy& k, int64_t b)
      : k_(k),
        first_(k.nodes.offsets[b]),
        n_(k.nodes.offsets[b + 1] - first_),
        dims_(k.nodes.dims),
        sums_(n_ * dims_),
        masses_(n_),
        parent_(n_),
        version_(n_),
        head_(n_),
        tail_(n_),
        seen_(n_),
        links_(2 * n_ * k.neighbors_per_node) {}
  ~Greedy() { std::free(heap_); }
  Greedy(const Greedy&) = delete;
  Greedy& operator=(const Greedy&) = delete;

  template <class T>
  bool run() {
    if (!sums_ || !masses_ || !parent_ || !version_ || !head_ || !tail_ || !seen_ || !links_)
      return false;
    const T* x = static_cast<const T*>(k_.nodes.features) + first_ * dims_;
    const T* w = static_cast<const T*>(k_.nodes.weights);
    for (int64_t e = 0; e < n_ * dims_; ++e) sums_[e] = double(x[e]);
    for (int32_t i = 0; i < n_; ++i) {
      masses_[i] = weight(w, first_ + i);
      parent_[i] = i;
      version_[i] = 0;
      head_[i] = tail_[i] = seen_[i] = -1;
    }
    if (!read_edges()) return false;
    while (count_ > 0) {
      std::pop_heap(heap_, heap_ + count_, Later{});
      const Edge e = heap_[--count_];
      if (parent_[e.low] != e.low || parent_[e.high] != e.high) continue;
      if (version_[e.low] != e.low_version || version_[e.high] != e.high_version) continue;
      if (!merge(e.low, e.high)) return false;
    }
    for (int32_t i = 0; i < n_; ++i) k_.labels[first_ + i] = first_ + root(i);
    return true;
  }

 private:
  int32_t root(int32_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }

  void append(int32_t cluster, int32_t node) {
    const int32_t link = int32_t(used_++);
    links_[link] = {node, -1};
    (tail_[cluster] < 0 ? head_[cluster] : links_[tail_[cluster]].next) = link;
    tail_[cluster] = link;
  }

  bool push(int32_t a, int32_t b) {
    const int32_t low = std::min(a, b), high = std::max(a, b);
    const double value =
        product(sums_.get() + low * dims_, sums_.get() + high * dims_, dims_, k_.nodes.negative) -
        k_.nodes.alpha * masses_[low] * masses_[high];
    if (!(value > 0)) return true;
    if (count_ == room_) {
      const int64_t room = std::max<int64_t>(2 * room_, 1024);
      void* more = std::realloc(heap_, size_t(room) * sizeof(Edge));
      if (!more) return false;
      heap_ = static_cast<Edge*>(more), room_ = room;
    }
    heap_[count_++] = {value, low, high, version_[low], version_[high]};
    std::push_heap(heap_, heap_ + count_, Later{});
    return true;
  }

  bool read_edges() {
    const int64_t k = k_.neighbors_per_node;
    for (int32_t i = 0; i < n_; ++i) {
      for (int64_t c = 0; c < k; ++c) {
        const int64_t row = k_.neighbors[(first_ + i) * k + c];
        if (row < 0) continue;
        const int32_t j = int32_t(row - first_);
        append(i, j);
        append(j, i);
        // An edge that both ends name is pushed twice: its second entry is stale by then.
        if (!push(i, j)) return false;
      }
    }
    return true;
  }

  // Joins cluster b to the lower a, keeps each neighbour once, and pushes its edges anew.
  bool merge(int32_t a, int32_t b) {
    accumulate(sums_.get() + a * dims_, sums_.get() + b * dims_, dims_, 1.0);
    masses_[a] += masses_[b];
    parent_[b] = a;
    ++version_[a];
    if (head_[a] < 0) {
      head_[a] = head_[b], tail_[a] = tail_[b];
    } else if (head_[b] >= 0) {
      links_[tail_[a]].next = head_[b], tail_[a] = tail_[b];
    }
    int32_t last = -1;
    for (int32_t link = head_[a]; link >= 0; link = links_[link].next) {
      const int32_t other = root(links_[link].node);
      if (other == a || seen_[other] == stamp_) continue;
      seen_[other] = stamp_;
      links_[link].node = other;
      (last < 0 ? head_[a] : links_[last].next) = link;
      last = link;
      if (!push(a, other)) return false;
    }
    ++stamp_;
    tail_[a] = last;
    (last < 0 ? head_[a] : links_[last].next) = -1;
    return true;
  }

  const Lazy& k_;
  const int64_t first_, n_, dims_;
  Scratch<double> sums_, masses_;
  Scratch<int32_t> parent_, version_, head_, tail_;
  Scratch<int32_t> seen_;  // of a cluster: the last union that has met it
  Scratch<Link> links_;
  Edge* heap_ = nullptr;
  int64_t count_ = 0, room_ = 0, used_ = 0;
  int32_t stamp_ = 0;
};

template <class T>
int run_lazy(const Lazy& k) {
  for (int64_t b = 0; b < k.nodes.instances; ++b) {
    const int64_t n = k.nodes.offsets[b + 1] - k.nodes.offsets[b];
    if (2 * n * k.neighbors_per_node > std::numeric_limits<int32_t>::max()) return kBadArgument;
  }
  const int64_t bounds[2] = {0, k.nodes.instances};
  int status = kOk;
  const int64_t work = k.nodes.rows * k.neighbors_per_node * k.nodes.dims;
  each_quantum(bounds, 1, useful_threads(k.exec.threads, work, SCALAR_GRAIN),
               [&](int, int64_t, int64_t b) {
                 Greedy greedy(k, b);
                 if (!greedy.run<T>())
                   __atomic_store_n(&status, int(kOutOfMemory), __ATOMIC_RELAXED);
               });
  return status;
}

}  // namespace

namespace SUBLIMATE_ISA {
int lazy(const Lazy& k) { SUBLIMATE_MULTICUT_RUN(run_lazy, k, k.nodes.dtype); }
}  // namespace SUBLIMATE_ISA
}  // namespace sublimate::multicut
