// What the CPU sources of this family share. Compiled once per instruction-set level
// (common/isa.h): everything here has internal linkage but the kernels of the level's namespace.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/ceil_div.h"
#include "common/lanes.h"
#include "common/permutation.h"
#include "randomized_linear/kernels.h"

SUBLIMATE_DECLARE_RANDOMIZED_LINEAR(SUBLIMATE_ISA)

namespace sublimate::randomized_linear::SUBLIMATE_ISA {

// The kinds of projection, each in the source of its name; project() checks and chooses.
int project_dense(const Project&);
int project_srht(const Project&);
int project_countsketch(const Project&);
int project_rows(const Project&);

namespace {

constexpr int64_t GRAIN = 16384;  // elements below which a thread costs more than it brings

template <class T>
void zero_rows(T* out, int64_t columns, int64_t begin, int64_t end) {
  std::fill(out + begin * columns, out + end * columns, T{});
}

constexpr int INDEX_BLOCK = 64;  // indices permuted together

// v[0 .. n) to their images (or, with back, their inverse images), n <= INDEX_BLOCK. One pass goes
// over all in vectors; those that must walk on are packed together for the next.
template <bool back>
void permute_block(const Permutation& p, uint32_t* v, int n) {
  uint32_t walking[INDEX_BLOCK];
  int place[INDEX_BLOCK];
  std::copy_n(v, n, walking);
  for (int i = 0; i < n; ++i) place[i] = i;
  while (n > 0) {
    for (int i = 0; i < n; ++i) {
      walking[i] = back ? permutation_pass_back(p, walking[i]) : permutation_pass(p, walking[i]);
    }
    int left = 0;
    for (int i = 0; i < n; ++i) {
      v[place[i]] = walking[i];
      if (walking[i] >= p.size) {
        walking[left] = walking[i];
        place[left++] = place[i];
      }
    }
    n = left;
  }
}

}  // namespace
}  // namespace sublimate::randomized_linear::SUBLIMATE_ISA
