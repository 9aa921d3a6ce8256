// pybind11 face of the Kronecker attention kernels, which exist for the CPU only (a GPU runs
// Triton's): raw addresses, int64 sizes, and tables of operands.
// python/sublimate/_native/kronecker_attention.py is the only caller and checks what the addresses
// mean.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "kronecker_attention/kernels.h"

namespace sublimate::kronecker_attention {

struct Target {
  int (*attention)(const Attention&);
  int (*attention_backward)(const AttentionBackward&);
  int (*polynomial)(const Polynomial&);
  int (*polynomial_backward)(const PolynomialBackward&);
};

inline void bind(pybind11::module_& m, const Target& t) {
  namespace py = pybind11;
  using Address = uintptr_t;
  using Release = py::call_guard<py::gil_scoped_release>;

  m.def(
      "kronecker_attention",
      [t](int dtype, int64_t batch, int64_t heads, int64_t kv_heads, int64_t channels,
          int64_t value_channels, double scale, bool causal, int form, Address operands,
          Address mask1, Address mask2, int64_t window1, int64_t window2, Address lse, int device,
          Address stream, int threads) {
        return t.attention(
            {{dtype, batch, heads, kv_heads, channels, value_channels, scale, causal},
             form,
             reinterpret_cast<const Operand*>(operands),
             reinterpret_cast<const uint8_t*>(mask1),
             reinterpret_cast<const uint8_t*>(mask2),
             window1,
             window2,
             reinterpret_cast<void*>(lse),
             {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "kronecker_attention_backward",
      [t](int dtype, int64_t batch, int64_t heads, int64_t kv_heads, int64_t channels,
          int64_t value_channels, double scale, bool causal, int form, Address operands,
          Address mask1, Address mask2, int64_t window1, int64_t window2, Address lse,
          Address delta, int device, Address stream, int threads) {
        return t.attention_backward(
            {{dtype, batch, heads, kv_heads, channels, value_channels, scale, causal},
             form,
             reinterpret_cast<const Operand*>(operands),
             reinterpret_cast<const uint8_t*>(mask1),
             reinterpret_cast<const uint8_t*>(mask2),
             window1,
             window2,
             reinterpret_cast<const void*>(lse),
             reinterpret_cast<const void*>(delta),
             {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "kronecker_polynomial",
      [t](int dtype, int64_t batch, int64_t heads, int64_t kv_heads, int64_t channels,
          int64_t value_channels, double scale, bool causal, int sets, int degree, Address operands,
          Address masks, Address windows, Address coefficients, Address numerator,
          Address denominator, int device, Address stream, int threads) {
        return t.polynomial(
            {{dtype, batch, heads, kv_heads, channels, value_channels, scale, causal},
             sets,
             degree,
             reinterpret_cast<const Operand*>(operands),
             reinterpret_cast<const int64_t*>(masks),
             reinterpret_cast<const int64_t*>(windows),
             reinterpret_cast<const void*>(coefficients),
             reinterpret_cast<void*>(numerator),
             reinterpret_cast<void*>(denominator),
             {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());

  m.def(
      "kronecker_polynomial_backward",
      [t](int dtype, int64_t batch, int64_t heads, int64_t kv_heads, int64_t channels,
          int64_t value_channels, double scale, bool causal, int sets, int degree, Address operands,
          Address masks, Address windows, Address coefficients, Address dnumerator,
          Address ddenominator, int device, Address stream, int threads) {
        return t.polynomial_backward(
            {{dtype, batch, heads, kv_heads, channels, value_channels, scale, causal},
             sets,
             degree,
             reinterpret_cast<const Operand*>(operands),
             reinterpret_cast<const int64_t*>(masks),
             reinterpret_cast<const int64_t*>(windows),
             reinterpret_cast<const void*>(coefficients),
             reinterpret_cast<const void*>(dnumerator),
             reinterpret_cast<const void*>(ddenominator),
             {device, reinterpret_cast<void*>(stream), threads}});
      },
      Release());
}

}  // namespace sublimate::kronecker_attention
