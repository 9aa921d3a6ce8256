// Kernighan-Lin chains on pairs of clusters. Compiled once per instruction-set level
// (common/isa.h).
//
// The values between the nodes of a pair are products of their features, so a chain of L moves
// takes O(L^2 d) and no n x n memory; the features of the pair are gathered with the coordinate
// outermost, so that the update after a move runs along the nodes. The rules are those of
// sublimate.multicut.reference.kernighan_lin.

#include <cstring>

#include "multicut/pairs.h"
#include "multicut/state.h"

SUBLIMATE_DECLARE_MULTICUT(SUBLIMATE_ISA)

namespace sublimate::multicut {
namespace {

constexpr int64_t STEP = 32;  // nodes updated at a time

struct Group {
  int32_t lowest = -1;  // first of a list through `next_`, ascending
  int32_t count = 0;
  bool active = true;    // changed in the last round
  bool changed = false;  // in this one
};

struct Near {
  double mean;
  int32_t other;
};

template <class T>
class Chains {
 public:
  Chains(const KernighanLin& k, int64_t b)
      : k_(k),
        first_(k.nodes.offsets[b]),
        n_(k.nodes.offsets[b + 1] - first_),
        dims_(k.nodes.dims),
        x_(static_cast<const T*>(k.nodes.features) + first_ * dims_),
        w_(k.nodes.weights ? static_cast<const T*>(k.nodes.weights) + first_ : nullptr),
        groups_(2 * n_),
        next_(n_),
        nodes_(n_),
        chain_(n_),
        sums_(2 * n_ * dims_),
        masses_(2 * n_),
        gathered_((dims_ + 1) * (n_ + STEP)),
        factors_(dims_ + 1),
        gain_(n_ + STEP),
        sign_(n_ + STEP) {}

  bool ready() const {
    return groups_ && next_ && nodes_ && chain_ && sums_ && masses_ && gathered_ && factors_ &&
           gain_ && sign_;
  }

  // Improves the instance's labels; returns by how much the objective fell, NaN if out of memory.
  double run() {
    read_labels();
    double total = 0;
    for (int64_t round = 0; round < k_.rounds; ++round) {
      const double gain = one_round();
      if (gain != gain) return gain;
      total += gain;
      drop_empty();
      if (gain == 0) break;
    }
    for (int64_t c = 0; c < count_; ++c)
      for (int32_t i = groups_[c].lowest; i >= 0; i = next_[i])
        k_.labels[first_ + i] = first_ + groups_[c].lowest;
    return total;
  }

 private:
  // Clusters in the order of their lowest members.
  void read_labels() {
    int32_t* const of = nodes_.get();    // of a label: its cluster
    int32_t* const last = chain_.get();  // of a cluster: its highest member so far
    for (int64_t i = 0; i < n_; ++i) of[i] = -1;
    for (int32_t i = 0; i < n_; ++i) {
      int32_t& c = of[k_.labels[first_ + i] - first_];
      next_[i] = -1;
      if (c < 0) {
        c = int32_t(count_++);
        groups_[c] = Group{};
        groups_[c].lowest = i;
      } else {
        next_[last[c]] = i;
      }
      last[c] = i;
      ++groups_[c].count;
    }
    for (int64_t c = 0; c < count_; ++c) sum(c);
  }

  void sum(int64_t c) {
    double* const s = sums_.get() + c * dims_;
    for (int64_t p = 0; p < dims_; ++p) s[p] = 0;
    masses_[c] = 0;
    for (int32_t i = groups_[c].lowest; i >= 0; i = next_[i]) {
      accumulate(s, x_ + i * dims_, dims_, 1.0);
      masses_[c] += weight(w_, i);
    }
  }

  double value(int64_t a, int64_t b) const {
    return product(sums_.get() + a * dims_, sums_.get() + b * dims_, dims_, k_.nodes.negative) -
           k_.nodes.alpha * masses_[a] * masses_[b];
  }

  bool lively(int64_t c) const { return groups_[c].active || groups_[c].changed; }

