// Memory of a kernel on the CPU. Included by per-level sources only; internal linkage
// (common/isa.h).
#pragma once

#include <cstdint>
#include <cstdlib>

namespace sublimate {
namespace {

// Uninitialised memory aligned to a cache line, freed at the end of the scope; null if there is
// none, and never null for a count of 0.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : memory_(static_cast<A*>(
            std::aligned_alloc(64, (size_t(count > 0 ? count : 1) * sizeof(A) + 63) / 64 * 64))) {}
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() const { return memory_; }
  A& operator[](int64_t i) const { return memory_[i]; }
  explicit operator bool() const { return memory_ != nullptr; }

 private:
  A* memory_;
};

}  // namespace
}  // namespace sublimate
