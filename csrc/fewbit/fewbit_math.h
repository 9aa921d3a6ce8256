// Per-element mathematics of the few-bit activations: f, f', and the exact one-bit predicates.
// One source for CPU, CUDA and emulator. Formulas and corner conventions are those of
// python/sublimate/fewbit/functions.py, which this file is tested against.
#pragma once

#include <type_traits>

#include "common/math.h"

namespace sublimate::fewbit {

// Ids are positions in functions.FUNCTIONS. (name, exact)
// clang-format off
#define SUBLIMATE_FEWBIT_FUNCTIONS(X)                               \
  X(gelu, 0) X(gelu_tanh, 0) X(silu, 0) X(sigmoid, 0)               \
  X(tanh, 0) X(elu, 0) X(celu, 0) X(selu, 0)                        \
  X(softplus, 0) X(mish, 0) X(hardswish, 0) X(logsigmoid, 0)        \
  X(softsign, 0) X(tanhshrink, 0) X(relu, 1) X(relu6, 1)            \
  X(leaky_relu, 1) X(threshold, 1) X(hardtanh, 1) X(hardsigmoid, 1) \
  X(hardshrink, 1) X(softshrink, 1)
// clang-format on

enum class Fn : int {
#define SUBLIMATE_X(name, exact) name,
  SUBLIMATE_FEWBIT_FUNCTIONS(SUBLIMATE_X)
#undef SUBLIMATE_X
  // x is already f'(x) (stochastic) or whatever the borders refer to: no value is computed.
  given,
};

SUBLIMATE_HD constexpr bool is_exact(Fn fn) {
  switch (fn) {
#define SUBLIMATE_X(name, exact) \
  case Fn::name:                 \
    return exact;
    SUBLIMATE_FEWBIT_FUNCTIONS(SUBLIMATE_X)
#undef SUBLIMATE_X
    default:
      return false;
  }
}

// 1 / (1 + e^-x); 0 where e^-x overflows, so that -inf * sigmoid(-inf) is NaN as in torch.
template <class A>
SUBLIMATE_HD A sigmoid(A x) {
  return math::reciprocal(A(1) + math::exp(-x));
}

// f(x). A is float, double or Vec; a and b are the function's parameters, unused ones ignored.
template <Fn F, class A>
SUBLIMATE_HD A value(A x, A a, A b) {
  using namespace sublimate::math;
  (void)a;
  (void)b;
  [[maybe_unused]] const A zero = A(0), one = A(1);
  if constexpr (F == Fn::gelu) return x * (A(0.5) + centred_cdf(x));
  if constexpr (F == Fn::gelu_tanh) {
    const A inner = A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
    return A(0.5) * x * (one + math::tanh(inner));
  }
  if constexpr (F == Fn::silu) return x * sigmoid(x);
  if constexpr (F == Fn::sigmoid) return sigmoid(x);
  if constexpr (F == Fn::tanh) return math::tanh(x);
  if constexpr (F == Fn::elu) return pick(x > zero, x, a * expm1_negative(x));
  if constexpr (F == Fn::celu) return pick(x > zero, x, a * expm1_negative(x / a));
  if constexpr (F == Fn::selu) {
    const A negative = A(1.6732632423543772) * expm1_negative(x);
    return A(1.0507009873554805) * pick(x > zero, x, negative);
  }
  if constexpr (F == Fn::softplus) {
    const A z = x * a;
    const A soft = (pick(z > zero, z, zero) + log1p_unit(math::exp(-absolute(z)))) / a;
    return pick((z > b) | (z != z), x, soft);
  }
  if constexpr (F == Fn::mish) {
    // tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2)
    const A e = math::exp(at_most(x, A(20)));
    const A n = e * (e + A(2));
    return x * quotient(n, n + A(2));
  }
  if constexpr (F == Fn::hardswish) {
    return x * at_most(at_least(x + A(3), zero), A(6)) / A(6);
  }
  if constexpr (F == Fn::logsigmoid) {
    const A y = pick(x < zero, x, zero) - log1p_unit(math::exp(-absolute(x)));
    return pick(x != x, x, y);
  }
  if constexpr (F == Fn::softsign) return x / (one + absolute(x));
  if constexpr (F == Fn::tanhshrink) return x - math::tanh(x);
  if constexpr (F == Fn::relu) return pick(x <= zero, zero, x);
  if constexpr (F == Fn::relu6) return pick(x <= zero, zero, at_most(x, A(6)));
  if constexpr (F == Fn::leaky_relu) return pick(x > zero, x, x * a);
  if constexpr (F == Fn::threshold) return pick(x <= a, b, x);
  if constexpr (F == Fn::hardtanh) return at_most(at_least(x, a), b);
  if constexpr (F == Fn::hardsigmoid) return at_most(at_least(x + A(3), zero), A(6)) / A(6);
  if constexpr (F == Fn::hardshrink) return pick((x >= -a) & (x <= a), zero, x);
  if constexpr (F == Fn::softshrink) {
    // The last branch multiplies so that NaN passes through.
    return pick(x > a, x - a, pick(x < -a, x + a, x * zero));
  }
  return x;
}

// f'(x) of the smooth functions, for stochastic codes and for the exact branch of a gated unit.
template <Fn F, class A>
SUBLIMATE_HD A derivative(A x, A a, A b) {
  using namespace sublimate::math;
  (void)a;
  (void)b;
  [[maybe_unused]] const A zero = A(0), one = A(1);
  if constexpr (F == Fn::gelu) {
    const A tail = x * math::exp(A(-0.5) * x * x) * A(0.39894228040143267794);
    return A(0.5) + centred_cdf(x) + pick(absolute(x) > A(1e30), zero, tail);
  }
  if constexpr (F == Fn::gelu_tanh) {
    // f = x sigmoid(z), z = 2 beta (x + kappa x^3); s (1 - s) = e / (1 + e)^2 with e = exp(-|z|),
    // without the cancellation of 1 - tanh^2.
    const A beta = A(2 * 0.79788456080286535588), kappa = A(0.044715);
    const A z = beta * (x + kappa * x * x * x);
    const A e = math::exp(-absolute(z));
    const A r = quotient(one, one + e);
    const A slope = x * (e * r * r) * (beta * (one + A(3) * kappa * x * x));
    return pick(z < zero, e * r, r) + pick(absolute(x) > A(1e6), zero, slope);
  }
  if constexpr (F == Fn::silu) {
    const A s = sigmoid(x);
    return s * (one + pick(absolute(x) > A(1e30), zero, x * (one - s)));
  }
  if constexpr (F == Fn::sigmoid || F == Fn::tanh) {
    // sigma(z) sigma(-z) = e / (1 + e)^2 with e = exp(-|z|); tanh'(x) = 4 of that at z = 2x.
    const A e = math::exp(-absolute(F == Fn::tanh ? A(2) * x : x));
    const A d = one + e;
    return quotient((F == Fn::tanh ? A(4) : one) * e, d * d);
  }
  if constexpr (F == Fn::elu) return pick(x > zero, one, a * math::exp(x));
  if constexpr (F == Fn::celu) return pick(x > zero, one, math::exp(x / a));
  if constexpr (F == Fn::selu) {
    const A negative = A(1.0507009873554805 * 1.6732632423543772) * math::exp(x);
    return pick(x > zero, A(1.0507009873554805), negative);
  }
  if constexpr (F == Fn::softplus) {
    const A z = x * a;
    return pick(z > b, one, sigmoid(z));
  }
  if constexpr (F == Fn::mish) {
    const A e = math::exp(at_most(x, A(20)));
    const A n = e * (e + A(2));
    const A t = quotient(n, n + A(2));
    const A s = quotient(e, e + one);
    // 1 - t^2 without cancellation: (1 - t)(1 + t), 1 - t = 2 / (n + 2).
    const A slope = x * s * quotient(A(2), n + A(2)) * (one + t);
    return t + pick(absolute(x) > A(1e30), zero, slope);
  }
  if constexpr (F == Fn::hardswish) {
    return pick(x <= A(-3), zero, pick(x >= A(3), one, x / A(3) + A(0.5)));
  }
  if constexpr (F == Fn::logsigmoid) return sigmoid(-x);
  if constexpr (F == Fn::softsign) {
    const A d = one + absolute(x);
    return one / (d * d);
  }
  if constexpr (F == Fn::tanhshrink) {
    const A t = math::tanh(x);
    return t * t;
  }
  return x;  // Fn::given
}

// Parameter a as torch compares it with elements of type T: lambda rounded to T in both functions
// of hardshrink and in the gradient of softshrink; everything else compares in the arithmetic type.
template <class T, class A>
SUBLIMATE_HD A value_parameter(int fn, A a) {
  return Fn(fn) == Fn::hardshrink ? round_to<T>(a) : a;
}
template <class T, class A>
SUBLIMATE_HD A bit_parameter(int fn, A a) {
  return Fn(fn) == Fn::hardshrink || Fn(fn) == Fn::softshrink ? round_to<T>(a) : a;
}

// Whether the gradient of an exact function takes the upper level: bool, or a Mask for a Vec.
template <Fn F, class A>
SUBLIMATE_HD auto exact_bit(A x, A a, A b) {
  (void)a;
  (void)b;
  [[maybe_unused]] const A zero = A(0);
  if constexpr (F == Fn::relu) return !(x <= zero);
  if constexpr (F == Fn::relu6) return !((x <= zero) | (x >= A(6)));
  if constexpr (F == Fn::leaky_relu) return x > zero;
  if constexpr (F == Fn::threshold) return !(x <= a);
  if constexpr (F == Fn::hardtanh) return !((x <= a) | (x >= b));
  if constexpr (F == Fn::hardsigmoid) return (x > A(-3)) & (x < A(3));
  if constexpr (F == Fn::hardshrink || F == Fn::softshrink) return !((x >= -a) & (x <= a));
}

// Calls visitor.template run<F>() for the run-time id; F is a compile-time constant inside, so the
// branch is taken once per block of elements and not once per element. False if there is no such
// id.
template <class Visitor>
SUBLIMATE_HD bool visit(int fn, Visitor&& visitor) {
  switch (Fn(fn)) {
#define SUBLIMATE_X(name, exact)      \
  case Fn::name:                      \
    visitor.template run<Fn::name>(); \
    return true;
    SUBLIMATE_FEWBIT_FUNCTIONS(SUBLIMATE_X)
#undef SUBLIMATE_X
    case Fn::given:
      visitor.template run<Fn::given>();
      return true;
  }
  return false;
}

// The same for gated units, which take three of them: much less code.
template <class Visitor>
SUBLIMATE_HD void visit_gated(int fn, Visitor&& visitor) {
  if (Fn(fn) == Fn::gelu) visitor.template run<Fn::gelu>();
  if (Fn(fn) == Fn::gelu_tanh) visitor.template run<Fn::gelu_tanh>();
  if (Fn(fn) == Fn::silu) visitor.template run<Fn::silu>();
}

// Largest tables a kernel accepts.
constexpr int MAX_BITS = 4;
constexpr int MAX_LEVELS = 1 << MAX_BITS;
constexpr int MAX_BORDERS = 255;
constexpr int GROUP = 32;  // elements per word of a bit plane

}  // namespace sublimate::fewbit
