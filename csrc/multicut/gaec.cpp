// Exact greedy additive edge contraction without a table of costs: the sums of clusters are kept,
// and a row of values is a product with all of them. Compiled once per instruction-set level
// (common/isa.h).
//
// Each cluster keeps its best partner and that value. After a merge one row of values is new; a
// cluster whose partner was merged keeps its old value as an upper bound, and is looked at again
// only when that bound is the largest of all. O(n d) a merge and O(n d) a second look.

#include "multicut/pairs.h"
#include "multicut/state.h"

SUBLIMATE_DECLARE_MULTICUT(SUBLIMATE_ISA)

namespace sublimate::multicut {
namespace {

constexpr int32_t NONE = -1;   // no partner of positive value
constexpr int32_t STALE = -2;  // the partner is gone, the value is an upper bound

// One instance. Clusters stand in slots in ascending order of their lowest member; a dead slot has
// zero coordinates, so that its value to all is 0 and never taken.
template <class T>
struct Contraction {
  const Nodes& nodes;
  int64_t first, n, inner;
  int64_t slots;  // in use, dead ones included
  int64_t dead = 0;
  Scratch<int32_t> name;    // lowest member by slot
  Scratch<int32_t> parent;  // of each node: a lower member of its cluster, or itself
  Scratch<double> sums, masses;
  Scratch<T> features, weights;  // sums and masses in T: what values are computed from
  Scratch<T> panels, rows;
  Scratch<T> value;  // best, or bound, by slot; 0 if none is positive
  Scratch<int32_t> partner;
  Scratch<T> top;  // largest value by panel

  Contraction(const Nodes& nodes, int64_t first, int64_t n)
      : nodes(nodes),
        first(first),
        n(n),
        inner(nodes.dims + (nodes.alpha != 0)),
        slots(n),
        name(n),
        parent(n),
        sums(n * nodes.dims),
        masses(n),
        features(n * nodes.dims),
        weights(n),
        panels(padded() * inner),
        rows(ROWS * inner),
        value(padded()),
        partner(padded()),
        top(padded() / COLS<T>) {}

  bool ready() const {
    return name && parent && sums && masses && features && weights && panels && rows && value &&
           partner && top;
  }
  int64_t padded() const { return ceil_div(n, COLS<T>) * COLS<T>; }
  Side<T> side() const { return side_of<T>(nodes, features.get(), weights.get()); }

  void begin() {
    const T* x = static_cast<const T*>(nodes.features) + first * nodes.dims;
    const T* w = static_cast<const T*>(nodes.weights);
    for (int64_t e = 0; e < n * nodes.dims; ++e) features[e] = x[e], sums[e] = double(x[e]);
    for (int64_t i = 0; i < n; ++i) {
      name[i] = parent[i] = int32_t(i);
      weights[i] = w ? w[first + i] : T(1);
      masses[i] = double(weights[i]);
    }
    for (int64_t s = 0; s < padded(); ++s) value[s] = T(0), partner[s] = NONE;
    pack_all();
    for (int64_t s = 0; s < n; s += ROWS) {
      pack_rows(side(), s, std::min<int64_t>(ROWS, n - s), rows.get());
      int32_t at[ROWS];
      for (int r = 0; r < ROWS; ++r) at[r] = int32_t(s + r);
      look<true>(at, std::min<int64_t>(ROWS, n - s));
    }
    for (int64_t p = 0; p * COLS<T> < slots; ++p) find_top(p);
  }

  void pack_all() {
    for (int64_t s = 0; s < slots; s += COLS<T>)
      pack<T, COLS<T>, true>(side(), s, std::min<int64_t>(COLS<T>, slots - s),
                             panels.get() + s * inner);
  }

  void find_top(int64_t panel) {
    T best = T(0);
    const T* v = value.get() + panel * COLS<T>;
    for (int c = 0; c < COLS<T>; ++c) best = v[c] > best ? v[c] : best;
    top[panel] = best;
  }

  // The best partners of the slots at[0 .. count), ascending and packed in `rows`, among all slots;
  // in the first pass (`upper`, slots in a row) among higher ones only, which learn of them too.
  template <bool upper>
  void look(const int32_t* at, int64_t count) {
    alignas(64) T values[ROWS][COLS<T>];
    T best[ROWS];
    int32_t index[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      best[r] = r < count ? (upper ? value[at[r]] : T(0)) : std::numeric_limits<T>::infinity();
      index[r] = r < count && upper ? partner[at[r]] : NONE;
    }
    for (int64_t j = upper ? at[0] / COLS<T> * COLS<T> : 0; j < slots; j += COLS<T>) {
      const Tile<T> t = product(rows.get(), panels.get() + j * inner, inner);
      unsigned hit = 0;
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        hit |= tile::above<T>(tile::larger<T>(t.sum[r][0], t.sum[r][1]), tile::broadcast(best[r]));
        if (upper) {
          hit |= tile::above<T>(t.sum[r][0], tile::load(value.get() + j));
          hit |= tile::above<T>(t.sum[r][1], tile::load(value.get() + j + LANES<T>));
        }
      }
      if (!hit) continue;
      spill(t, values);
      for (int r = 0; r < count; ++r) {
        for (int c = 0; c < COLS<T> && j + c < slots; ++c) {
          if (upper ? j + c <= at[r] : j + c == at[r]) continue;
          if (values[r][c] > best[r]) best[r] = values[r][c], index[r] = int32_t(j + c);
          if (upper && values[r][c] > value[j + c]) {
            value[j + c] = values[r][c], partner[j + c] = at[r];
            // A row of this very group: it has its own copy.
            if (j + c < at[0] + count && values[r][c] > best[j + c - at[0]])
              best[j + c - at[0]] = values[r][c], index[j + c - at[0]] = at[r];
          }
        }
      }
    }
    for (int r = 0; r < count; ++r) value[at[r]] = best[r], partner[at[r]] = index[r];
  }

