// The active half of racecheck.h: shadow memory and the hooks that -fsanitize=thread calls.
#pragma once

#include <array>
#include <unordered_map>

namespace sublimate::emulator::racecheck {

struct Access {
  uint32_t block = 0, epoch = 0, clock = 0, fences = 0;
  int32_t pc = 0;  // relative to `access`
  uint16_t thread = 0;
  Kind kind = Kind::none;
};

// Of one byte: the last write and two reads, of different warps where there are such.
struct Cell {
  Access write, reads[2];
};
constexpr uintptr_t kPage = 1024;
using Page = std::array<Cell, kPage>;

struct State {
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  uintptr_t cached_key = ~uintptr_t(0);
  Page* cached = nullptr;
  // clock[t] counts the __syncwarp of thread t; seen[t][l] is the clock of lane l of its warp at
  // their last common (or transitive) __syncwarp. One table per block, made on its first use.
  struct Clocks {
    std::vector<uint32_t> clock;
    std::vector<std::array<uint32_t, 32>> seen;
  };
  std::unordered_map<uint32_t, Clocks> clocks;
  std::unordered_map<uint32_t, uint32_t> fences, atomics;  // per block
};
inline State state;

inline void forget() {
  state.pages.clear();
  state.cached_key = ~uintptr_t(0);
}
inline void launch_begin() {
  forget();
  state.clocks.clear();
  state.fences.clear();
  state.atomics.clear();
}
inline void fence() { ++state.fences[uint32_t(current().block->rank)]; }

inline State::Clocks& clocks_of(const Block& b) {
  State::Clocks& c = state.clocks[uint32_t(b.rank)];
  if (c.clock.empty()) {
    c.clock.assign(b.threads.size(), 1);
    c.seen.assign(b.threads.size(), {});
  }
  return c;
}

// __syncwarp: every member has seen what any member had seen, and its members' accesses so far.
inline void warp_done(const Warp& w, unsigned members, Op op) {
  if (op != Op::syncwarp) return;
  State::Clocks& c = clocks_of(*w.lane[__builtin_ctz(members)]->block);
  std::array<uint32_t, 32> joined{};
  for (unsigned rest = members; rest; rest &= rest - 1) {
    const Thread& t = *w.lane[__builtin_ctz(rest)];
    for (int l = 0; l < 32; ++l) joined[l] = std::max(joined[l], c.seen[t.rank][l]);
    joined[t.lane] = std::max(joined[t.lane], c.clock[t.rank]);
  }
  for (unsigned rest = members; rest; rest &= rest - 1) {
    const Thread& t = *w.lane[__builtin_ctz(rest)];
    c.seen[t.rank] = joined;
    ++c.clock[t.rank];
  }
}

// Shared variable or dynamic shared memory that holds the address: "" when it is global.
inline std::string shared_name(uintptr_t at) {
  const Block& b = *current().block;
  const uintptr_t dynamic = reinterpret_cast<uintptr_t>(b.dynamic.data());
  if (at >= dynamic && at < dynamic + b.dynamic.size())
    return "dynamic shared memory, byte " + std::to_string(at - dynamic);
  const uintptr_t base = reinterpret_cast<uintptr_t>(machine.symbols->shared_base());
  for (const SharedVariable& v : machine.symbols->shared())
    if (at >= base + v.offset && at < base + v.offset + v.size)
      return "shared variable " + v.name + ", byte " + std::to_string(at - base - v.offset);
  return "";
}

inline bool ordered(const Access& before, const Thread& t, State::Clocks& clocks, uintptr_t at) {
  const Block& b = *t.block;
  if (before.block == uint32_t(b.rank)) {
    if (before.thread == t.rank || before.epoch < b.epoch) return true;
    return before.thread / 32 == t.rank / 32 &&
           clocks.seen[t.rank][before.thread % 32] >= before.clock;
  }
  if (state.fences[before.block] > before.fences && state.atomics[uint32_t(b.rank)]) return true;
  return !shared_name(at).empty();  // another block's shared memory lay at this address
}

void access(const void* address, size_t bytes, Kind kind, const void* pc);

inline void report(uintptr_t at, const Access& before, const Thread& t, Kind kind, const void* pc) {
  if (!machine.race.empty()) return;
  static const char* const verbs[] = {"", "reads", "writes", "updates atomically"};
  std::string where = shared_name(at);
  if (where.empty()) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "global address %#zx", size_t(at));
    where = digits;
  }
  const auto origin = reinterpret_cast<intptr_t>(&access);
  const auto other = reinterpret_cast<const void*>(origin + before.pc);
  machine.race = "data race on " + where + ": thread rank " + std::to_string(before.thread) +
                 " of block rank " + std::to_string(before.block) + " " + verbs[int(before.kind)] +
                 " it in " + machine.symbols->function(other) + ", then " + text(t) + " " +
                 verbs[int(kind)] + " it in " + machine.symbols->function(pc) +
                 " with no barrier between";
  if (t.site.line) machine.race += " (its last was " + text(t.site) + ")";
}

