// Fast Walsh-Hadamard transform of rows. A row that fits L1 is transformed there between one read
// and one write of memory. A longer one is a matrix of such lines: its lines are transformed, then
// its columns, a few registers of them at a time in the cache.

#include <cmath>

#include "common/parallel.h"
#include "randomized_linear/butterfly.h"
#include "randomized_linear/cpu.h"

namespace sublimate::randomized_linear::SUBLIMATE_ISA {
namespace {

constexpr int log2_of(int64_t n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

template <class A>
constexpr int LOG_LANES = log2_of(LANES<A>);
// Elements transformed in L1: 16 KiB.
template <class A>
constexpr int LINE = 16384 / int(sizeof(A));
constexpr int FIRST = 3;   // stages over registers in the pass that reads x
constexpr int STRIPS = 4;  // registers side by side in a pass over the columns of a long row

template <class T>
SUBLIMATE_HD Vector<arith_t<T>> load_padded(const T* x, int64_t left) {
  if (left >= lanes_of<T>) return load_lanes(x);
  return left > 0 ? load_some(x, int(left)) : Vector<arith_t<T>>{};
}

// `count` elements of x (a power of two, from LANES to LINE) to their transform in `line`; those
// from `left` on are zero.
template <class T>
void transform_line(const T* x, int64_t left, int64_t count, arith_t<T>* line) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>;
  const int log_registers = log2_of(count / L);
  const int first = std::min(log_registers, FIRST);
  with_log(first, [&](auto constant) {
    constexpr int log = constant.value;
    constexpr int64_t group = int64_t(L) << log;
    for (int64_t at = 0; at < count; at += group) {
      Vector<A> v[1 << log];
      if (at + group <= left) {
#pragma GCC unroll 16
        for (int i = 0; i < (1 << log); ++i) v[i] = load_lanes(x + at + i * L);
      } else {
        for (int i = 0; i < (1 << log); ++i) {
          v[i] = load_padded(x + at + i * L, left - at - i * L);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < (1 << log); ++i) v[i] = within_register<LOG_LANES<A>, A>(v[i]);
      across_registers<log>(v);
#pragma GCC unroll 16
      for (int i = 0; i < (1 << log); ++i) tile::store(line + at + i * L, v[i]);
    }
  });
  transform_strip(line, log_registers, first);
}

template <class T>
void write_line(const arith_t<T>* line, int64_t count, arith_t<T> scale, T* out) {
  constexpr int L = lanes_of<T>;
  for (int64_t c = 0; c < count; c += L) store_lanes(out + c, scale * tile::load(line + c));
}

// Rows shorter than a register, several in one.
template <int log, class T>
void short_rows(const Hadamard& h, int64_t begin, int64_t end) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>, together = L >> log;
  const T* x = static_cast<const T*>(h.x);
  T* out = static_cast<T*>(h.out);
  const A scale = A(h.scale);
  const bool packed = h.row_stride == h.padded && h.length == h.padded;
  for (int64_t row = begin; row < end; row += together) {
    const int n = int(std::min<int64_t>(together, end - row));
    Vector<A> v;
    if (packed && n == together) {
      v = load_lanes(x + row * h.row_stride);
    } else {
      T some[L] = {};
      for (int i = 0; i < n; ++i) {
        std::copy_n(x + (row + i) * h.row_stride, h.length, some + (i << log));
      }
      v = load_lanes(some);
    }
    v = scale * within_register<log, A>(v);
    if (n == together) {
      store_lanes(out + row * h.padded, v);
    } else {
      store_some(out + row * h.padded, v, n << log);
    }
  }
}

template <class T>
void short_rows(const Hadamard& h, int64_t begin, int64_t end) {
  constexpr int most = LOG_LANES<arith_t<T>>;
  with_log(log2_of(h.padded), [&](auto log) {
    if constexpr (log.value < most) short_rows<log.value, T>(h, begin, end);
  });
}

// Columns [left, right) of the lines of a long row, at `from` already transformed along the lines.
template <class T>
void transform_columns(const arith_t<T>* from, int log_lines, int64_t left, int64_t right,
                       arith_t<T> scale, arith_t<T>* tile, T* out) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>;
  const int64_t lines = int64_t(1) << log_lines;
  const int first = stages_of_pass(log_lines);
  for (int64_t column = left; column < right; column += STRIPS * L) {
    with_log(first, [&](auto constant) {
      constexpr int log = constant.value;
      for (int64_t line = 0; line < lines; line += 1 << log) {
        for (int s = 0; s < STRIPS; ++s) {
          const A* source = from + line * LINE<A> + column + s * L;
          Vector<A> v[1 << log];
#pragma GCC unroll 16
          for (int i = 0; i < (1 << log); ++i) v[i] = tile::load(source + i * LINE<A>);
          across_registers<log>(v);
          A* to = tile + (s * lines + line) * L;
#pragma GCC unroll 16
          for (int i = 0; i < (1 << log); ++i) tile::store(to + i * L, v[i]);
        }
      }
    });
    for (int s = 0; s < STRIPS; ++s) transform_strip(tile + s * lines * L, log_lines, first);
    for (int64_t line = 0; line < lines; ++line) {
      for (int s = 0; s < STRIPS; ++s) {
        store_lanes(out + line * LINE<A> + column + s * L,
                    scale * tile::load(tile + (s * lines + line) * L));
      }
    }
  }
}

// One row longer than a line. `whole` has room for it, or is null: the lines then go through out.
template <class T>
bool long_row(const Hadamard& h, const T* x, T* out, arith_t<T>* whole, int threads) {
  using A = arith_t<T>;
  A* middle = whole;
  if constexpr (std::is_same_v<T, A>) middle = out;
  const int64_t lines = h.padded / LINE<A>;
  parallel_for(lines, 1, GRAIN / LINE<A>, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * LINE<A>; at < end * LINE<A>; at += LINE<A>) {
      transform_line(x + at, h.length - at, LINE<A>, middle + at);
    }
  });
  bool failed = false;
  constexpr int64_t wide = STRIPS * LANES<A>;
  parallel_for(LINE<A>, wide, wide, threads, [&](int64_t begin, int64_t end) {
    const Scratch<A> tile(lines * wide);
    if (tile.get()) {
      transform_columns(middle, log2_of(lines), begin, end, A(h.scale), tile.get(), out);
    } else {
#pragma omp atomic write
      failed = true;
    }
  });
  return !failed;
}

