// Where a kernel runs: the same for every kernel of every family, so that CPU and CUDA share
// signatures. The CPU reads `threads`, CUDA reads `device` and `stream`.
#pragma once

namespace sublimate {

struct Exec {
  int device;
  void* stream;
  int threads;
};

}  // namespace sublimate
