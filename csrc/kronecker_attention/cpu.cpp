// Exact attention of order 3, forward.
//
// The maximum: where a bound on the block's logits says that no exponential can leave the range,
// none is subtracted. Otherwise the one subtracted is a first tile's maximum, raised (and the sums
// rescaled) only when a logit exceeds it by STATIC_BOUND powers of two: hardly ever.

#include "kronecker_attention/cpu_pairs.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

template <class T>
void store_block(const Attention& p, const Block<arith_t<T>, Exponential<arith_t<T>>>& block,
                 int64_t b, int64_t h, int64_t i) {
  using A = arith_t<T>;
  const int64_t n = p.operands[0].length;
  A* lse = static_cast<A*>(p.lse) + (b * p.shape.heads + h) * n + i;
  for (int64_t l = 0; l < std::min<int64_t>(BLOCK<A>, n - i); ++l) {
    const A total = block.total[l / LANES<A>][l % LANES<A>];
    const bool empty = total == A(0);
    const A factor = empty ? A(0) : A(1) / total;
    lse[l] = std::log(total) + A(LN_2) * block.maximum[l / LANES<A>][l % LANES<A>];
    T* to = row_to<T>(p.operands[5], b, h, i + l);
    for (int64_t c = 0; c < block.value_channels; ++c) {
      to[c] = store_value<T>(empty ? A(0) : factor * block.sums[c * BLOCK<A> + l]);
    }
  }
}

template <class T>
int forward_as(const Attention& p) {
  using A = arith_t<T>;
  const Shape& s = p.shape;
  const int64_t n = p.operands[0].length, blocks = ceil_div(n, BLOCK<A>);
  if (s.batch * s.heads * n == 0) return kOk;
  const Form form = Form(p.form);
  const int threads = p.exec.threads;
  const KeySet<T> first(s, form, p.operands[1], p.operands[3], p.mask1, s.causal, p.window1,
                        threads);
  const KeySet<T> second(s, form, p.operands[2], p.operands[4], p.mask2, s.causal, p.window2,
                         threads);
  if (!first.good() || !second.good()) return kOutOfMemory;
  Failure failure;
  // Blocks of all heads in turn, and within a head from both ends: under a causal mask the last
  // costs most.
  parallel_for(s.batch * s.heads * blocks, 1, 1, threads, [&](int64_t begin, int64_t end) {
    using Queries = Block<A, Exponential<A>>;
    const Scratch<A> memory(Queries::size(s.channels, s.value_channels));
    if (!memory.get()) return failure.raise();
    Queries block({}, memory.get(), s.channels, s.value_channels);
    const Pairs<T, Exponential<A>> pairs{s, form, first, second};
    for (int64_t w = begin; w < end; ++w) {
      const int64_t head = w / blocks, at = w % blocks;
      const int64_t mixed = at % 2 ? blocks - 1 - at / 2 : at / 2;
      const int64_t b = head / s.heads, h = head % s.heads, i = mixed * BLOCK<A>;
      pairs.run_block(block, p.operands[0], b, h, i);
      store_block<T>(p, block, b, h, i);
    }
  });
  return failure.raised ? kOutOfMemory : kOk;
}

}  // namespace

int attention(const Attention& p) { SUBLIMATE_KRONECKER_ATTENTION_RUN(forward_as, p); }

}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