template <class T>
int long_rows(const Hadamard& h) {
  using A = arith_t<T>;
  constexpr bool direct = std::is_same_v<T, A>;
  const T* x = static_cast<const T*>(h.x);
  T* out = static_cast<T*>(h.out);
  const auto rows = [&](int64_t begin, int64_t end, int threads) {
    const Scratch<A> whole(direct ? 0 : h.padded);
    bool good = direct || whole.get();
    for (int64_t row = begin; good && row < end; ++row) {
      good = long_row(h, x + row * h.row_stride, out + row * h.padded, whole.get(), threads);
    }
    return good;
  };
  bool failed = false;
  if (h.rows < h.exec.threads) {
    failed = !rows(0, h.rows, h.exec.threads);
  } else {
    parallel_for(h.rows, 1, 1, h.exec.threads, [&](int64_t begin, int64_t end) {
      if (!rows(begin, end, 1)) {
#pragma omp atomic write
        failed = true;
      }
    });
  }
  return failed ? kOutOfMemory : kOk;
}

template <class T>
int hadamard_as(const Hadamard& h) {
  using A = arith_t<T>;
  const int64_t grain = std::max<int64_t>(1, GRAIN / h.padded);
  if (h.padded < LANES<A>) {
    parallel_for(h.rows, LANES<A> / h.padded, grain, h.exec.threads,
                 [&](int64_t begin, int64_t end) { short_rows<T>(h, begin, end); });
    return kOk;
  }
  if (h.padded > LINE<A>) return long_rows<T>(h);
  const T* x = static_cast<const T*>(h.x);
  T* out = static_cast<T*>(h.out);
  parallel_for(h.rows, 1, grain, h.exec.threads, [&](int64_t begin, int64_t end) {
    alignas(64) A line[LINE<A>];
    for (int64_t row = begin; row < end; ++row) {
      transform_line(x + row * h.row_stride, h.length, h.padded, line);
      write_line(line, h.padded, A(h.scale), out + row * h.padded);
    }
  });
  return kOk;
}

}  // namespace

int hadamard(const Hadamard& h) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(hadamard_as, h); }

}  // namespace sublimate::randomized_linear::SUBLIMATE_ISA
