// The test kernels as a program, for the sanitized builds: `main all` checks every kernel against a
// plain loop, `main fault NAME 0|1` runs one planted fault (0) or its correct twin (1).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "kernels.h"

using namespace emulator_tests;

namespace {

void require(bool truth, const char* what) {
  if (truth) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}
void ok(int status, const char* what) {
  if (status == 0) return;
  std::fprintf(stderr, "%s: %s\n", what, sublimate::status_text(status).c_str());
  std::exit(1);
}

int all() {
  const int n = 5000;
  std::vector<float> x(n);
  std::vector<int> k(n);
  for (int i = 0; i < n; ++i) x[i] = float(i * 7919 % 1013) - 500, k[i] = i * 31 % 97 - 40;

  std::vector<float> sums((n + 255) / 256);
  ok(block_sum(x.data(), n, sums.data()), "block_sum");
  double total = 0;
  for (float s : sums) total += s;
  double expected = 0;
  for (float v : x) expected += v;  // integers: exact
  require(total == expected, "block_sum");

  std::vector<uint32_t> words((n + 31) / 32);
  ok(ballot_pack(k.data(), n, words.data()), "ballot_pack");
  for (int i = 0; i < n; ++i) require((words[i / 32] >> i % 32 & 1) == (k[i] > 0), "ballot_pack");

  std::vector<int> scanned(n);
  ok(block_scan(k.data(), n, scanned.data()), "block_scan");
  for (int i = 0, run = 0; i < n; ++i) {
    run = i % 256 ? run + k[i] : k[i];
    require(scanned[i] == run, "block_scan");
  }

  std::vector<int> bins(97), counts(97), shifted(n);
  for (int i = 0; i < n; ++i) ++counts[shifted[i] = k[i] + 40];
  ok(histogram(shifted.data(), n, 97, bins.data()), "histogram");
  require(bins == counts, "histogram");

  std::vector<double> partial(64);
  double sum = 0;
  int blocks = 0;
  ok(grid_sum(x.data(), n, partial.data(), &sum, &blocks), "grid_sum");
  require(sum == expected && blocks > 1, "grid_sum");

  std::vector<double> rows(3 * 64), reversed(3 * 64);
  for (int i = 0; i < 3 * 64; ++i) rows[i] = i;
  ok(reverse_rows_double(rows.data(), 3, reversed.data()), "reverse_rows");
  for (int i = 0; i < 3 * 64; ++i) require(reversed[i] == i / 64 * 64 + 63 - i % 64, "reverse");

  const int grid[3] = {2, 3, 2}, block[3] = {4, 2, 3};
  std::vector<int> ranks_out(2 * 3 * 2 * 24);
  ok(ranks(ranks_out.data(), grid, block), "ranks");
  int64_t rank_sum = 0;
  for (int r : ranks_out) rank_sum += r;
  require(rank_sum == 288 * 287 / 2, "ranks");

  std::vector<uint16_t> a(n), b(n), out(7 * n);
  for (int i = 0; i < n; ++i) a[i] = uint16_t(i * 40503), b[i] = uint16_t(i * 10007 + 5);
  ok(half_arithmetic(a.data(), b.data(), n, out.data()), "half");
  ok(bfloat_arithmetic(a.data(), b.data(), n, out.data()), "bfloat");
  std::vector<double> y(x.begin(), x.end());
  ok(narrow(x.data(), y.data(), n, out.data()), "narrow");
  for (int i = 0; i < 2 * n; ++i) require(out[i] == out[2 * n + i], "narrow");

  std::vector<int64_t> lanes(32 * kCollectiveRows);
  ok(collectives(k.data(), lanes.data()), "collectives");
  float atomics[4] = {};
  ok(float_atomics(x.data(), 500, atomics), "float_atomics");
  float largest = 0;
  for (int i = 0; i < 500; ++i) largest = std::fmax(largest, x[i]);
  require(atomics[1] == largest && atomics[3] == 1, "float_atomics");
  std::vector<int> filled(n);
  ok(fill(filled.data(), n), "fill");
  for (int i = 0; i < n; ++i) require(filled[i] == i, "fill");
  std::puts("all passed");
  return 0;
}

int one_fault(const char* name, bool fixed) {
  // Separate heap blocks of exactly 256 ints, so that a sanitizer sees the ends.
  std::unique_ptr<int[]> x(new int[256]), out(new int[256]());
  for (int i = 0; i < 256; ++i) x[i] = 3 * i + 1;
  try {
    ok(fault(name, fixed, x.get(), out.get()), name);
  } catch (const std::exception& e) {
    std::printf("caught: %s\n", e.what());
    return 2;
  }
  uint64_t hash = 1469598103934665603u;
  for (int i = 0; i < 256; ++i) hash = (hash ^ uint32_t(out[i])) * 1099511628211u;
  std::printf("ran: %016llx\n", (unsigned long long)(hash));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "all") == 0) return all();
  if (argc == 4 && std::strcmp(argv[1], "fault") == 0) return one_fault(argv[2], argv[3][0] == '1');
  std::fprintf(stderr, "usage: main all | main fault NAME 0|1\n");
  return 64;
}