  // A second look at slot s, and with it at stale ones of the largest bounds, as a tile has room.
  void look_again(int64_t s) {
    int32_t at[ROWS];
    T bound[ROWS];
    at[0] = int32_t(s);
    int64_t count = 1;
    for (int64_t panel = 0; panel * COLS<T> < slots; ++panel) {
      if (count == ROWS && !(top[panel] > bound[ROWS - 1])) continue;
      for (int64_t q = panel * COLS<T>; q < std::min(slots, (panel + 1) * COLS<T>); ++q) {
        if (partner[q] != STALE || q == s) continue;
        if (count == ROWS && !(value[q] > bound[ROWS - 1])) continue;
        if (count < ROWS) ++count;
        int64_t r = count - 1;
        for (; r > 1 && bound[r - 1] < value[q]; --r) at[r] = at[r - 1], bound[r] = bound[r - 1];
        at[r] = int32_t(q), bound[r] = value[q];
      }
    }
    for (int64_t p = 0; p < inner * ROWS; ++p) rows[p] = T(0);
    for (int r = 0; r < count; ++r) pack_row(at[r], r);
    look<false>(at, count);
    for (int r = 0; r < count; ++r) find_top(at[r] / COLS<T>);
  }

  void pack_row(int64_t s, int r) {
    const T* x = features.get() + s * nodes.dims;
    for (int64_t p = 0; p < nodes.dims; ++p) rows[p * ROWS + r] = x[p];
    if (inner > nodes.dims) rows[nodes.dims * ROWS + r] = side().last(s);
  }

  // Puts slot s in its column of the panels; a dead one as zeros.
  void pack_column(int64_t s, bool alive) {
    T* const column = panels.get() + s / COLS<T> * COLS<T> * inner + s % COLS<T>;
    if (!alive) {
      for (int64_t p = 0; p < inner; ++p) column[p * COLS<T>] = T(0);
      return;
    }
    const Side<T> whole = side();
    const int64_t plain = nodes.dims - nodes.negative;
    const T* x = features.get() + s * nodes.dims;
    for (int64_t p = 0; p < nodes.dims; ++p) column[p * COLS<T>] = p < plain ? x[p] : -x[p];
    if (whole.has_alpha)
      column[nodes.dims * COLS<T>] = whole.alpha_positive ? -whole.last(s) : whole.last(s);
  }

  void merge(int64_t i, int64_t j) {
    const int64_t dims = nodes.dims;
    for (int64_t p = 0; p < dims; ++p) {
      sums[i * dims + p] += sums[j * dims + p];
      features[i * dims + p] = T(sums[i * dims + p]);
    }
    masses[i] += masses[j];
    weights[i] = T(masses[i]);
    parent[name[j]] = name[i];
    pack_column(i, true);
    pack_column(j, false);
    value[j] = T(0), partner[j] = NONE, name[j] = -1;
    ++dead;
    find_top(j / COLS<T>);
    const int32_t a = int32_t(i), b = int32_t(j);
    int32_t* const p = partner.get();
    for (int64_t s = 0; s < slots; ++s) p[s] = (p[s] == a) | (p[s] == b) ? STALE : p[s];
    spread(i);
  }

