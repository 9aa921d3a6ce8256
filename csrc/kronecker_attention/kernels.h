// Signatures of the Kronecker attention kernels, declared once for every target.
//
// A query attends to tuples of keys, one of each key set: X[i, j, k, ...] = scale sum_a q[i, a]
// k1[j, a] k2[k, a] ... Query head h reads head h / (heads / kv_heads) of the key sets. Products
// and sums are in the arithmetic type (fp64 for fp64 elements, else fp32), rounded once. Every
// function returns a status (common/error.h).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/error.h"
#include "common/exec.h"

namespace sublimate::kronecker_attention {

// A tensor [batch, heads, length, channels] with consecutive channels; strides in elements. The
// wrapper writes these as rows of an int64 table.
struct Operand {
  int64_t address;
  int64_t batch, head, row;  // strides
  int64_t length;
};
static_assert(sizeof(Operand) == 5 * sizeof(int64_t));

constexpr int64_t MAX_CHANNELS = 128;
constexpr int MAX_SETS = 7;     // key sets of a polynomial: orders 3 to 8
constexpr int MAX_DEGREE = 12;  // of a polynomial

// How the logits are made of the three rows.
enum class Form : int {
  kronecker = 0,  // scale sum_a q_a k1_a k2_a
  strassen = 1,   // scale (q . k1 + k1 . k2 + k2 . q)
};

// Sizes that all kernels share. A window w > 0 allows i - w < j <= i; 0 is none.
struct Shape {
  int dtype;
  int64_t batch, heads, kv_heads, channels, value_channels;
  double scale;
  bool causal;
};

// Exact attention of order 3. operands: q, k1, k2, v1, v2, out.
struct Attention {
  Shape shape;
  int form;
  const Operand* operands;
  const uint8_t *mask1, *mask2;  // [batch, length] of the key set, or null: all
  int64_t window1, window2;
  void* lse;  // [batch, heads, n], arithmetic type
  Exec exec;
};

// operands: q, k1, k2, v1, v2, dout, dq, dk1, dk2, dv1, dv2.
struct AttentionBackward {
  Shape shape;
  int form;
  const Operand* operands;
  const uint8_t *mask1, *mask2;
  int64_t window1, window2;
  const void *lse, *delta;  // [batch, heads, n], arithmetic type
  Exec exec;
};

// Sums over tuples of p(X) times values, and of p(X); p(x) = sum_j c_j x^j. operands: q, the keys
// and the values of `sets` key sets.
struct Polynomial {
  Shape shape;
  int sets, degree;
  const Operand* operands;
  const int64_t* masks;      // addresses of `sets` masks [batch, length]; null: none at all
  const int64_t* windows;    // one for each set
  const void* coefficients;  // [batch, heads, degree + 1], arithmetic type
  void* numerator;           // [batch, heads, n, value_channels], arithmetic type
  void* denominator;         // [batch, heads, n]
  Exec exec;
};

// operands: q, keys, values, dq, gradients of the keys and of the values.
struct PolynomialBackward {
  Shape shape;
  int sets, degree;
  const Operand* operands;
  const int64_t* masks;
  const int64_t* windows;
  const void* coefficients;
  const void *dnumerator, *ddenominator;  // contiguous, arithmetic type
  Exec exec;
};

// Every target refuses the same arguments before it reads anything.
inline int check(const Shape& s, const Operand* operands) {
  if (s.batch < 0 || s.heads < 0 || s.kv_heads < 0 || !operands) return kBadArgument;
  if (s.heads > 0 && (s.kv_heads == 0 || s.heads % s.kv_heads != 0)) return kBadArgument;
  const int64_t widest = s.channels > s.value_channels ? s.channels : s.value_channels;
  if (s.channels < 1 || s.value_channels < 1 || widest > MAX_CHANNELS) return kBadArgument;
  return kOk;
}
inline int check_form(int form, int64_t window1, int64_t window2) {
  return (form == 0 || form == 1) && window1 >= 0 && window2 >= 0 ? kOk : kBadArgument;
}
inline int check_sets(int sets, int degree) {
  return sets >= 1 && sets <= MAX_SETS && degree >= 0 && degree <= MAX_DEGREE ? kOk : kBadArgument;
}
inline int check(const Attention& a) {
  const int status = check(a.shape, a.operands);
  return status ? status : check_form(a.form, a.window1, a.window2);
}
inline int check(const AttentionBackward& a) {
  const int status = check(a.shape, a.operands);
  return status ? status : check_form(a.form, a.window1, a.window2);
}
inline int check(const Polynomial& p) {
  const int status = check(p.shape, p.operands);
  return status ? status : check_sets(p.sets, p.degree);
}
inline int check(const PolynomialBackward& p) {
  const int status = check(p.shape, p.operands);
  return status ? status : check_sets(p.sets, p.degree);
}

// Whether the queries' positions matter.
template <class P>
inline bool is_bounded(const P& p) {
  bool bounded = p.shape.causal;
  for (int m = 0; m < p.sets; ++m) bounded |= p.windows[m] > 0;
  return bounded;
}

}  // namespace sublimate::kronecker_attention

// Calls kernel<T>(p) for the element type of p, after the checks.
#define SUBLIMATE_KRONECKER_ATTENTION_RUN(kernel, p) \
  if (const int status = check(p)) return status;    \
  switch (DType((p).shape.dtype)) {                  \
    case DType::f32:                                 \
      return kernel<float>(p);                       \
    case DType::f16:                                 \
      return kernel<half_t>(p);                      \
    case DType::bf16:                                \
      return kernel<bfloat_t>(p);                    \
    case DType::f64:                                 \
      return kernel<double>(p);                      \
  }                                                  \
  return kBadDtype

#define SUBLIMATE_DECLARE_KRONECKER_ATTENTION(target) \
  namespace sublimate::kronecker_attention::target {  \
  int attention(const Attention&);                    \
  int attention_backward(const AttentionBackward&);   \
  int polynomial(const Polynomial&);                  \
  int polynomial_backward(const PolynomialBackward&); \
  }
