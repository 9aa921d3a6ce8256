// The one threading mechanism of the CPU kernels: OpenMP, with the thread count torch gave us.
// libgomp is found by soname, so a process that has loaded torch runs both on one thread pool.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace sublimate {

// Calls body(begin, end) over [0, n) in at most `threads` contiguous pieces. Piece borders are
// multiples of `quantum`; a piece below `grain` items is not worth a thread.
template <class Body>
inline void parallel_for(int64_t n, int64_t quantum, int64_t grain, int threads, const Body& body) {
  const int64_t useful = std::min<int64_t>(threads, n / std::max<int64_t>(grain, 1));
  if (useful <= 1 || omp_in_parallel()) {
    if (n > 0) body(int64_t(0), n);
    return;
  }
  const int64_t quanta = (n + quantum - 1) / quantum;
#pragma omp parallel num_threads(int(useful))
  {
    const int64_t count = omp_get_num_threads(), rank = omp_get_thread_num();
    const int64_t begin = quanta * rank / count * quantum;
    const int64_t end = std::min(n, quanta * (rank + 1) / count * quantum);
    if (begin < end) body(begin, end);
  }
}

}  // namespace sublimate