  double one_round() {
    const int64_t count = count_;
    const bool all = k_.neighbors == 0 || k_.neighbors >= count - 1;
    Scratch<uint8_t> near(all ? 1 : count * count);
    if (!near || (!all && !find_near(near.get()))) return std::nan("");
    double gain = 0;
    for (int64_t a = 0; a < count; ++a)
      for (int64_t b = a + 1; b < count; ++b)
        if ((lively(a) || lively(b)) && groups_[a].count && groups_[b].count &&
            (all || near[a * count + b]))
          gain += update(a, b);
    for (int64_t a = 0; a < count; ++a) {
      if (!lively(a) || groups_[a].count < 2) continue;
      groups_[count_] = Group{};
      sum(count_);
      gain += update(a, count_++);
    }
    for (int64_t c = 0; c < count_; ++c) {
      groups_[c].active = groups_[c].changed;
      groups_[c].changed = false;
    }
    return gain;
  }

  // near[a * count + b] for a < b: one is among the other's `neighbors` of largest mean value.
  bool find_near(uint8_t* near) const {
    const int64_t count = count_;
    Scratch<Near> row(count);
    if (!row) return false;
    std::memset(near, 0, size_t(count * count));
    for (int64_t a = 0; a < count; ++a) {
      int64_t others = 0;
      for (int64_t b = 0; b < count; ++b)
        if (b != a) row[others++] = {value(a, b) / (masses_[a] * masses_[b]), int32_t(b)};
      std::nth_element(
          row.get(), row.get() + k_.neighbors - 1, row.get() + others,
          [](const Near& p, const Near& q) { return before(p.mean, p.other, q.mean, q.other); });
      for (int64_t r = 0; r < k_.neighbors; ++r)
        near[std::min<int64_t>(a, row[r].other) * count + std::max<int64_t>(a, row[r].other)] = 1;
    }
    return true;
  }

  // Keeps the clusters that have members, in the order of their lowest.
  void drop_empty() {
    int64_t kept = 0;
    for (int64_t c = 0; c < count_; ++c)
      if (groups_[c].count) groups_[kept++] = groups_[c];
    count_ = kept;
    std::sort(groups_.get(), groups_.get() + kept,
              [](const Group& a, const Group& b) { return a.lowest < b.lowest; });
    for (int64_t c = 0; c < kept; ++c) sum(c);
  }

  // Coordinates of the pair's nodes and the gain of moving each to the other side.
  double gather(int64_t a, int64_t b, int64_t padded) {
    const int64_t q = dims_ - k_.nodes.negative;
    const double alpha = k_.nodes.alpha;
    double size = 0;
    int64_t t = 0;
    for (const int64_t c : {a, b}) {
      const int64_t d = c == a ? b : a;
      const double *here = sums_.get() + c * dims_, *there = sums_.get() + d * dims_;
      for (int32_t i = groups_[c].lowest; i >= 0; i = next_[i], ++t) {
        const T* x = x_ + i * dims_;
        const double w = weight(w_, i);
        for (int64_t p = 0; p < dims_; ++p) gathered_[p * padded + t] = double(x[p]);
        gathered_[dims_ * padded + t] = w;
        nodes_[t] = i;
        sign_[t] = c == a ? 1 : -1;
        gain_[t] = (product(x, there, dims_, dims_ - q) - alpha * w * masses_[d]) -
                   (product(x, here, dims_, dims_ - q) - product(x, x, dims_, dims_ - q) -
                    alpha * w * (masses_[c] - w));
        size += std::fabs(gain_[t]);
      }
    }
    for (; t < padded; ++t) {
      for (int64_t p = 0; p <= dims_; ++p) gathered_[p * padded + t] = 0;
      gain_[t] = -INFINITY;
      sign_[t] = 0;
    }
    return size;
  }

  // The free node of largest gain, the first of equals.
  int64_t best_node(int64_t padded) const {
    Eight best = eight(gain_.get());
    for (int64_t t = 8; t < padded; t += 8) {
      const Eight g = eight(gain_.get() + t);
      best = g > best ? g : best;
    }
    double value = best[0];
    for (int l = 1; l < 8; ++l) value = best[l] > value ? best[l] : value;
    int64_t t = 0;
    while (gain_[t] < value) ++t;
    return t;
  }

