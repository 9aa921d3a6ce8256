// Per-element mathematics of the few-bit activations: f, f', and the exact one-bit predicates.
// One source for CPU, CUDA and emulator. Formulas and corner conventions are those of
// python/sublimate/fewbit/reference.py, which this file is tested against.
#pragma once

#include "common/math.h"

namespace sublimate::fewbit {

// Ids are positions in reference.FUNCTIONS. (name, exact)
#define SUBLIMATE_FEWBIT_FUNCTIONS(X)                                                       \
  X(gelu, 0) X(gelu_tanh, 0) X(silu, 0) X(sigmoid, 0) X(tanh, 0) X(elu, 0) X(celu, 0)       \
  X(selu, 0) X(softplus, 0) X(mish, 0) X(hardswish, 0) X(logsigmoid, 0) X(softsign, 0)      \
  X(tanhshrink, 0) X(relu, 1) X(relu6, 1) X(leaky_relu, 1) X(threshold, 1) X(hardtanh, 1)   \
  X(hardsigmoid, 1) X(hardshrink, 1) X(softshrink, 1)

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

// f(x). A is float or double; a and b are the function's parameters, unused ones ignored.
template <Fn F, class A>
SUBLIMATE_HD A value(A x, A a, A b) {
  using namespace sublimate::math;
  (void)a;
  (void)b;
  if constexpr (F == Fn::gelu) return x * (A(0.5) + centred_cdf(x));
  if constexpr (F == Fn::gelu_tanh) {
    const A inner = A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
    return A(0.5) * x * (A(1) + math::tanh(inner));
  }
  if constexpr (F == Fn::silu) return x / (A(1) + math::exp(-x));
  if constexpr (F == Fn::sigmoid) return A(1) / (A(1) + math::exp(-x));
  if constexpr (F == Fn::tanh) return math::tanh(x);
  if constexpr (F == Fn::elu) return x > A(0) ? x : a * expm1_negative(x);
  if constexpr (F == Fn::celu) return x > A(0) ? x : a * expm1_negative(x / a);
  if constexpr (F == Fn::selu) {
    const A negative = A(1.6732632423543772) * expm1_negative(x);
    return A(1.0507009873554805) * (x > A(0) ? x : negative);
  }
  if constexpr (F == Fn::softplus) {
    const A z = x * a;
    const A soft = ((z > A(0) ? z : A(0)) + log1p_unit(math::exp(-absolute(z)))) / a;
    return z > b || z != z ? x : soft;
  }
  if constexpr (F == Fn::mish) {
    // tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2)
    const A e = math::exp(x > A(20) ? A(20) : x);
    const A n = e * (e + A(2));
    return x * (n / (n + A(2)));
  }
  if constexpr (F == Fn::hardswish) {
    A gate = x + A(3);
    gate = gate < A(0) ? A(0) : gate;
    gate = gate > A(6) ? A(6) : gate;
    return x * gate / A(6);
  }
  if constexpr (F == Fn::logsigmoid) {
    const A low = x < A(0) ? x : A(0);
    const A y = low - log1p_unit(math::exp(-absolute(x)));
    return x != x ? x : y;
  }
  if constexpr (F == Fn::softsign) return x / (A(1) + absolute(x));
  if constexpr (F == Fn::tanhshrink) return x - math::tanh(x);
  if constexpr (F == Fn::relu) return x <= A(0) ? A(0) : x;
  if constexpr (F == Fn::relu6) return x <= A(0) ? A(0) : (x >= A(6) ? A(6) : x);
  if constexpr (F == Fn::leaky_relu) return x > A(0) ? x : x * a;
  if constexpr (F == Fn::threshold) return x <= a ? b : x;
  if constexpr (F == Fn::hardtanh) return x <= a ? a : (x >= b ? b : x);
  if constexpr (F == Fn::hardsigmoid) {
    A shifted = x + A(3);
    shifted = shifted < A(0) ? A(0) : shifted;
    shifted = shifted > A(6) ? A(6) : shifted;
    return shifted / A(6);
  }
  if constexpr (F == Fn::hardshrink) return x >= -a && x <= a ? A(0) : x;
  if constexpr (F == Fn::softshrink) {
    // The last branch multiplies so that NaN passes through.
    return x > a ? x - a : (x < -a ? x + a : x * A(0));
  }
  return x;
}

// f'(x) of the smooth functions, for stochastic codes and for the exact branch of a gated unit.
template <Fn F, class A>
SUBLIMATE_HD A derivative(A x, A a, A b) {
  using namespace sublimate::math;
  (void)a;
  (void)b;
  if constexpr (F == Fn::gelu) {
    const A tail = x * math::exp(A(-0.5) * x * x) * A(0.39894228040143267794);
    return A(0.5) + centred_cdf(x) + (absolute(x) > A(1e30) ? A(0) : tail);
  }
  if constexpr (F == Fn::gelu_tanh) {
    const A beta = A(0.79788456080286535588), kappa = A(0.044715);
    const A t = math::tanh(beta * (x + kappa * x * x * x));
    const A slope = x * (A(1) - t * t) * (beta * (A(1) + A(3) * kappa * x * x));
    return A(0.5) * (A(1) + t) + (absolute(t) == A(1) ? A(0) : A(0.5) * slope);
  }
  if constexpr (F == Fn::silu) {
    const A s = A(1) / (A(1) + math::exp(-x));
    const A tail = x * (A(1) - s);
    return s * (A(1) + (absolute(x) > A(1e30) ? A(0) : tail));
  }
  if constexpr (F == Fn::sigmoid || F == Fn::tanh) {
    // sigma(z) sigma(-z) = e / (1 + e)^2 with e = exp(-|z|); tanh'(x) = 4 of that at z = 2x.
    const A e = math::exp(-absolute(F == Fn::tanh ? A(2) * x : x));
    const A d = A(1) + e;
    return (F == Fn::tanh ? A(4) : A(1)) * e / (d * d);
  }
  if constexpr (F == Fn::elu) return x > A(0) ? A(1) : a * math::exp(x);
  if constexpr (F == Fn::celu) return x > A(0) ? A(1) : math::exp(x / a);
  if constexpr (F == Fn::selu) {
    const A negative = A(1.0507009873554805 * 1.6732632423543772) * math::exp(x);
    return x > A(0) ? A(1.0507009873554805) : negative;
  }
  if constexpr (F == Fn::softplus) {
    const A z = x * a;
    return z > b ? A(1) : A(1) / (A(1) + math::exp(-z));
  }
  if constexpr (F == Fn::mish) {
    const A e = math::exp(x > A(20) ? A(20) : x);
    const A n = e * (e + A(2));
    const A t = n / (n + A(2));
    const A s = e / (e + A(1));
    // 1 - t^2 without cancellation: (1 - t)(1 + t), 1 - t = 2 / (n + 2).
    const A slope = x * s * (A(2) / (n + A(2))) * (A(1) + t);
    return t + (absolute(x) > A(1e30) ? A(0) : slope);
  }
  if constexpr (F == Fn::hardswish) {
    return x <= A(-3) ? A(0) : (x >= A(3) ? A(1) : x / A(3) + A(0.5));
  }
  if constexpr (F == Fn::logsigmoid) return A(1) / (A(1) + math::exp(x));
  if constexpr (F == Fn::softsign) {
    const A d = A(1) + absolute(x);
    return A(1) / (d * d);
  }
  if constexpr (F == Fn::tanhshrink) {
    const A t = math::tanh(x);
    return t * t;
  }
  return x;  // Fn::given
}

// Parameter a as torch compares it with elements of type T: lambda rounded to T in both functions of
// hardshrink and in the gradient of softshrink; everything else compares in the arithmetic type.
template <class T, class A>
SUBLIMATE_HD A value_parameter(int fn, A a) {
  return Fn(fn) == Fn::hardshrink ? round_to<T>(a) : a;
}
template <class T, class A>
SUBLIMATE_HD A bit_parameter(int fn, A a) {
  return Fn(fn) == Fn::hardshrink || Fn(fn) == Fn::softshrink ? round_to<T>(a) : a;
}

// The bit of an exact function: whether the gradient takes the upper level.
template <Fn F, class A>
SUBLIMATE_HD bool exact_bit(A x, A a, A b) {
  (void)a;
  (void)b;
  if constexpr (F == Fn::relu) return !(x <= A(0));
  if constexpr (F == Fn::relu6) return !(x <= A(0) || x >= A(6));
  if constexpr (F == Fn::leaky_relu) return x > A(0);
  if constexpr (F == Fn::threshold) return !(x <= a);
  if constexpr (F == Fn::hardtanh) return !(x <= a || x >= b);
  if constexpr (F == Fn::hardsigmoid) return x > A(-3) && x < A(3);
  if constexpr (F == Fn::hardshrink || F == Fn::softshrink) return !(x >= -a && x <= a);
  return false;
}

// Calls visitor.template run<F>() for the run-time id; F is a compile-time constant inside, so the
// branch is taken once per block of elements and not once per element. False if there is no such id.
template <class Visitor>
SUBLIMATE_HD bool visit(int fn, Visitor&& visitor) {
  switch (Fn(fn)) {
#define SUBLIMATE_X(name, exact)         \
  case Fn::name:                         \
    visitor.template run<Fn::name>();    \
    return true;
    SUBLIMATE_FEWBIT_FUNCTIONS(SUBLIMATE_X)
#undef SUBLIMATE_X
    case Fn::given:
      visitor.template run<Fn::given>();
      return true;
  }
  return false;
}

// Largest tables a kernel accepts.
constexpr int MAX_BITS = 4;
constexpr int MAX_LEVELS = 1 << MAX_BITS;
constexpr int MAX_BORDERS = 255;
constexpr int GROUP = 32;  // elements per word of a bit plane

}  // namespace sublimate::fewbit
