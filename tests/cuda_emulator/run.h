// One launch: the device's limits, then its blocks one after another, or side by side when
// cooperative.
#pragma once

#include <unordered_map>

#include "emulator.h"

namespace sublimate::emulator {

// Limits of the emulated device: those of sm_90 but for the number of multiprocessors.
constexpr int kMultiprocessors = 4;
constexpr int kThreadsPerBlock = 1024, kThreadsPerMultiprocessor = 2048;
constexpr int kBlocksPerMultiprocessor = 32;
constexpr size_t kSharedDefault = 48 << 10, kSharedOptin = 227 << 10;
constexpr size_t kSharedPerMultiprocessor = 228 << 10, kSharedReserved = 1 << 10;

// Dynamic shared memory granted by cudaFuncSetAttribute, by kernel.
inline std::unordered_map<const void*, size_t>& granted_shared() {
  static std::unordered_map<const void*, size_t> granted;
  return granted;
}
inline std::mutex& granted_mutex() {
  static std::mutex mutex;
  return mutex;
}

inline int resident_blocks(int threads, size_t shared_bytes) {
  if (threads < 1 || threads > kThreadsPerBlock || shared_bytes > kSharedOptin) return 0;
  const int warps = (threads + 31) / 32;
  const int by_threads = kThreadsPerMultiprocessor / 32 / warps;
  const int by_shared = int(kSharedPerMultiprocessor / (shared_bytes + kSharedReserved));
  return std::min({by_threads, by_shared, kBlocksPerMultiprocessor});
}

enum class Refusal { none, configuration, shared_memory, too_large };

// What the CUDA runtime checks before it launches anything.
inline Refusal refuse(const Launch& launch) {
  const dim3 g = launch.grid, b = launch.block;
  const bool grid_fits = g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535;
  const bool block_fits = b.x <= 1024 && b.y <= 1024 && b.z <= 64 &&
                          uint64_t(b.x) * b.y * b.z <= uint64_t(kThreadsPerBlock);
  if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || !grid_fits || !block_fits)
    return Refusal::configuration;
  if (launch.shared_bytes > kSharedDefault) {
    std::lock_guard<std::mutex> lock(granted_mutex());
    const auto found = granted_shared().find(launch.kernel);
    if (found == granted_shared().end() || launch.shared_bytes > found->second)
      return Refusal::shared_memory;
  }
  if (launch.cooperative) {
    const int resident = resident_blocks(int(b.x * b.y * b.z), launch.shared_bytes);
    if (uint64_t(g.x) * g.y * g.z > uint64_t(resident) * kMultiprocessors)
      return Refusal::too_large;
  }
  return Refusal::none;
}

// SUBLIMATE_EMULATOR_ORDER: forward (default), reverse or random:SEED.
inline void read_order(Launch& launch) {
  const char* text = std::getenv("SUBLIMATE_EMULATOR_ORDER");
  const std::string order = text ? text : "forward";
  if (order.empty() || order == "forward") {
    launch.order = Order::forward;
  } else if (order == "reverse") {
    launch.order = Order::reverse;
  } else if (order.rfind("random:", 0) == 0 && order.size() > 7 &&
             order.find_first_not_of("0123456789", 7) == std::string::npos) {
    launch.order = Order::random;
    launch.random.seed(unsigned(std::strtoull(order.c_str() + 7, nullptr, 10)));
  } else {
    throw Fault("SUBLIMATE_EMULATOR_ORDER: expected forward, reverse or random:SEED, got " + order);
  }
}

inline std::vector<uint64_t> block_order(Launch& launch) {
  std::vector<uint64_t> order(uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (launch.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (launch.order == Order::random) std::shuffle(order.begin(), order.end(), launch.random);
  return order;
}

// Static shared variables of all kernels of the module; those of other kernels are idle meanwhile.
inline void poison_statics() {
  char* base = machine.symbols->shared_base();
  for (const SharedVariable& v : machine.symbols->shared()) poison(base + v.offset, v.size);
}
inline void save_statics(Block& b) {
  char* base = machine.symbols->shared_base();
  b.statics.clear();
  for (const SharedVariable& v : machine.symbols->shared())
    b.statics.insert(b.statics.end(), base + v.offset, base + v.offset + v.size);
}
inline void load_statics(const Block& b) {
  char* base = machine.symbols->shared_base();
  const char* from = b.statics.data();
  for (const SharedVariable& v : machine.symbols->shared()) {
    std::memcpy(base + v.offset, from, v.size);
    from += v.size;
  }
}

inline void run_one_by_one(Launch& launch, std::vector<Block>& blocks) {
  blocks.resize(1);
  Block& b = blocks[0];
  for (const uint64_t rank : block_order(launch)) {
    start_block(b, rank);
    poison_statics();
    drain(b);
    if (b.exited != b.threads.size()) fail_deadlock(b);
  }
}

inline void run_side_by_side(Launch& launch, std::vector<Block>& blocks) {
  const std::vector<uint64_t> order = block_order(launch);
  blocks.resize(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    start_block(blocks[i], order[i]);
    poison_statics();
    save_statics(blocks[i]);
  }
  for (;;) {
    size_t done = 0;
    for (Block& b : blocks) {
      load_statics(b);
      drain(b);
      save_statics(b);
      done += b.exited == b.threads.size();
      if (b.exited != b.threads.size() && b.at_grid != b.threads.size()) fail_deadlock(b);
    }
    if (done == blocks.size()) return;
    if (done)
      fail("barrier divergence: " + std::to_string(done) + " blocks ended while others wait in " +
           "grid_group::sync");
    racecheck::forget();
    for (Block& b : blocks) {
      b.at_grid = 0;
      std::vector<Thread*> all;
      for (Thread& t : b.threads) all.push_back(&t);
      release(all);
    }
  }
}

// Runs an accepted launch to its end. Throws Fault, after which nothing of the launch is left.
inline void run(Launch& launch) {
  if (machine.owner.load() == std::this_thread::get_id())
    throw Fault("a kernel launched a kernel: not emulated");
  std::lock_guard<std::mutex> lock(machine.launching);
  machine.owner = std::this_thread::get_id();
  machine.launch = &launch;
  if (!machine.symbols) machine.symbols = std::make_unique<Symbols>();
  if (machine.last_owner != std::this_thread::get_id()) machine.fibers.reset();
  machine.last_owner = std::this_thread::get_id();
  racecheck::launch_begin();
  std::vector<Block> blocks;
  struct End {
    ~End() {
      machine.current = machine.handoff = nullptr;
      machine.launch = nullptr;
      machine.fault = nullptr;
      machine.race.clear();
      machine.owner = std::thread::id{};
    }
  } end;
  try {
    read_order(launch);
    launch.cooperative ? run_side_by_side(launch, blocks) : run_one_by_one(launch, blocks);
  } catch (...) {
    machine.fibers.reset();  // the frames of unfinished threads are abandoned, not unwound
    throw;
  }
}

}  // namespace sublimate::emulator
