// sublimate._C: the CPU kernels.

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>

#include "common/error.h"
#include "common/isa.h"
#include "fewbit/bind.h"
#include "kronecker_attention/bind.h"
#include "multicut/bind.h"
#include "multicut/graph.h"
#include "path_integral/bind.h"
#include "randomized_linear/bind.h"

SUBLIMATE_DECLARE_FEWBIT(base)
SUBLIMATE_DECLARE_PATH_INTEGRAL(base)
SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(base)
#if defined(SUBLIMATE_MULTIVERSION)
SUBLIMATE_DECLARE_FEWBIT(v3)
SUBLIMATE_DECLARE_PATH_INTEGRAL(v3)
SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(v3)
SUBLIMATE_DECLARE_FEWBIT(v4)
SUBLIMATE_DECLARE_PATH_INTEGRAL(v4)
SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(v4)
#endif

SUBLIMATE_DECLARE_KRONECKER_ATTENTION(base)
SUBLIMATE_DECLARE_MULTICUT(base)
#if defined(SUBLIMATE_MULTIVERSION)
SUBLIMATE_DECLARE_KRONECKER_ATTENTION(v3)
SUBLIMATE_DECLARE_KRONECKER_ATTENTION(v4)
SUBLIMATE_DECLARE_MULTICUT(v3)
SUBLIMATE_DECLARE_MULTICUT(v4)
#endif

namespace sublimate {

const char* isa_name(Isa isa) {
  const char* names[] = {"base", "v3", "v4"};
  return names[int(isa)];
}

Isa detect_isa() {
  Isa best = Isa::base;
#if defined(SUBLIMATE_MULTIVERSION)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")) {
    best = Isa::v3;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd")) {
      best = Isa::v4;
    }
  }
#endif
  if (const char* wanted = std::getenv("SUBLIMATE_CPU_ISA")) {
    for (int level = 0; level < int(best); ++level) {
      if (std::strcmp(wanted, isa_name(Isa(level))) == 0) return Isa(level);
    }
  }
  return best;
}

namespace fewbit {

Target cpu_target(Isa isa) {
#if defined(SUBLIMATE_MULTIVERSION)
  if (isa == Isa::v4) return {v4::forward, v4::backward, v4::gated_forward, v4::gated_backward};
  if (isa == Isa::v3) return {v3::forward, v3::backward, v3::gated_forward, v3::gated_backward};
#endif
  (void)isa;
  return {base::forward, base::backward, base::gated_forward, base::gated_backward};
}

}  // namespace fewbit

namespace kronecker_attention {

#define SUBLIMATE_KRONECKER_ATTENTION_TARGET(level)                                            \
  Target {                                                                                     \
    level::attention, level::attention_backward, level::polynomial, level::polynomial_backward \
  }

Target cpu_target(Isa isa) {
#if defined(SUBLIMATE_MULTIVERSION)
  if (isa == Isa::v4) return SUBLIMATE_KRONECKER_ATTENTION_TARGET(v4);
  if (isa == Isa::v3) return SUBLIMATE_KRONECKER_ATTENTION_TARGET(v3);
#endif
  (void)isa;
  return SUBLIMATE_KRONECKER_ATTENTION_TARGET(base);
}

}  // namespace kronecker_attention

namespace multicut {

#define SUBLIMATE_MULTICUT_TARGET(level)                                                 \
  Target {                                                                               \
    level::topk, level::negative_sum, level::contract, level::best_cluster, level::move, \
        level::gaec, level::kernighan_lin, level::lazy                                   \
  }

Target cpu_target(Isa isa) {
#if defined(SUBLIMATE_MULTIVERSION)
  if (isa == Isa::v4) return SUBLIMATE_MULTICUT_TARGET(v4);
  if (isa == Isa::v3) return SUBLIMATE_MULTICUT_TARGET(v3);
#endif
  (void)isa;
  return SUBLIMATE_MULTICUT_TARGET(base);
}

}  // namespace multicut

namespace path_integral {

#define SUBLIMATE_PATH_INTEGRAL_TARGET(level)                                              \
  Target {                                                                                 \
    level::points, level::accumulate, level::difference, level::scale, level::mask_points, \
        level::mask_grad, level::mask_penalty                                              \
  }

Target cpu_target(Isa isa) {
#if defined(SUBLIMATE_MULTIVERSION)
  if (isa == Isa::v4) return SUBLIMATE_PATH_INTEGRAL_TARGET(v4);
  if (isa == Isa::v3) return SUBLIMATE_PATH_INTEGRAL_TARGET(v3);
#endif
  (void)isa;
  return SUBLIMATE_PATH_INTEGRAL_TARGET(base);
}

}  // namespace path_integral

namespace randomized_linear {

Target cpu_target(Isa isa) {
#if defined(SUBLIMATE_MULTIVERSION)
  if (isa == Isa::v4) return {v4::project, v4::gather, v4::hadamard};
  if (isa == Isa::v3) return {v3::project, v3::gather, v3::hadamard};
#endif
  (void)isa;
  return {base::project, base::gather, base::hadamard};
}

}  // namespace randomized_linear
}  // namespace sublimate

PYBIND11_MODULE(_C, m) {
  const sublimate::Isa isa = sublimate::detect_isa();
  m.doc() = "CPU kernels of sublimate; call them through sublimate._native";
  m.attr("isa") = sublimate::isa_name(isa);
  m.def("error_text", &sublimate::status_text);
  sublimate::fewbit::bind(m, sublimate::fewbit::cpu_target(isa));
  sublimate::kronecker_attention::bind(m, sublimate::kronecker_attention::cpu_target(isa));
  sublimate::multicut::bind(m, sublimate::multicut::cpu_target(isa));
  sublimate::multicut::bind_graph(m);
  sublimate::path_integral::bind(m, sublimate::path_integral::cpu_target(isa));
  sublimate::randomized_linear::bind(m, sublimate::randomized_linear::cpu_target(isa));
}