inline void touch(Cell& cell, const Access& now, const Thread& t, State::Clocks& clocks,
                  uintptr_t at, const void* pc) {
  auto check = [&](const Access& before) {
    if (before.kind == Kind::none || (before.kind == Kind::atomic && now.kind == Kind::atomic))
      return;
    if (!ordered(before, t, clocks, at)) report(at, before, t, now.kind, pc);
  };
  check(cell.write);
  if (now.kind != Kind::read) {
    for (Access& read : cell.reads) check(read), read.kind = Kind::none;
    cell.write = now;
    return;
  }
  auto stale = [&](const Access& read) {
    return read.kind == Kind::none || (read.block == now.block && read.epoch < now.epoch);
  };
  auto same = [&](const Access& a, const Access& b, int unit) {
    return a.block == b.block && a.thread / unit == b.thread / unit;
  };
  if (stale(cell.reads[0]) || same(cell.reads[0], now, 1)) {
    cell.reads[0] = now;
  } else if (stale(cell.reads[1]) || same(cell.reads[1], now, 1) ||
             same(cell.reads[0], cell.reads[1], 32)) {
    cell.reads[1] = now;
  }
}

inline void access(const void* address, size_t bytes, Kind kind, const void* pc) {
  const Thread& t = current();
  if (t.fiber->holds(address)) return;                        // its own locals
  if (address >= &machine && address < &machine + 1) return;  // the switch of recording itself
  Block& b = *t.block;
  const uint32_t rank = uint32_t(b.rank);
  if (kind == Kind::atomic) ++state.atomics[rank];
  State::Clocks& clocks = clocks_of(b);
  Access now;
  now.block = rank, now.epoch = b.epoch, now.clock = clocks.clock[t.rank];
  now.fences = state.fences[rank];
  now.pc = int32_t(reinterpret_cast<intptr_t>(pc) - reinterpret_cast<intptr_t>(&access));
  now.thread = uint16_t(t.rank), now.kind = kind;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t at = begin; at < begin + bytes; ++at) {
    const uintptr_t key = at / kPage;
    if (key != state.cached_key) {
      auto& page = state.pages[key];
      if (!page) page = std::make_unique<Page>();
      state.cached_key = key, state.cached = page.get();
    }
    touch((*state.cached)[at % kPage], now, t, clocks, at, pc);
  }
}

// Itself without hooks until recording is off; all below it then returns at once.
SUBLIMATE_EMULATOR_RAW inline void hook(const void* address, size_t bytes, Kind kind,
                                        const void* pc) {
  if (!machine.recording) return;
  machine.recording = false;
  access(address, bytes, kind, pc);
  machine.recording = true;
}

}  // namespace sublimate::emulator::racecheck

