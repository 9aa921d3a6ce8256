// Signatures of the dense multicut kernels, declared once for every target (the CPU levels, CUDA).
//
// Nodes of `instances` independent instances lie one after the other: rows offsets[b] ..
// offsets[b + 1] of features belong to instance b, and only pairs within an instance exist. The
// pair (i, j) is worth s_ij = <x_i, x_j>_q - alpha w_i w_j; positive attracts, cutting it costs
// s_ij;
// <,>_q counts the last q = `negative` coordinates negatively. Features are [rows, dims] and
// contiguous, fp32 or fp64; that dtype is also that of weights, values and gains, and the one
// computed in (T below). weights == null: ones.
//
// Clusters of best_cluster and move are slots: instance b owns slots slot_offsets[b] ..
// slot_offsets[b + 1], an empty one has count 0, and sum and mass exactly 0, so that its value is
// the 0 of a cluster of one's own. Their state is fp64 for any T: sum[c] of member features,
// mass[c] of member weights.
//
// Rules that every target keeps, so that labels agree:
// - s_ij and s_ji have the same bits. On targets with fused multiply-add, fp32 and fp64 values are
// one
//   chain over the coordinates from 0, then the term of alpha, as fma(-+u_i, u_j, sum) with
//   u = T(sqrt |alpha|) * w. (No fma: the same order with two roundings.)
// - Candidates are ordered by (value, then lower index). NaN goes before every number in topk.
// - The result does not depend on the number of threads.
// Every function returns a status (common/error.h). Arrays of int64 labels, indices and slots are
// global: they count over all instances.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/error.h"
#include "common/exec.h"

