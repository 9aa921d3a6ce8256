// sublimate._C_cuda: the CUDA kernels. The runtime is linked statically, so the module imports on a
// machine without a driver; a launch there returns an error code.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include "common/error.h"
#include "common/launch.h"
#include "fewbit/bind.h"
#include "multicut/bind.h"
#include "randomized_linear/bind.h"

#ifndef SUBLIMATE_CUDA_ARCHITECTURES
#define SUBLIMATE_CUDA_ARCHITECTURES "emulated"
#endif

SUBLIMATE_DECLARE_FEWBIT(cuda)
SUBLIMATE_DECLARE_MULTICUT(cuda)
SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(cuda)

PYBIND11_MODULE(SUBLIMATE_MODULE, m) {
  using namespace sublimate;
  m.doc() = "CUDA kernels of sublimate; call them through sublimate._native";
  m.attr("architectures") = SUBLIMATE_CUDA_ARCHITECTURES;
  m.def("error_text", &status_text);
  fewbit::bind(m, {fewbit::cuda::forward, fewbit::cuda::backward, fewbit::cuda::gated_forward,
                   fewbit::cuda::gated_backward});
  multicut::bind(m, {multicut::cuda::topk, multicut::cuda::negative_sum, multicut::cuda::contract,
                     multicut::cuda::best_cluster, multicut::cuda::move, multicut::cuda::gaec,
                     nullptr, nullptr});
  randomized_linear::bind(m, {randomized_linear::cuda::project, randomized_linear::cuda::gather,
                              randomized_linear::cuda::hadamard});
}
