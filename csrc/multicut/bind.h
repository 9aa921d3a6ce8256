// pybind11 face of the dense multicut kernels, the same for _C and _C_cuda: raw addresses, int64
// sizes. python/sublimate/_native/multicut.py is the only caller and checks what the addresses
// mean.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "multicut/kernels.h"

namespace sublimate::multicut {

// A null entry: this target has no such kernel.
struct Target {
  int (*topk)(const TopK&);
  int (*negative_sum)(const NegativeSum&);
  int (*contract)(const Contract&);
  int (*best_cluster)(const BestCluster&);
  int (*move)(const Move&);
  int (*gaec)(const Gaec&);
  int (*kernighan_lin)(const KernighanLin&);
  int (*lazy)(const Lazy&);
};

template <class Arguments>
int run(int (*kernel)(const Arguments&), const Arguments& arguments) {
  return kernel ? kernel(arguments) : kUnsupported;
}

inline void bind(pybind11::module_& m, const Target& t) {
  namespace py = pybind11;
  using Address = uintptr_t;
  using Release = py::call_guard<py::gil_scoped_release>;
  static constexpr auto in = [](Address a) { return reinterpret_cast<const void*>(a); };
  static constexpr auto out = [](Address a) { return reinterpret_cast<void*>(a); };
  static constexpr auto ints = [](Address a) { return reinterpret_cast<int64_t*>(a); };
  static constexpr auto reals = [](Address a) { return reinterpret_cast<double*>(a); };

  m.def(
      "multicut_topk",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address other, Address other_weights,
          int64_t columns, Address other_offsets, int64_t k, int64_t self, Address values,
          Address indices, Address work, int64_t work_bytes, int device, Address stream,
          int threads) {
        return run(t.topk, TopK{{dtype, in(features), in(weights), rows, dims, ints(offsets),
                                 instances, alpha, negative},
                                in(other),
                                in(other_weights),
                                columns,
                                ints(other_offsets),
                                k,
                                self,
                                out(values),
                                ints(indices),
                                {out(work), work_bytes},
                                {device, out(stream), threads}});
      },
      Release());

  m.def(
      "multicut_negative_sum",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address sums, Address work,
          int64_t work_bytes, int device, Address stream, int threads) {
        return run(t.negative_sum, NegativeSum{{dtype, in(features), in(weights), rows, dims,
                                                ints(offsets), instances, alpha, negative},
                                               reals(sums),
                                               {out(work), work_bytes},
                                               {device, out(stream), threads}});
      },
      Release());

  m.def(
      "multicut_contract",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address labels,
          int64_t clusters, Address members, Address sums, Address masses, Address counts,
          int device, Address stream, int threads) {
        return run(t.contract, Contract{dtype,
                                        in(features),
                                        in(weights),
                                        rows,
                                        dims,
                                        ints(labels),
                                        clusters,
                                        ints(members),
                                        reals(sums),
                                        reals(masses),
                                        ints(counts),
                                        {device, out(stream), threads}});
      },
      Release());

  m.def(
      "multicut_best_cluster",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address labels, Address sums,
          Address masses, Address counts, int64_t slots, Address slot_offsets, Address target,
          Address gain, int device, Address stream, int threads) {
        return run(t.best_cluster, BestCluster{{dtype, in(features), in(weights), rows, dims,
                                                ints(offsets), instances, alpha, negative},
                                               {ints(labels), reals(sums), reals(masses),
                                                ints(counts), slots, ints(slot_offsets)},
                                               ints(target),
                                               out(gain),
                                               {device, out(stream), threads}});
      },
      Release());

  m.def(
      "multicut_move",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address labels, Address sums,
          Address masses, Address counts, int64_t slots, Address slot_offsets, Address order,
          Address order_offsets, Address target, Address moved, int device, Address stream,
          int threads) {
        return run(t.move, Move{{dtype, in(features), in(weights), rows, dims, ints(offsets),
                                 instances, alpha, negative},
                                {ints(labels), reals(sums), reals(masses), ints(counts), slots,
                                 ints(slot_offsets)},
                                ints(order),
                                ints(order_offsets),
                                ints(target),
                                ints(moved),
                                {device, out(stream), threads}});
      },
      Release());

  m.def("multicut_gaec_work", [](int64_t rows, int64_t dims) { return gaec_work(rows, dims); });

  m.def(
      "multicut_gaec",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address labels, Address merges,
          Address costs, Address work, int64_t work_bytes, int device, Address stream,
          int threads) {
        return run(t.gaec, Gaec{{dtype, in(features), in(weights), rows, dims, ints(offsets),
                                 instances, alpha, negative},
                                ints(labels),
                                ints(merges),
                                out(costs),
                                {out(work), work_bytes},
                                {device, out(stream), threads}});
      },
      Release());

  m.def(
      "multicut_kernighan_lin",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address labels, int64_t neighbors,
          int64_t rounds, Address gains, int device, Address stream, int threads) {
        return run(t.kernighan_lin, KernighanLin{{dtype, in(features), in(weights), rows, dims,
                                                  ints(offsets), instances, alpha, negative},
                                                 ints(labels),
                                                 neighbors,
                                                 rounds,
                                                 reals(gains),
                                                 {device, out(stream), threads}});
      },
      Release());

  m.def(
      "multicut_lazy",
      [t](int dtype, Address features, Address weights, int64_t rows, int64_t dims, Address offsets,
          int64_t instances, double alpha, int64_t negative, Address neighbors,
          int64_t neighbors_per_node, Address labels, int device, Address stream, int threads) {
        return run(t.lazy, Lazy{{dtype, in(features), in(weights), rows, dims, ints(offsets),
                                 instances, alpha, negative},
                                ints(neighbors),
                                neighbors_per_node,
                                ints(labels),
                                {device, out(stream), threads}});
      },
      Release());
}

}  // namespace sublimate::multicut
