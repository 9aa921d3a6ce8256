// Host functions of the emulator's own tests. Each returns a status of common/error.h.
#pragma once

#include <cstdint>

namespace emulator_tests {

// out[b] = sum of x[256 b .. 256 b + 255]: shuffles, then static shared memory.
int block_sum(const float* x, int64_t n, float* out);
// Word w holds (x[32 w + lane] > 0) in bit `lane`.
int ballot_pack(const int* x, int64_t n, uint32_t* words);
// Inclusive prefix sums of every 256 elements.
int block_scan(const int* x, int64_t n, int* out);
// Histogram of x in [0, bins) over a dynamic shared table, merged by global atomics.
int histogram(const int* x, int64_t n, int bins, int* out);
// out[0] = sum of x, in two phases of one cooperative launch. `partial`: one double per block.
int grid_sum(const float* x, int64_t n, double* partial, double* out, int* blocks);
// out[i] = x reversed within each row of 64, through static and dynamic shared memory, templated.
int reverse_rows_float(const float* x, int64_t rows, float* out);
int reverse_rows_double(const double* x, int64_t rows, double* out);
// out[z][y][x] = linear rank of the thread as a 3-D grid of 3-D blocks sees it.
int ranks(int* out, const int grid[3], const int block[3]);
// Seven results per pair in bits: a+b, a-b, a*b, a/b, fma(a, b, a), min, max; [7, n].
int half_arithmetic(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out);
int bfloat_arithmetic(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out);
// Conversions: fp32 and fp64 to half and bf16 bits, [4, n] (fp32 half, fp32 bf16, fp64 ...).
int narrow(const float* x, const double* y, int64_t n, uint16_t* out);
// One warp: every other collective and intrinsic, 32 results each; see the test for the rows.
int collectives(const int* x, int64_t* out);
constexpr int kCollectiveRows = 24;
// Float atomics: out = {sum by atomicAdd, max by a compare-and-swap loop, exchange count}.
int float_atomics(const float* x, int64_t n, float* out);
// Launch with a raw configuration and an empty kernel; `grant` > 0 calls cudaFuncSetAttribute.
int configured(const int64_t grid[3], const int64_t block[3], int64_t shared_bytes, int64_t grant,
               bool cooperative);
// Elements that a kernel with early return, no barrier and one store per thread fills.
int fill(int* out, int64_t n);

// Planted faults by name, each with a correct twin. x and out: 256 ints.
int fault(const char* name, bool fixed, const int* x, int* out);

}  // namespace emulator_tests
