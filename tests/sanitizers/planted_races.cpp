// Races and their absence, to show that a ThreadSanitizer build sees the one and not the other.
#include <pybind11/pybind11.h>

#include "common/parallel.h"

namespace {

int64_t shared = 0;

// Every thread of the region adds to one number.
int64_t in_region(int threads) {
  int64_t total = 0;
  sublimate::parallel_for(threads, 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) total += i;
  });
  return total;
}

// Two calls of different Python threads, without the lock, add to one number.
int64_t between_calls(int64_t times) {
  for (int64_t i = 0; i < times; ++i) {
    shared += 1;
    __asm__ volatile("" ::: "memory");
  }
  return shared;
}

// Each thread writes its own element; the caller reads them after the region.
int64_t none(int threads) {
  int64_t own[64] = {};
  sublimate::parallel_for(threads, 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) own[i] = i;
  });
  int64_t total = 0;
  for (int64_t value : own) total += value;
  return total;
}

}  // namespace

PYBIND11_MODULE(_planted_races, m) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("in_region", &in_region, Release());
  m.def("between_calls", &between_calls, Release());
  m.def("none", &none, Release());
}