// The names belong to built-in functions whose declarations nothing may contradict, so the hooks
// have names of their own and take the others as assembler names. Weak, because several sources of
// one module may include this; hidden, so that each module has its own; used, because the calls
// appear only after the compiler has decided what is needed.
#define SUBLIMATE_HOOK(result, name, ...)                                               \
  extern "C" __attribute__((weak, used, visibility("hidden"))) result sublimate_##name( \
      __VA_ARGS__) __asm__("__tsan_" #name);                                            \
  extern "C" SUBLIMATE_EMULATOR_RAW result sublimate_##name(__VA_ARGS__)
#define SUBLIMATE_RECORD(bytes, kind)                                                            \
  ::sublimate::emulator::racecheck::hook(p, bytes, ::sublimate::emulator::racecheck::Kind::kind, \
                                         __builtin_return_address(0))

#define SUBLIMATE_ACCESS_HOOKS(n)                                                   \
  SUBLIMATE_HOOK(void, read##n, void* p) { SUBLIMATE_RECORD(n, read); }             \
  SUBLIMATE_HOOK(void, write##n, void* p) { SUBLIMATE_RECORD(n, write); }           \
  SUBLIMATE_HOOK(void, unaligned_read##n, void* p) { SUBLIMATE_RECORD(n, read); }   \
  SUBLIMATE_HOOK(void, unaligned_write##n, void* p) { SUBLIMATE_RECORD(n, write); } \
  SUBLIMATE_HOOK(void, volatile_read##n, void* p) { SUBLIMATE_RECORD(n, read); }    \
  SUBLIMATE_HOOK(void, volatile_write##n, void* p) { SUBLIMATE_RECORD(n, write); }
SUBLIMATE_ACCESS_HOOKS(1)
SUBLIMATE_ACCESS_HOOKS(2)
SUBLIMATE_ACCESS_HOOKS(4)
SUBLIMATE_ACCESS_HOOKS(8)
SUBLIMATE_ACCESS_HOOKS(16)
SUBLIMATE_HOOK(void, read_range, void* p, size_t bytes) { SUBLIMATE_RECORD(bytes, read); }
SUBLIMATE_HOOK(void, write_range, void* p, size_t bytes) { SUBLIMATE_RECORD(bytes, write); }
SUBLIMATE_HOOK(void, init, ) {}
SUBLIMATE_HOOK(void, func_entry, void*) {}
SUBLIMATE_HOOK(void, func_exit, ) {}
SUBLIMATE_HOOK(void, vptr_update, void*, void*) {}
SUBLIMATE_HOOK(void, vptr_read, void*) {}

// std::atomic in host code calls these instead of emitting instructions. Memory orders beyond what
// is asked do no harm.
#define SUBLIMATE_ATOMIC_RMW(bits, T, name, builtin)                     \
  SUBLIMATE_HOOK(T, atomic##bits##_##name, volatile void* p, T v, int) { \
    return builtin(static_cast<volatile T*>(p), v, __ATOMIC_SEQ_CST);    \
  }
#define SUBLIMATE_ATOMIC_CAS(bits, T, strength, weak)                                             \
  SUBLIMATE_HOOK(bool, atomic##bits##_compare_exchange_##strength, volatile void* p,              \
                 void* expected, T v, int, int) {                                                 \
    return __atomic_compare_exchange_n(static_cast<volatile T*>(p), static_cast<T*>(expected), v, \
                                       weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
  }
#define SUBLIMATE_ATOMIC_HOOKS(bits, T)                                          \
  SUBLIMATE_HOOK(T, atomic##bits##_load, const volatile void* p, int) {          \
    return __atomic_load_n(static_cast<const volatile T*>(p), __ATOMIC_SEQ_CST); \
  }                                                                              \
  SUBLIMATE_HOOK(void, atomic##bits##_store, volatile void* p, T v, int) {       \
    __atomic_store_n(static_cast<volatile T*>(p), v, __ATOMIC_SEQ_CST);          \
  }                                                                              \
  SUBLIMATE_ATOMIC_RMW(bits, T, exchange, __atomic_exchange_n)                   \
  SUBLIMATE_ATOMIC_RMW(bits, T, fetch_add, __atomic_fetch_add)                   \
  SUBLIMATE_ATOMIC_RMW(bits, T, fetch_sub, __atomic_fetch_sub)                   \
  SUBLIMATE_ATOMIC_RMW(bits, T, fetch_and, __atomic_fetch_and)                   \
  SUBLIMATE_ATOMIC_RMW(bits, T, fetch_or, __atomic_fetch_or)                     \
  SUBLIMATE_ATOMIC_RMW(bits, T, fetch_xor, __atomic_fetch_xor)                   \
  SUBLIMATE_ATOMIC_RMW(bits, T, fetch_nand, __atomic_fetch_nand)                 \
  SUBLIMATE_ATOMIC_CAS(bits, T, strong, false)                                   \
  SUBLIMATE_ATOMIC_CAS(bits, T, weak, true)
SUBLIMATE_ATOMIC_HOOKS(8, unsigned char)
SUBLIMATE_ATOMIC_HOOKS(16, unsigned short)
SUBLIMATE_ATOMIC_HOOKS(32, unsigned)
SUBLIMATE_ATOMIC_HOOKS(64, unsigned long)
SUBLIMATE_HOOK(void, atomic_thread_fence, int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
SUBLIMATE_HOOK(void, atomic_signal_fence, int) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
#undef SUBLIMATE_HOOK
#undef SUBLIMATE_RECORD
#undef SUBLIMATE_ACCESS_HOOKS
#undef SUBLIMATE_ATOMIC_RMW
#undef SUBLIMATE_ATOMIC_CAS
#undef SUBLIMATE_ATOMIC_HOOKS