namespace sublimate::multicut {

// Scratch memory where the kernel runs, from the caller: csrc allocates nothing on a device. The
// CPU ignores it. More than a kernel needs buys parallelism; less than it needs is kBadArgument.
struct Work {
  void* data;  // aligned to 16 bytes
  int64_t bytes;
};

// The instances' nodes and what a pair of them is worth.
struct Nodes {
  int dtype;  // DType: f32 or f64
  const void* features;
  const void* weights;  // (rows,) or null
  int64_t rows, dims;
  const int64_t* offsets;  // (instances + 1,)
  int64_t instances;
  double alpha;
  int64_t negative;
};

// The k best columns of each row. other_offsets == null: columns are the nodes themselves.
// Otherwise they are rows of `other` with offsets of their own, and row i of instance b meets
// instance b's.
struct TopK {
  Nodes nodes;
  const void* other;          // (columns, dims)
  const void* other_weights;  // (columns,) or null
  int64_t columns;
  const int64_t* other_offsets;  // (instances + 1,) or null
  int64_t k;
  int64_t self;      // column `self + i` is row i itself and is left out; < 0: no such column
  void* values;      // (rows, k) T descending; -inf where an instance has fewer columns
  int64_t* indices;  // (rows, k); -1 there
  Work work;         // (sizeof(T) + 8) rows k for each share of the columns, from two on
  Exec exec;
};

// sum over pairs i < j of min(0, s_ij), for each instance; fixed order of summation.
struct NegativeSum {
  Nodes nodes;
  double* sums;  // (instances,)
  Work work;     // 8 rows for each share of the columns
  Exec exec;
};

// Sums, masses and member counts of labels in [0, clusters), members added in ascending order.
struct Contract {
  int dtype;
  const void* features;
  const void* weights;
  int64_t rows, dims;
  const int64_t* labels;  // (rows,)
  int64_t clusters;
  const int64_t* members;  // (rows,) nodes by label, then in order; CUDA only, the CPU takes null
  double* sums;            // (clusters, dims)
  double* masses;          // (clusters,)
  int64_t* counts;         // (clusters,)
  Exec exec;
};

// The slots of a labelling and their state; labels are slots.
struct Clusters {
  int64_t* labels;  // (rows,)
  double* sums;     // (slots, dims)
  double* masses;   // (slots,)
  int64_t* counts;  // (slots,)
  int64_t slots;
  const int64_t* offsets;  // (instances + 1,)
};

// For each node the best slot other than its own, by value(c) = <x_i, S_c>_q - alpha w_i m_c,
// computed in T with S and m rounded to T; gain = value(target) - value(own without i), where the
// latter is 0 if i is alone. Without another slot: target -1, gain -inf. Reads the clusters only.
struct BestCluster {
  Nodes nodes;
  Clusters clusters;
  int64_t* target;  // (rows,)
  void* gain;       // (rows,) T
  Exec exec;
};

// Moves nodes one after the other, each re-checked in fp64 against the clusters as they are by
// then. A node i of slot c with target t: if value(t) < 0 (and t is not empty), t becomes the
// instance's lowest empty slot, of value 0, or the move is dropped if there is none; nodes alone in
// their slot do not move to empty slots. The move happens if value(t) - value(c without i) > 1e-10
// (|value(t)| + |value(c without i)|). A slot that empties is set to exactly 0. Changes `clusters`
// in place. Instances are independent of one another.
struct Move {
  Nodes nodes;
  Clusters clusters;
  const int64_t* order;          // (count,) nodes, grouped by instance
  const int64_t* order_offsets;  // (instances + 1,) into order
  const int64_t* target;         // (rows,) slots, read at the nodes of order
  int64_t* moved;                // (instances,) number of moves made
  Exec exec;
};

// Exact greedy additive edge contraction: merge the pair of clusters (i < j, each named by its
// lowest member) of largest s > 0, ties by lower i, then lower j, until none is positive. Costs are
// computed in T from sums held in fp64 and rounded to T. labels[v]: lowest member of v's cluster.
// Merge number t of instance b stands in row offsets[b] + t of merges and costs; rows after the
// last are -1 and 0.
struct Gaec {
  Nodes nodes;
  int64_t* labels;  // (rows,)
  int64_t* merges;  // (rows, 2)
  void* costs;      // (rows,) T
  Work work;        // gaec_work(...) bytes
  Exec exec;
};

// Bytes of Gaec::work: sums and their rounded transpose, and some words for each row and block.
inline int64_t gaec_work(int64_t rows, int64_t dims) {
  return rows * dims * 16 + rows * 64 + (int64_t(1) << 20);
}

// Kernighan-Lin chains on pairs of clusters: moves of single nodes between the two in the order of
// largest gain, each node once, the best prefix kept; or their union, if better; or, for one
// cluster and an empty one, a split. Each cluster meets the `neighbors` clusters of largest mean
// value s(A, B) / (m_A m_B) (all if it is 0), pairs without a change since the last try are passed
// over, for at most `rounds` rounds or until a round improves nothing. labels in and out: lowest
// member.
constexpr int64_t PATIENCE = 100;

struct KernighanLin {
  Nodes nodes;
  int64_t* labels;  // (rows,) in and out
  int64_t neighbors;
  int64_t rounds;
  double* gains;  // (instances,) by how much the objective fell
  Exec exec;
};

// Greedy contraction along given edges only: merge the two clusters of largest s > 0 among those
// that an edge joins, ties by lower, then higher lowest member, until none is positive. Values in
// fp64 from exact sums. labels[v]: lowest member of v's cluster.
struct Lazy {
  Nodes nodes;
  const int64_t* neighbors;  // (rows, neighbors_per_node) rows of the same instance, or -1
  int64_t neighbors_per_node;
  int64_t* labels;  // (rows,)
  Exec exec;
};

// ---------------------------------------------- refusals, the same for every target

inline int check(const Nodes& n) {
  if (DType(n.dtype) != DType::f32 && DType(n.dtype) != DType::f64) return kBadDtype;
  if (n.rows < 0 || n.dims < 0 || n.instances < 0 || !n.offsets) return kBadArgument;
  if (n.negative < 0 || n.negative > n.dims) return kBadArgument;
  return n.alpha - n.alpha == 0 ? kOk : kBadArgument;
}
inline int check(const TopK& k) {
  if (const int status = check(k.nodes)) return status;
  if (k.k < 1 || k.columns < 0) return kBadArgument;
  return !k.other_offsets && k.columns != k.nodes.rows ? kBadArgument : kOk;
}
inline int check(const NegativeSum& k) { return check(k.nodes); }
inline int check(const Contract& k) {
  if (DType(k.dtype) != DType::f32 && DType(k.dtype) != DType::f64) return kBadDtype;
  return k.rows < 0 || k.dims < 0 || k.clusters < 0 ? kBadArgument : kOk;
}
inline int check(const BestCluster& k) {
  if (const int status = check(k.nodes)) return status;
  return k.clusters.slots < 0 || !k.clusters.offsets ? kBadArgument : kOk;
}
inline int check(const Move& k) {
  if (const int status = check(k.nodes)) return status;
  return k.clusters.slots < 0 || !k.clusters.offsets || !k.order_offsets ? kBadArgument : kOk;
}
inline int check(const Gaec& k) { return check(k.nodes); }
inline int check(const Lazy& k) {
  if (const int status = check(k.nodes)) return status;
  return k.neighbors_per_node < 1 ? kBadArgument : kOk;
}
inline int check(const KernighanLin& k) {
  if (const int status = check(k.nodes)) return status;
  return k.neighbors < 0 || k.rounds < 0 ? kBadArgument : kOk;
}

}  // namespace sublimate::multicut

// Calls kernel<T>(k) for the element type of k, after the checks.
#define SUBLIMATE_MULTICUT_RUN(kernel, k, type)   \
  if (const int status = check(k)) return status; \
  return DType(type) == DType::f64 ? kernel<double>(k) : kernel<float>(k)

#define SUBLIMATE_DECLARE_MULTICUT(target) \
  namespace sublimate::multicut::target {  \
  int topk(const TopK&);                   \
  int negative_sum(const NegativeSum&);    \
  int contract(const Contract&);           \
  int best_cluster(const BestCluster&);    \
  int move(const Move&);                   \
  int gaec(const Gaec&);                   \
  int kernighan_lin(const KernighanLin&);  \
  int lazy(const Lazy&);                   \
  }
