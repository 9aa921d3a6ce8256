#include "kronecker_attention/cpu.h"
namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
int polynomial_backward(const PolynomialBackward&) { return kUnsupported; }
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
