// Exact attention of order 3, backward.

#include "kronecker_attention/cpu_pairs_backward.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

template <class T>
int backward_as(const AttentionBackward& p) {
  using A = arith_t<T>;
  const Shape& s = p.shape;
  const Operand* o = p.operands;
  if (s.batch * s.kv_heads == 0) return kOk;
  const Form form = Form(p.form);
  const int threads = p.exec.threads;
  const KeySet<T> first(s, form, o[1], o[3], p.mask1, s.causal, p.window1, threads);
  const KeySet<T> second(s, form, o[2], o[4], p.mask2, s.causal, p.window2, threads);
  if (!first.good() || !second.good()) return kOutOfMemory;
  const auto load = [&](const auto& pairs, auto& block, int64_t b, int64_t h, int64_t i) {
    pairs.template load<T>(block, o[0], o[5], static_cast<const A*>(p.lse),
                           static_cast<const A*>(p.delta), A(1), b, h, i);
  };
  return pairs_backward<T, Exponential<A>>(s, form, first, second, o, o + 6, threads, load);
}

}  // namespace

int attention_backward(const AttentionBackward& p) {
  SUBLIMATE_KRONECKER_ATTENTION_RUN(backward_as, p);
}

}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
