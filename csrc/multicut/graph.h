// Greedy additive edge contraction on a sparse graph: the CPU kernel and its pybind11 face. It is
// sequential by nature (a heap), so it is compiled once and has no instruction-set levels.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/exec.h"

namespace sublimate::multicut {

struct GraphGaec {
  const int64_t* edges;  // (m, 2), ends in [0, nodes), no loops; repeated edges add up
  const double* costs;   // (m,) finite; positive attracts
  int64_t m;
  int64_t nodes;
  int64_t* labels;  // (nodes,) numbered by first appearance
  int64_t* merges;  // (nodes, 2): (surviving, absorbed) smallest members; rows from count on unset
  double* gains;    // (nodes,): cost of each contraction
  int64_t* count;   // (1,): number of contractions
  Exec exec;        // not read: one thread
};

// Contracts the edge of largest positive cost, ties by lower then higher smallest member, until
// none is positive. O(m log m) for the heap and O(degree of the absorbed node) per contraction.
int graph_gaec(const GraphGaec&);

void bind_graph(pybind11::module_& m);

}  // namespace sublimate::multicut
