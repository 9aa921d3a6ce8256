// Fast Walsh-Hadamard transform of rows. A row that fits L1 is transformed there between one read
// and one write of memory. A longer one is a matrix of such lines: its lines are transformed, then
// its columns, a few registers of them at a time in the cache.

#include <cmath>

#include "common/parallel.h"
#include "randomized_linear/butterfly.h"
#include "randomized_linear/cpu.h"

namespace sublimate::randomized_linear::SUBLIMATE_ISA {
namespace {

constexpr int log2_of(int64_t n) { return 63 - __builtin_clzll(uint64_t(n)); }

template <class A>
constexpr int LOG_LANES = log2_of(LANES<A>);
// Elements transformed in L1: 16 KiB.
template <class A>
constexpr int LINE = 16384 / int(sizeof(A));
// Distance of the lines of a long row in scratch memory: not a power of two, so that a column of
// them does not fall into a few sets of the cache.
template <class A>
constexpr int PITCH = LINE<A> + 4 * LANES<A>;
constexpr int FIRST = RADIX;  // stages over registers in the pass that reads x
constexpr int STRIPS = 4;     // registers side by side in a pass over the columns of a long row

template <class T>
SUBLIMATE_HD Vector<arith_t<T>> load_padded(const T* x, int64_t left) {
  if (left >= lanes_of<T>) return load_lanes(x);
  return left > 0 ? load_some(x, int(left)) : Vector<arith_t<T>>{};
}

// The stages within `registers` registers at a time, 2^log of which are a row or a part of it.
template <int log, int registers, class T>
SUBLIMATE_HD void first_pass(const T* x, int64_t left, int64_t count, arith_t<T>* line,
                             Ahead& ahead) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>;
  for (int64_t at = 0; at < count; at += registers * L) {
    ahead.step();
    Vector<A> v[registers];
    if (at + registers * L <= left) {
#pragma GCC unroll 16
      for (int i = 0; i < registers; ++i) v[i] = load_lanes(x + at + i * L);
    } else {
      for (int i = 0; i < registers; ++i) {
        v[i] = load_padded(x + at + i * L, left - at - i * L);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < registers; ++i) v[i] = within_register<LOG_LANES<A>, A>(v[i]);
#pragma GCC unroll 16
    for (int i = 0; i < registers; i += 1 << log) across_registers<log>(v + i);
#pragma GCC unroll 16
    for (int i = 0; i < registers; ++i) tile::store(line + at + i * L, v[i]);
  }
}

// Rows of `length` elements (a power of two, from LANES to LINE), `count` elements in all, to their
// transforms in `line`; those from `left` on are zero. More than one row only if a row is
// transformed in the first pass.
template <class T>
void transform_line(const T* x, int64_t left, int64_t length, int64_t count, arith_t<T>* line,
                    Ahead& ahead) {
  const int log_registers = log2_of(length / LANES<arith_t<T>>);
  const int first = std::min(log_registers, FIRST);
  with_log(first, [&](auto constant) {
    constexpr int log = std::min<int>(constant.value, FIRST);
    if (count > length) {
      first_pass<log, 1 << FIRST>(x, left, count, line, ahead);
    } else {
      first_pass<log, 1 << log>(x, left, count, line, ahead);
    }
  });
  transform_strip(line, log_registers, first, ahead);
}

// Calls of Ahead::step in transform_line of one row of `length` elements, and in write_line.
template <class A>
int64_t steps_of_line(int64_t length) {
  const int log_registers = log2_of(length / LANES<A>);
  int done = std::min(log_registers, FIRST);
  int64_t steps = int64_t(1) << (log_registers - done);
  while (done < log_registers) {
    const int stages = stages_of_pass(log_registers - done);
    steps += int64_t(1) << (log_registers - stages);
    done += stages;
  }
  return steps;
}
template <class A>
constexpr int64_t steps_of_writing(int64_t count) {
  return count / (2 * LANES<A>);
}

// scale * line, rounded, to out. With `stream` the writes bypass the caches (common/vec.h).
template <class T>
void write_line(const arith_t<T>* line, int64_t count, arith_t<T> scale, T* out, bool stream,
                Ahead& ahead) {
  constexpr int L = lanes_of<T>;
  int64_t c = 0;
  for (; c + 2 * L <= count; c += 2 * L) {
    ahead.step();
    write_pair(out + c, scale * tile::load(line + c), scale * tile::load(line + c + L), stream);
  }
  for (; c < count; c += L) store_lanes(out + c, scale * tile::load(line + c));
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
// Few lines: in registers.
template <int log, class T>
void transform_few(const arith_t<T>* from, int64_t left, int64_t right, arith_t<T> scale, T* out,
                   bool stream, Ahead& ahead) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>, lines = 1 << log;
  for (int64_t column = left; column < right; column += 2 * L) {
    for (int i = 0; i < lines; ++i) ahead.step();
    Vector<A> v[2][lines];
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
      for (int i = 0; i < lines; ++i) {
        v[half][i] = tile::load(from + i * PITCH<A> + column + half * L);
      }
      across_registers<log>(v[half]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lines; ++i) {
      write_pair(out + i * LINE<A> + column, scale * v[0][i], scale * v[1][i], stream);
    }
  }
}

// Many lines: STRIPS registers of each side by side, in `tile`.
template <class T>
void transform_many(const arith_t<T>* from, int log_lines, int64_t left, int64_t right,
                    arith_t<T> scale, arith_t<T>* tile, T* out, bool stream, Ahead& ahead) {
  using A = arith_t<T>;
  constexpr int L = LANES<A>;
  const int64_t lines = int64_t(1) << log_lines;
  const int first = stages_of_pass(log_lines);
  for (int64_t column = left; column < right; column += STRIPS * L) {
    with_log(first, [&](auto constant) {
      constexpr int log = constant.value;
      for (int64_t line = 0; line < lines; line += 1 << log) {
        for (int s = 0; s < STRIPS; ++s) {
          const A* source = from + line * PITCH<A> + column + s * L;
          Vector<A> v[1 << log];
#pragma GCC unroll 16
          for (int i = 0; i < (1 << log); ++i) v[i] = tile::load(source + i * PITCH<A>);
          across_registers<log>(v);
          A* to = tile + (s * lines + line) * L;
#pragma GCC unroll 16
          for (int i = 0; i < (1 << log); ++i) tile::store(to + i * L, v[i]);
        }
      }
    });
    for (int s = 0; s < STRIPS; ++s) transform_strip(tile + s * lines * L, log_lines, first, ahead);
    for (int64_t line = 0; line < lines; ++line) {
      const A* row = tile + line * L;
      for (int s = 0; s < STRIPS; s += 2) {
        __builtin_prefetch(from + line * PITCH<A> + column + (STRIPS + s) * L);
        __builtin_prefetch(from + line * PITCH<A> + column + (STRIPS + s + 1) * L);
        write_pair(out + line * LINE<A> + column + s * L, scale * tile::load(row + s * lines * L),
                   scale * tile::load(row + (s + 1) * lines * L), stream);
      }
    }
  }
}

template <class T>
bool transform_columns(const Hadamard& h, const arith_t<T>* from, int64_t left, int64_t right,
                       T* out, bool stream, Ahead ahead) {
  using A = arith_t<T>;
  const A scale = A(h.scale);
  const int log_lines = log2_of(h.padded / LINE<A>);
  if (log_lines <= RADIX) {
    with_log(log_lines, [&](auto log) {
      transform_few<log.value>(from, left, right, scale, out, stream, ahead);
    });
    return true;
  }
  const Scratch<A> tile((STRIPS * LANES<A>) << log_lines);
  if (!tile.get()) return false;
  transform_many(from, log_lines, left, right, scale, tile.get(), out, stream, ahead);
  return true;
}

// One row longer than a line; `whole` has room for it. While it is transformed, `next`, the row
// after it, is read as far as a part of a usual second-level cache goes: where all of it fits, the
// first half during the lines and the rest during the columns; else each line during the one
// before it, and the start of `next` during the columns.
template <class T>
bool long_row(const Hadamard& h, const T* x, T* out, arith_t<T>* whole, int threads, bool stream,
              const T* next) {
  using A = arith_t<T>;
  constexpr int64_t line = LINE<A>, wide = STRIPS * LANES<A>;
  const int64_t lines = h.padded / line;
  const int64_t fitting = std::min<int64_t>(h.length, (256 << 10) / sizeof(T));
  const int64_t early = next && fitting == h.length ? fitting / 2 : 0;
  Ahead rest = Ahead::spread(next, early, lines * steps_of_line<A>(line));
  parallel_for(lines, 1, GRAIN / line, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * line, after = at + line;
      Ahead one =
          Ahead::spread(x + after, std::min(line, h.length - after), steps_of_line<A>(line));
      transform_line(x + at, h.length - at, line, line, whole + i * PITCH<A>, early ? rest : one);
    }
  });
  bool failed = false;
  parallel_for(line, wide, wide, threads, [&](int64_t begin, int64_t end) {
    const Ahead ahead =
        Ahead::spread(next + early, next ? fitting - early : 0, steps_of_writing<A>(h.padded));
    if (!transform_columns(h, whole, begin, end, out, stream, ahead)) {
#pragma omp atomic write
      failed = true;
    }
    end_streaming(stream);
  });
  return !failed;
}

