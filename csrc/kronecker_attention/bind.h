// The bindings of the Kronecker attention kernels, which exist for the CPU only (a GPU runs
// Triton's).
#pragma once

#include <pybind11/pybind11.h>

#include "kronecker_attention/kernels.h"

namespace sublimate::kronecker_attention {

struct Target {
  int (*attention)(const Attention&);
  int (*attention_backward)(const AttentionBackward&);
  int (*polynomial)(const Polynomial&);
  int (*polynomial_backward)(const PolynomialBackward&);
};

void bind(pybind11::module_& m, const Target& t);

}  // namespace sublimate::kronecker_attention
