// pybind11 face of the randomized linear kernels, the same for _C and _C_cuda: raw addresses, int64
// sizes. python/sublimate/_native/randomized_linear.py is the only caller and checks what the
// addresses mean.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "randomized_linear/kernels.h"

namespace sublimate::randomized_linear {

struct Target {
  int (*project)(const Project&);
  int (*gather)(const Gather&);
  int (*hadamard)(const Hadamard&);
};

inline void bind(pybind11::module_& m, const Target& t) {
  namespace py = pybind11;
  using Address = uintptr_t;
  using Release = py::call_guard<py::gil_scoped_release>;

  m.def(
      "randomized_linear_project",
      [t](int dtype, int sketch, Address x, int64_t rows, int64_t columns, int64_t row_stride,
          Address out, int64_t k, Address seed, Address normal_table, int device, Address stream,
          int threads) {
        return t.project({dtype,
                          sketch,
                          reinterpret_cast<const void*>(x),
                          rows,
                          columns,
                          row_stride,
                          reinterpret_cast<void*>(out),
                          k,
                          reinterpret_cast<const int64_t*>(seed),
                          reinterpret_cast<const float*>(normal_table),
                          {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "randomized_linear_gather",
      [t](int dtype, Address x, int64_t rows, int64_t columns, int64_t row_stride, Address index,
          Address scale, Address out, int64_t k, int device, Address stream, int threads) {
        return t.gather({dtype,
                         reinterpret_cast<const void*>(x),
                         rows,
                         columns,
                         row_stride,
                         reinterpret_cast<const int32_t*>(index),
                         reinterpret_cast<const void*>(scale),
                         reinterpret_cast<void*>(out),
                         k,
                         {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "randomized_linear_hadamard",
      [t](int dtype, Address x, int64_t rows, int64_t length, int64_t row_stride, Address out,
          int64_t padded, double scale, int device, Address stream, int threads) {
        return t.hadamard({dtype,
                           reinterpret_cast<const void*>(x),
                           rows,
                           length,
                           row_stride,
                           reinterpret_cast<void*>(out),
                           padded,
                           scale,
                           {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());
}

}  // namespace sublimate::randomized_linear