template <class T>
int long_rows(const Hadamard& h, bool stream) {
  const T* x = static_cast<const T*>(h.x);
  T* out = static_cast<T*>(h.out);
  const auto rows = [&](int64_t begin, int64_t end, int threads) {
    using A = arith_t<T>;
    const Scratch<A> whole(h.padded / LINE<A> * PITCH<A>);
    bool good = whole.get();
    for (int64_t r = begin; good && r < end; ++r) {
      const T* row = x + r * h.row_stride;
      const T* next = threads == 1 && r + 1 < end ? row + h.row_stride : nullptr;
      good = long_row(h, row, out + r * h.padded, whole.get(), threads, stream, next);
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
  const T* x = static_cast<const T*>(h.x);
  T* out = static_cast<T*>(h.out);
  const bool stream = worth_streaming(out, h.rows * h.padded * int64_t(sizeof(T)));
  if (h.padded < LANES<A>) {
    parallel_for(h.rows, LANES<A> / h.padded, grain, h.exec.threads,
                 [&](int64_t begin, int64_t end) { short_rows<T>(h, begin, end); });
    return kOk;
  }
  if (h.padded > LINE<A>) return long_rows<T>(h, stream);
  // Rows that follow one another and need one pass each go through it together.
  const bool packed = h.row_stride == h.padded && h.length == h.padded;
  const bool one_pass = h.padded <= int64_t(LANES<A>) << FIRST;
  const int64_t together = packed && one_pass ? LINE<A> / h.padded : 1;
  parallel_for(h.rows, together, grain, h.exec.threads, [&](int64_t begin, int64_t end) {
    alignas(64) A line[LINE<A>];
    for (int64_t row = begin; row < end; row += together) {
      const int64_t count = std::min(together, end - row) * h.padded;
      const T* from = x + row * h.row_stride;
      const int64_t after = row + together >= end ? 0 : together > 1 ? count : h.length;
      Ahead ahead = Ahead::spread(
          from + together * h.row_stride, after,
          together > 1 ? count / (int64_t(LANES<A>) << FIRST) : steps_of_line<A>(h.padded));
      transform_line(from, together > 1 ? count : h.length, h.padded, count, line, ahead);
      write_line(line, count, A(h.scale), out + row * h.padded, stream, ahead);
    }
    end_streaming(stream);
  });
  return kOk;
}

}  // namespace

int hadamard(const Hadamard& h) { SUBLIMATE_RANDOMIZED_LINEAR_RUN(hadamard_as, h); }

}  // namespace sublimate::randomized_linear::SUBLIMATE_ISA