  // Moves node u: what it is worth to each other node now counts for the other side.
  void flip(int64_t u, int64_t padded) {
    const int64_t plain = dims_ - k_.nodes.negative;
    const double scale = 2 * sign_[u];
    for (int64_t p = 0; p < dims_; ++p)
      factors_[p] = (p < plain ? scale : -scale) * gathered_[p * padded + u];
    factors_[dims_] = -k_.nodes.alpha * scale * gathered_[dims_ * padded + u];
    sign_[u] = -sign_[u];
    gain_[u] = -INFINITY;  // taken: whatever is added, it stays
    for (int64_t t = 0; t < padded; t += STEP) {
      Eight sum[STEP / 8] = {};
      for (int64_t p = 0; p <= dims_; ++p) {
        const double* const at = gathered_.get() + p * padded + t;
#pragma GCC unroll 4
        for (int e = 0; e < STEP / 8; ++e) sum[e] += factors_[p] * eight(at + 8 * e);
      }
      for (int e = 0; e < STEP / 8; ++e)
        for (int l = 0; l < 8; ++l) gain_[t + 8 * e + l] += sign_[t + 8 * e + l] * sum[e][l];
    }
  }

  // The best of a chain of moves between clusters a and b and of their union; 0 if none is better.
  double update(int64_t a, int64_t b) {
    const int64_t count = groups_[a].count + groups_[b].count;
    const int64_t padded = ceil_div(count, STEP) * STEP;
    const double tolerance = 1e-10 * gather(a, b, padded);
    double best = 0, so_far = 0;
    int64_t best_length = 0, made = 0;
    for (int64_t length = 1; length <= count; ++length) {
      const int64_t u = best_node(padded);
      so_far += gain_[u];
      chain_[length - 1] = int32_t(u);
      flip(u, padded);
      if (so_far > best) best = so_far, best_length = length;
      made = length;
      if (length - best_length == PATIENCE) break;
    }
    for (int64_t m = best_length; m < made; ++m) sign_[chain_[m]] = -sign_[chain_[m]];
    const double joined = groups_[b].count ? value(a, b) : 0;
    if (!(std::max(best, joined) > tolerance)) return 0;
    const bool join = joined >= best - tolerance;
    if (join)
      for (int64_t t = 0; t < count; ++t) sign_[t] = 1;
    divide(a, b, count);
    return join ? joined : best;
  }

  // Makes the clusters out of the signs: + is a, - is b.
  void divide(int64_t a, int64_t b, int64_t count) {
    const int64_t split = groups_[a].count;
    int32_t last[2] = {-1, -1};
    const int64_t cluster[2] = {a, b};
    for (const int64_t c : cluster) {
      groups_[c].lowest = -1;
      groups_[c].count = 0;
      groups_[c].changed = true;
    }
    for (int64_t s = 0, t = split; s < split || t < count;) {  // two ascending lists in one
      const int64_t u = t == count || (s < split && nodes_[s] < nodes_[t]) ? s++ : t++;
      const int side = sign_[u] < 0;
      const int32_t i = nodes_[u];
      (last[side] < 0 ? groups_[cluster[side]].lowest : next_[last[side]]) = i;
      last[side] = i;
      next_[i] = -1;
      ++groups_[cluster[side]].count;
    }
    sum(a);
    sum(b);
  }

  const KernighanLin& k_;
  const int64_t first_, n_, dims_;
  const T* const x_;
  const T* const w_;
  int64_t count_ = 0;
  Scratch<Group> groups_;
  Scratch<int32_t> next_, nodes_, chain_;
  Scratch<double> sums_, masses_, gathered_, factors_, gain_, sign_;
};

template <class T>
int run_kernighan_lin(const KernighanLin& k) {
  const int64_t bounds[2] = {0, k.nodes.instances};
  int status = kOk;
  const Nodes& nodes = k.nodes;
  const int64_t work = pairs_of(nodes.offsets, nodes.offsets, nodes.instances) * nodes.dims;
  const int threads = useful_threads(k.exec.threads, work, TILE_GRAIN);
  each_quantum(bounds, 1, threads, [&](int, int64_t, int64_t b) {
    Chains<T> chains(k, b);
    const double gain = chains.ready() ? chains.run() : std::nan("");
    k.gains[b] = gain;
    if (gain != gain) __atomic_store_n(&status, int(kOutOfMemory), __ATOMIC_RELAXED);
  });
  return status;
}

}  // namespace

namespace SUBLIMATE_ISA {
int kernighan_lin(const KernighanLin& k) {
  SUBLIMATE_MULTICUT_RUN(run_kernighan_lin, k, k.nodes.dtype);
}
}  // namespace SUBLIMATE_ISA
}  // namespace sublimate::multicut
