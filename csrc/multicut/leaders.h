// Rows of a block against all columns of an instance, keeping the best of each row. Included by
// per-level sources only (common/isa.h).
#pragma once

#include "multicut/pairs.h"

namespace sublimate::multicut {
namespace {

template <class T>
struct Candidate {
  T value;
  int32_t index;
};

template <class T>
bool goes_before(const Candidate<T>& a, const Candidate<T>& b) {
  return before(a.value, a.index, b.value, b.index);
}

// The k best of a row as they come, columns ascending: a list that is cut down to k whenever full.
template <class T>
struct Leaders {
  Candidate<T>* list;
  int64_t k, room, count;
  T least;  // what a newcomer has to beat

  void add(T value, int64_t index) {
    if (k == 1) {
      if (count == 0 || before(value, index, list[0].value, list[0].index))
        list[0] = {value, int32_t(index)}, least = value, count = 1;
      return;
    }
    list[count++] = {value, int32_t(index)};
    if (count == room) cut();
  }
  void cut() {
    if (count > k) {
      std::nth_element(list, list + k - 1, list + count, goes_before<T>);
      count = k;
    }
    if (count == k) {
      least = list[0].value;
      for (int64_t c = 1; c < k; ++c) least = list[c].value < least ? list[c].value : least;
    }
  }
};

// Offers row r of a tile, columns from j on, to its leaders; `skip` is left out. Returns what a
// newcomer has to beat from now on.
template <class T>
T offer_row(const T* values, int64_t j, int64_t columns, int64_t skip, bool tame,
            Leaders<T>& leaders) {
  if (tame) {
    for (int h = 0; h < 2; ++h) {
      const auto lanes = tile::load(values + h * LANES<T>);
      unsigned bits = tile::above<T>(lanes, tile::broadcast(leaders.least));
      while (bits) {
        const int lane = __builtin_ctz(bits), c = h * LANES<T> + lane;
        if (j + c < columns && j + c != skip) leaders.add(values[c], j + c);
        // The least may have risen.
        bits = tile::above<T>(lanes, tile::broadcast(leaders.least)) & ~((2u << lane) - 1);
      }
    }
  } else {
    for (int c = 0; c < COLS<T> && j + c < columns; ++c) {
      // Not below the least: that alone lets NaN in. Equal ones come later, so go after.
      if (values[c] <= leaders.least && leaders.count >= leaders.k) continue;
      if (j + c != skip) leaders.add(values[c], j + c);
    }
  }
  return leaders.least;
}

template <class T>
void walk_all(const Panels<T>& panels, int64_t instance, const T* rows, bool tame, int64_t count,
              const int64_t* skip, T* least, Leaders<T>* leaders) {
  const int64_t columns = panels.columns(instance), inner = panels.inner;
  alignas(64) T values[ROWS][COLS<T>];
  for (int64_t panel = 0; panel * COLS<T> < columns; ++panel) {
    const int64_t j = panel * COLS<T>;
    for (int64_t r = 0; r < count; r += ROWS) {
      const Tile<T> t = product(rows + r * inner, panels.at(instance, panel), inner);
      unsigned hit = tame ? 0 : (1u << ROWS) - 1;
#pragma GCC unroll 16
      for (int q = 0; q < ROWS; ++q)
        hit |= unsigned(tile::above<T>(tile::larger<T>(t.sum[q][0], t.sum[q][1]),
                                       tile::broadcast(least[r + q])) != 0)
               << q;
      if (__builtin_expect(!hit, 1)) continue;
      spill(t, values);
      for (; hit; hit &= hit - 1) {
        const int q = __builtin_ctz(hit);
        if (r + q < count)
          least[r + q] = offer_row(values[q], j, columns, skip[r + q], tame, leaders[r + q]);
      }
    }
  }
}

}  // namespace
}  // namespace sublimate::multicut
