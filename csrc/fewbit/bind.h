// pybind11 face of the few-bit kernels, the same for _C and _C_cuda: raw addresses, int64 sizes.
// python/sublimate/_native/fewbit.py is the only caller and checks what the addresses mean.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "fewbit/fewbit_math.h"
#include "fewbit/kernels.h"

namespace sublimate::fewbit {

struct Target {
  int (*forward)(const Forward&);
  int (*backward)(const Backward&);
  int (*gated_forward)(const GatedForward&);
  int (*gated_backward)(const GatedBackward&);
};

inline void bind(pybind11::module_& m, const Target& t) {
  namespace py = pybind11;
  using Address = uintptr_t;
  using Release = py::call_guard<py::gil_scoped_release>;

  m.def("fewbit_functions", [] {
    py::list names;
#define SUBLIMATE_X(name, exact) names.append(#name);
    SUBLIMATE_FEWBIT_FUNCTIONS(SUBLIMATE_X)
#undef SUBLIMATE_X
    return names;
  });

  m.def(
      "fewbit_fwd",
      [t](int dtype, int fn, double a, double b, Address x, Address y, Address packed, int64_t n,
          Address borders, Address codes, int count, Address levels, int bits, Address seed,
          int device, Address stream, int threads) {
        return t.forward({dtype,
                          fn,
                          a,
                          b,
                          reinterpret_cast<const void*>(x),
                          reinterpret_cast<void*>(y),
                          reinterpret_cast<uint32_t*>(packed),
                          n,
                          {reinterpret_cast<const void*>(borders),
                           reinterpret_cast<const uint8_t*>(codes), count},
                          reinterpret_cast<const void*>(levels),
                          bits,
                          reinterpret_cast<const int64_t*>(seed),
                          {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "fewbit_bwd",
      [t](int dtype, Address grad, Address packed, Address levels, Address dx, int64_t n, int bits,
          int device, Address stream, int threads) {
        return t.backward({dtype,
                           reinterpret_cast<const void*>(grad),
                           reinterpret_cast<const uint32_t*>(packed),
                           reinterpret_cast<const void*>(levels),
                           reinterpret_cast<void*>(dx),
                           n,
                           bits,
                           {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "fewbit_gated_fwd",
      [t](int dtype, int fn, Address gate, Address up, Address y, Address packed, int64_t n,
          Address borders, Address codes, int count, int bits, Address scale, int64_t inner,
          int device, Address stream, int threads) {
        return t.gated_forward({dtype,
                                fn,
                                reinterpret_cast<const void*>(gate),
                                reinterpret_cast<const void*>(up),
                                reinterpret_cast<void*>(y),
                                reinterpret_cast<uint32_t*>(packed),
                                n,
                                {reinterpret_cast<const void*>(borders),
                                 reinterpret_cast<const uint8_t*>(codes), count},
                                bits,
                                reinterpret_cast<const float*>(scale),
                                inner,
                                {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "fewbit_gated_bwd",
      [t](int dtype, int fn, Address dy, Address kept, Address packed, Address levels,
          Address values, Address scale, int64_t inner, Address dgate, Address dup, int64_t n,
          int bits, int device, Address stream, int threads) {
        return t.gated_backward({dtype,
                                 fn,
                                 reinterpret_cast<const void*>(dy),
                                 reinterpret_cast<const void*>(kept),
                                 reinterpret_cast<const uint32_t*>(packed),
                                 reinterpret_cast<const void*>(levels),
                                 reinterpret_cast<const void*>(values),
                                 reinterpret_cast<const float*>(scale),
                                 inner,
                                 reinterpret_cast<void*>(dgate),
                                 reinterpret_cast<void*>(dup),
                                 n,
                                 bits,
                                 {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());
}

}  // namespace sublimate::fewbit
