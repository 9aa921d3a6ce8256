// A host implementation of the CUDA execution model: the threads of a block are fibers in one host
// thread, every barrier and warp collective is a scheduling point, and misuse is a Fault.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fiber.h"
#include "symbols.h"
#include "vector_types.h"

namespace sublimate::emulator {

// A kernel broke the execution model. Leaves launch() as an exception.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where a call stands in the source: default arguments evaluate at the caller.
struct Site {
  const char* file = "";
  int line = 0;
  const char* function = "";
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                             const char* function = __builtin_FUNCTION()) {
    return {file, line, function};
  }
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};

enum class Op : uint8_t {
  syncwarp,
  ballot,
  any,
  all,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  match_any,
  match_all,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  reduce_xor,
  syncthreads,
  syncthreads_count,
  syncthreads_and,
  syncthreads_or,
  grid_sync
};
inline const char* name_of(Op op) {
  static const char* const names[] = {
      "__syncwarp",        "__ballot_sync",       "__any_sync",        "__all_sync",
      "__shfl_sync",       "__shfl_up_sync",      "__shfl_down_sync",  "__shfl_xor_sync",
      "__match_any_sync",  "__match_all_sync",    "__reduce_add_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_and_sync",   "__reduce_or_sync",  "__reduce_xor_sync",
      "__syncthreads",     "__syncthreads_count", "__syncthreads_and", "__syncthreads_or",
      "grid_group::sync"};
  return names[int(op)];
}

enum class State : uint8_t { fresh, ready, in_warp, in_block, in_grid, exited };

struct Block;
struct Warp;

struct Thread {
  uint3 index{};  // threadIdx
  unsigned rank = 0, lane = 0;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Fiber* fiber = nullptr;
  State state = State::fresh;
  // The collective it waits in: what it brought, and what it takes away.
  Op op{};
  unsigned mask = 0, source_lane = 0;
  uint64_t value = 0, result = 0;
  Site site;
};

struct Warp {
  Thread* lane[32] = {};
  unsigned exists = 0, waiting = 0, exited = 0;  // bit masks of lanes
};

// Dynamic shared memory of exactly the requested size: under AddressSanitizer the bytes after it
// are a redzone, otherwise they hold a pattern that is checked when the block ends.
class SharedBuffer {
 public:
  void resize(size_t bytes) {
    bytes_ = bytes;
    data_.reset(static_cast<unsigned char*>(std::malloc(bytes + kCanary)));
    if (!data_) throw std::bad_alloc();
    for (size_t i = 0; i < kCanary; ++i) data_.get()[bytes + i] = 0xa5;
  }
  unsigned char* data() const { return data_.get(); }
  size_t size() const { return bytes_; }
  bool overrun() const {
    for (size_t i = 0; i < kCanary; ++i)
      if (data_.get()[bytes_ + i] != 0xa5) return true;
    return false;
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kCanary = 0;
#else
  static constexpr size_t kCanary = 64;
#endif
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> data_;
  size_t bytes_ = 0;
};

struct Block {
  uint3 index{};  // blockIdx
  uint64_t rank = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready;  // from `next` on
  size_t next = 0;
  unsigned exited = 0, at_barrier = 0, at_grid = 0, predicates = 0;
  const Thread* first_at_barrier = nullptr;
  unsigned epoch = 0;  // barriers completed
  SharedBuffer dynamic;
  std::vector<char> statics;  // its static shared memory while another block runs
};

enum class Order { forward, reverse, random };

struct Launch {
  Site site;
  const void* kernel = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  void (*entry)(void*) = nullptr;
  void* arguments = nullptr;
  Order order = Order::forward;
  std::mt19937 random;
};

// Everything the emulator knows; one launch at a time, from any host thread.
struct Machine {
  std::mutex launching;
  std::atomic<std::thread::id> owner{};
  std::thread::id last_owner{};
  FiberPool fibers;
  std::unique_ptr<Symbols> symbols;
  Launch* launch = nullptr;
  Thread* current = nullptr;  // runs now
  Thread* handoff = nullptr;  // a finishing fiber's choice of the next thread to resume
  Fiber* running = nullptr;
  std::exception_ptr fault;
  unsigned idle_yields = 0;  // yields since anything else happened
  std::string race;          // first data race, racecheck.h
  bool recording = false;    // kernel code runs, racecheck.h
};
inline Machine machine;

inline Thread& current() {
  if (!machine.current) throw Fault("device code called outside a kernel");
  return *machine.current;
}
inline const uint3& thread_index() { return current().index; }
inline const uint3& block_index() { return current().block->index; }
inline const dim3& block_dim() { return (current(), machine.launch->block); }
inline const dim3& grid_dim() { return (current(), machine.launch->grid); }

// Held inside every entry point: what happens there is not the kernel's doing.
struct Runtime {
  const bool before = std::exchange(machine.recording, false);
  Runtime() = default;
  ~Runtime() { machine.recording = before; }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
};

// ---------------------------------------------------------------------------------------------
// Text of faults

inline std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}
inline std::string text(const Site& site) {
  return std::string(site.file) + ":" + std::to_string(site.line) + " in " + site.function;
}
inline std::string text(const Thread& t) {
  return "thread " + text(t.index) + " of block " + text(t.block->index);
}
inline std::string text_mask(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return digits;
}
inline std::string text_call(const Thread& t) {
  std::string call = name_of(t.op);
  if (t.state == State::in_warp) call += "(mask " + text_mask(t.mask) + ")";
  return call + " at " + text(t.site);
}
inline std::string text_launch() {
  const Launch& launch = *machine.launch;
  std::string kernel = machine.symbols->function(launch.kernel);
  if (kernel.empty()) kernel = "kernel";
  return kernel + " launched at " + text(launch.site) + " with grid " + text(launch.grid) +
         " block " + text(launch.block) + " shared " + std::to_string(launch.shared_bytes);
}
[[noreturn]] inline void fail(const std::string& what) { throw Fault(what + "; " + text_launch()); }

}  // namespace sublimate::emulator

#include "racecheck.h"
#include "scheduler.h"
