// The test kernels as a Python module. Pointers are integers, as in the package's own binding.
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>

#include "common/error.h"
#include "common/launch.h"
#include "kernels.h"

namespace py = pybind11;
using namespace emulator_tests;

namespace {

template <class T>
using binding_t = std::conditional_t<std::is_pointer<T>::value, uintptr_t, T>;

template <class T>
T unbound(binding_t<T> value) {
  if constexpr (std::is_pointer<T>::value) {
    return reinterpret_cast<T>(value);
  } else {
    return value;
  }
}

// The interpreter lock is released, so faults must cross from the emulator's stacks without it.
template <class... Args>
void bind(py::module_& m, const char* name, int (*function)(Args...)) {
  m.def(
      name, [function](binding_t<Args>... args) { return function(unbound<Args>(args)...); },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(emulator_kernels, m) {
  bind(m, "block_sum", &block_sum);
  bind(m, "ballot_pack", &ballot_pack);
  bind(m, "block_scan", &block_scan);
  bind(m, "histogram", &histogram);
  bind(m, "grid_sum", &grid_sum);
  bind(m, "reverse_rows_float", &reverse_rows_float);
  bind(m, "reverse_rows_double", &reverse_rows_double);
  bind(m, "ranks", &ranks);
  bind(m, "half_arithmetic", &half_arithmetic);
  bind(m, "bfloat_arithmetic", &bfloat_arithmetic);
  bind(m, "narrow", &narrow);
  bind(m, "collectives", &collectives);
  bind(m, "float_atomics", &float_atomics);
  bind(m, "configured", &configured);
  bind(m, "fill", &fill);
  m.def(
      "fault",
      [](const std::string& name, bool fixed, uintptr_t x, uintptr_t out) {
        return fault(name.c_str(), fixed, reinterpret_cast<const int*>(x),
                     reinterpret_cast<int*>(out));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("status_text", &sublimate::status_text);
  m.def("grid_for", &sublimate::grid_for);
  m.def("ceil_div", &sublimate::ceil_div);
  m.attr("collective_rows") = kCollectiveRows;
}
