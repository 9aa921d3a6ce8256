#include "kronecker_attention/cpu.h"
namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
int polynomial(const Polynomial&) { return kUnsupported; }
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