  // The row of values of slot i, just merged: its best partner, and itself as a partner of others.
  void spread(int64_t i) {
    for (int64_t p = 0; p < inner * ROWS; ++p) rows[p] = T(0);
    pack_row(i, 0);
    T best = T(0);
    int32_t index = NONE;
    value[i] = T(0);
    for (int64_t j = 0; j < slots; j += COLS<T>) {
      Tile<T, 1> t;
      t.clear();
      t.add(rows.get(), 1, ROWS, panels.get() + j * inner, COLS<T>, inner);
      const auto low = t.sum[0][0], high = t.sum[0][1];
      const unsigned positive = tile::above<T>(low, tile::Vector<T>{}) |
                                tile::above<T>(high, tile::Vector<T>{}) << LANES<T>;
      const unsigned lower = tile::above<T>(tile::load(value.get() + j), low) |
                             tile::above<T>(tile::load(value.get() + j + LANES<T>), high)
                                 << LANES<T>;
      // What equals the value there may have to change the partner.
      const bool better = tile::above<T>(tile::larger<T>(low, high), tile::broadcast(best));
      if (!(positive & ~lower) && !better) continue;
      alignas(64) T values[COLS<T>];
      tile::store(values, low);
      tile::store(values + LANES<T>, high);
      bool changed = false;
      for (int c = 0; c < COLS<T> && j + c < slots; ++c) {
        const T v = values[c];
        if (j + c == i || !(v > T(0))) continue;
        if (v > best) best = v, index = int32_t(j + c);
        const bool tie = v == value[j + c] && partner[j + c] > int32_t(i);
        if (v > value[j + c] || tie) value[j + c] = v, partner[j + c] = int32_t(i), changed = true;
      }
      if (changed) find_top(j / COLS<T>);
    }
    value[i] = best, partner[i] = index;
    find_top(i / COLS<T>);
  }

  // Moves the living together, in their order.
  void compact() {
    const int64_t dims = nodes.dims;
    Scratch<int32_t> moved(slots);
    if (!moved) return;  // goes on as it is
    int64_t to = 0;
    for (int64_t s = 0; s < slots; ++s) {
      if (name[s] < 0) continue;
      moved[s] = int32_t(to);
      if (to < s) {
        for (int64_t p = 0; p < dims; ++p) {
          sums[to * dims + p] = sums[s * dims + p];
          features[to * dims + p] = features[s * dims + p];
        }
        name[to] = name[s], masses[to] = masses[s], weights[to] = weights[s];
        value[to] = value[s], partner[to] = partner[s];
      }
      ++to;
    }
    for (int64_t s = 0; s < to; ++s)
      if (partner[s] >= 0) partner[s] = moved[partner[s]];
    for (int64_t s = to; s < slots; ++s) value[s] = T(0), partner[s] = NONE;
    slots = to, dead = 0;
    pack_all();
    for (int64_t p = 0; p * COLS<T> < slots; ++p) find_top(p);
  }

  // The slot of largest value or bound, the lowest of equals; -1 if none is positive.
  int64_t largest() const {
    T best = T(0);
    int64_t panel = -1;
    for (int64_t p = 0; p * COLS<T> < slots; ++p)
      if (top[p] > best) best = top[p], panel = p;
    if (panel < 0) return -1;
    int64_t s = panel * COLS<T>;
    while (value[s] != best) ++s;
    return s;
  }
};

template <class T>
int contract_instance(const Gaec& k, int64_t b) {
  const int64_t first = k.nodes.offsets[b], n = k.nodes.offsets[b + 1] - first;
  Contraction<T> c(k.nodes, first, n);
  if (!c.ready()) return kOutOfMemory;
  c.begin();
  int64_t merges = 0;
  for (int64_t s; (s = c.largest()) >= 0;) {
    if (c.partner[s] == STALE) {
      c.look_again(s);
      continue;
    }
    const int64_t j = c.partner[s], low = std::min(s, j), high = std::max(s, j);
    k.merges[2 * (first + merges)] = first + c.name[low];
    k.merges[2 * (first + merges) + 1] = first + c.name[high];
    static_cast<T*>(k.costs)[first + merges] = c.value[s];
    ++merges;
    c.merge(low, high);
    if (c.dead * 4 > c.slots && c.slots > COLS<T>) c.compact();
  }
  for (int64_t m = first + merges; m < first + n; ++m) {
    k.merges[2 * m] = k.merges[2 * m + 1] = -1;
    static_cast<T*>(k.costs)[m] = T(0);
  }
  for (int64_t i = 0; i < n; ++i) {  // parents are lower, so theirs are final
    c.parent[i] = c.parent[c.parent[i]];
    k.labels[first + i] = first + c.parent[i];
  }
  return kOk;
}

template <class T>
int run_gaec(const Gaec& k) {
  const int64_t bounds[2] = {0, k.nodes.instances};
  for (int64_t b = 0; b < k.nodes.instances; ++b)
    if (k.nodes.offsets[b + 1] - k.nodes.offsets[b] > std::numeric_limits<int32_t>::max())
      return kBadArgument;
  int status = kOk;
  const Nodes& nodes = k.nodes;
  const int64_t work = pairs_of(nodes.offsets, nodes.offsets, nodes.instances) * nodes.dims;
  const int threads = useful_threads(k.exec.threads, work, TILE_GRAIN);
  each_quantum(bounds, 1, threads, [&](int, int64_t, int64_t b) {
    const int one = contract_instance<T>(k, b);
    if (one != kOk) __atomic_store_n(&status, one, __ATOMIC_RELAXED);
  });
  return status;
}

}  // namespace

namespace SUBLIMATE_ISA {
int gaec(const Gaec& k) { SUBLIMATE_MULTICUT_RUN(run_gaec, k, k.nodes.dtype); }
}  // namespace SUBLIMATE_ISA
}  // namespace sublimate::multicut
