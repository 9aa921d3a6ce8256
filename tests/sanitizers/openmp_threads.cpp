// The part of GCC's OpenMP runtime that the CPU kernels call, on plain threads. ThreadSanitizer
// knows what creating and joining a thread orders, and nothing of libgomp's own barriers, so with
// libgomp every parallel region would look like a race. Linked into a ThreadSanitizer build ahead
// of libgomp; hidden, so that torch's libgomp is neither used nor disturbed.
#include <atomic>
#include <thread>
#include <vector>

namespace {

thread_local int rank = 0;
thread_local int team = 1;
thread_local bool inside = false;

void work(void (*body)(void*), void* data, int number, int members) {
  rank = number;
  team = members;
  inside = members > 1;
  body(data);
  rank = 0;
  team = 1;
  inside = false;
}

}  // namespace

extern "C" {

// Regions that ran on several threads, for thread_cases.py to read.
__attribute__((visibility("default"))) std::atomic<long> sublimate_parallel_regions{0};

int omp_get_thread_num() { return rank; }
int omp_get_num_threads() { return team; }
int omp_in_parallel() { return inside; }
int omp_get_max_threads() { return 2; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const int members = threads ? int(threads) : omp_get_max_threads();
  if (members > 1) ++sublimate_parallel_regions;
  std::vector<std::thread> others;
  for (int i = 1; i < members; ++i) others.emplace_back(work, body, data, i, members);
  work(body, data, 0, members);
  for (auto& thread : others) thread.join();
}
}
