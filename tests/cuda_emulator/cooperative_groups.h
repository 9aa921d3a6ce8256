// The part of cooperative groups the project uses: the grid and the block as groups.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

class grid_group {
 public:
  void sync(SUBLIMATE_SITE) const { sublimate::emulator::grid_barrier(site); }
  bool is_valid() const { return sublimate::emulator::machine.launch->cooperative; }
  unsigned long long size() const { return num_blocks() * block_threads(); }
  unsigned long long num_threads() const { return size(); }
  unsigned long long num_blocks() const {
    const dim3& g = gridDim;
    return (unsigned long long)(g.x) * g.y * g.z;
  }
  unsigned long long block_rank() const { return sublimate::emulator::current().block->rank; }
  unsigned long long thread_rank() const {
    return block_rank() * block_threads() + sublimate::emulator::current().rank;
  }
  dim3 group_dim() const { return gridDim; }

 private:
  static unsigned long long block_threads() {
    return sublimate::emulator::current().block->threads.size();
  }
};

class thread_block {
 public:
  void sync(SUBLIMATE_SITE) const {
    sublimate::emulator::block_barrier(sublimate::emulator::Op::syncthreads, false, site);
  }
  unsigned thread_rank() const { return sublimate::emulator::current().rank; }
  unsigned size() const { return unsigned(sublimate::emulator::current().block->threads.size()); }
  unsigned num_threads() const { return size(); }
  dim3 group_index() const { return blockIdx; }
  dim3 thread_index() const { return threadIdx; }
  dim3 group_dim() const { return blockDim; }
};

inline grid_group this_grid() { return {}; }
inline thread_block this_thread_block() { return {}; }

}  // namespace cooperative_groups
