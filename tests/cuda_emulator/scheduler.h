// Who runs next, and what every barrier and collective waits for. Included by emulator.h.
#pragma once

#include <algorithm>
#include <utility>

#include "racecheck.h"

namespace sublimate::emulator {

constexpr uint64_t kPoison = 0x7fff7fff7fff7fffull;  // NaN in every format, large as an integer

SUBLIMATE_EMULATOR_RAW inline void poison(void* begin, size_t bytes) {
  auto* p = static_cast<volatile unsigned char*>(begin);
  for (; bytes && reinterpret_cast<uintptr_t>(p) % 8; ++p, --bytes)
    *p = reinterpret_cast<uintptr_t>(p) & 1 ? 0x7f : 0xff;
  for (; bytes >= 8; p += 8, bytes -= 8) *reinterpret_cast<volatile uint64_t*>(p) = kPoison;
  for (; bytes; ++p, --bytes) *p = reinterpret_cast<uintptr_t>(p) & 1 ? 0x7f : 0xff;
}

// ---------------------------------------------------------------------------------------------
// The ready queue of a block

inline void push_ready(Thread& t) {
  t.state = State::ready;
  t.block->ready.push_back(&t);
}
inline bool any_ready(const Block& b) { return b.next < b.ready.size(); }

inline Thread* pop_ready(Block& b) {
  if (machine.launch->order == Order::random) {
    const size_t left = b.ready.size() - b.next;
    std::swap(b.ready[b.next], b.ready[b.next + machine.launch->random() % left]);
  }
  Thread* t = b.ready[b.next++];
  if (b.next == b.ready.size()) b.ready.clear(), b.next = 0;
  return t;
}

// Threads leave a collective in launch order.
template <class Threads>
void release(const Threads& threads) {
  machine.idle_yields = 0;
  if (machine.launch->order == Order::reverse) {
    for (size_t i = threads.size(); i--;) push_ready(*threads[i]);
  } else {
    for (Thread* t : threads) push_ready(*t);
  }
}

// Back to the scheduler until someone makes this thread ready.
inline void suspend() { current().fiber->leave(); }

// ---------------------------------------------------------------------------------------------
// Warp collectives

inline unsigned members_of(const Thread& t) { return t.mask & t.warp->exists; }

// What lane `t` takes away once every member has arrived.
inline uint64_t outcome(const Thread& t) {
  const Warp& w = *t.warp;
  const unsigned members = members_of(t);
  uint64_t r = 0;
  switch (t.op) {
    case Op::shfl:
    case Op::shfl_up:
    case Op::shfl_down:
    case Op::shfl_xor:
      // Reading from a lane that takes no part gives an undefined value.
      return members >> t.source_lane & 1 ? w.lane[t.source_lane]->value : kPoison;
    case Op::match_any:
      for (unsigned l = 0; l < 32; ++l)
        if (members >> l & 1 && w.lane[l]->value == t.value) r |= 1u << l;
      return r;
    case Op::reduce_and:
      r = ~uint64_t(0);
      break;
    case Op::reduce_min:
    case Op::reduce_max:
    case Op::all:
      r = t.value;
      break;
    default:
      break;
  }
  bool equal = true;
  for (unsigned l = 0; l < 32; ++l) {
    if (!(members >> l & 1)) continue;
    const uint64_t v = w.lane[l]->value;
    equal &= v == t.value;
    switch (t.op) {
      case Op::ballot:
        r |= uint64_t(v != 0) << l;
        break;
      case Op::any:
      case Op::reduce_or:
        r |= v;
        break;
      case Op::all:
      case Op::reduce_and:
        r &= v;
        break;
      case Op::reduce_add:
        r += v;
        break;
      case Op::reduce_xor:
        r ^= v;
        break;
      case Op::reduce_min:
        r = uint64_t(std::min(int64_t(r), int64_t(v)));
        break;
      case Op::reduce_max:
        r = uint64_t(std::max(int64_t(r), int64_t(v)));
        break;
      default:
        break;
    }
  }
  return t.op == Op::match_all ? (equal ? members : 0) : r;
}

// Every lane of `mask` calls this with the same op and mask; votes bring 0 or 1.
inline uint64_t warp_collective(Op op, unsigned mask, uint64_t value, unsigned source_lane,
                                const Site& site) {
  Runtime runtime;
  Thread& t = current();
  Warp& w = *t.warp;
  t.op = op, t.mask = mask, t.value = value, t.source_lane = source_lane, t.site = site;
  t.state = State::in_warp;
  if (!(mask >> t.lane & 1))
    fail(text_call(t) + ": the mask does not name the calling lane " + std::to_string(t.lane) +
         ", " + text(t));
  if (const unsigned gone = mask & w.exited)
    fail(text_call(t) + " by " + text(t) + ": the mask names lane " +
         std::to_string(__builtin_ctz(gone)) + ", which has exited");
  const unsigned members = members_of(t);
  w.waiting |= 1u << t.lane;
  bool complete = !(members & ~w.waiting);
  for (unsigned rest = members; complete && rest; rest &= rest - 1) {
    const Thread& other = *w.lane[__builtin_ctz(rest)];
    complete = other.op == op && other.mask == mask;
  }
  if (!complete) {
    suspend();
    return t.result;
  }
  racecheck::warp_done(w, members, op);
  Thread* lanes[32];
  struct {
    Thread** begin_;
    size_t n;
    size_t size() const { return n; }
    Thread* operator[](size_t i) const { return begin_[i]; }
    Thread** begin() const { return begin_; }
    Thread** end() const { return begin_ + n; }
  } group{lanes, 0};
  for (unsigned rest = members; rest; rest &= rest - 1)
    lanes[group.n++] = w.lane[__builtin_ctz(rest)];
  for (Thread* lane : group) lane->result = outcome(*lane);
  w.waiting &= ~members;
  if (group.n == 1) {
    t.state = State::ready;
    return t.result;
  }
  release(group);
  suspend();
  return t.result;
}

// ---------------------------------------------------------------------------------------------
// Block and grid barriers

inline int block_barrier(Op op, bool predicate, const Site& site) {
  Runtime runtime;
  Thread& t = current();
  Block& b = *t.block;
  t.op = op, t.site = site, t.state = State::in_block;
  if (b.exited)
    fail("barrier divergence: " + text(t) + " reached " + text_call(t) + " after " +
         std::to_string(b.exited) + " threads of the block had exited");
  if (b.at_barrier == 0) {
    b.first_at_barrier = &t;
    b.predicates = 0;
  } else if (op != b.first_at_barrier->op || !(site == b.first_at_barrier->site)) {
    fail("barrier divergence: " + text(*b.first_at_barrier) + " waits in " +
         text_call(*b.first_at_barrier) + ", " + text(t) + " in " + text_call(t));
  }
  b.predicates += predicate;
  if (++b.at_barrier == b.threads.size()) {
    const unsigned n = b.at_barrier, yes = b.predicates;
    const unsigned result = op == Op::syncthreads_count ? yes
                            : op == Op::syncthreads_and ? yes == n
                                                        : yes > 0;
    b.at_barrier = 0;
    ++b.epoch;
    std::vector<Thread*> all;
    all.reserve(n);
    for (Thread& other : b.threads) {
      other.result = result;
      all.push_back(&other);
    }
    release(all);
  }
  suspend();
  return int(t.result);
}

inline void grid_barrier(const Site& site) {
  Runtime runtime;
  Thread& t = current();
  t.op = Op::grid_sync, t.site = site;
  if (!machine.launch->cooperative)
    fail(text_call(t) + " by " + text(t) + " needs launch_cooperative");
  if (t.block->exited)
    fail("barrier divergence: " + text(t) + " reached " + text_call(t) +
         " after threads of the block had exited");
  t.state = State::in_grid;
  ++t.block->at_grid;
  suspend();
}

// Lets another thread of the block go first, as a failed compare-and-swap or a sleep does.
inline void yield() {
  Runtime runtime;
  Thread& t = current();
  if (++machine.idle_yields > (1u << 22))
    fail("no progress: " + text(t) + " keeps polling what no other thread of its block can change");
  if (!any_ready(*t.block)) return;
  push_ready(t);
  suspend();
}

// Under a random order, atomics are points where another thread may cut in.
inline void maybe_yield() {
  if (machine.launch->order == Order::random && machine.launch->random() % 4 == 0) yield();
}

inline void thread_done(Thread& t) {
  Block& b = *t.block;
  machine.idle_yields = 0;
  t.state = State::exited;
  ++b.exited;
  t.warp->exited |= 1u << t.lane;
  if (b.at_barrier)
    fail("barrier divergence: " + text(t) + " exited while " + text(*b.first_at_barrier) +
         " waits in " + text_call(*b.first_at_barrier));
  if (b.at_grid) fail("barrier divergence: " + text(t) + " exited while others wait in grid sync");
  for (unsigned rest = t.warp->waiting; rest; rest &= rest - 1) {
    const Thread& other = *t.warp->lane[__builtin_ctz(rest)];
    if (other.mask >> t.lane & 1)
      fail(text_call(other) + " by " + text(other) + ": the mask names lane " +
           std::to_string(t.lane) + ", which exited without taking part");
  }
}

// ---------------------------------------------------------------------------------------------
// Running

inline void run_thread(Thread& t) {
  try {
    machine.recording = true;
    machine.launch->entry(machine.launch->arguments);
    machine.recording = false;
    thread_done(t);
  } catch (...) {
    machine.recording = false;
    if (!machine.fault) machine.fault = std::current_exception();
  }
  t.fiber = nullptr;
}

inline void fiber_main() {
  Fiber& self = *machine.running;
  self.arrived();
  for (;;) {
    while (Thread* t = self.thread) {
      run_thread(*t);
      self.thread = nullptr;
      if (machine.fault || !any_ready(*t->block)) break;
      Thread* next = pop_ready(*t->block);
      if (next->fiber) {
        machine.handoff = next;
        break;
      }
      self.thread = next;
      next->fiber = &self;
      machine.current = next;
    }
    self.leave();
  }
}

// Runs the block until nobody in it is ready.
inline void drain(Block& b) {
  while (machine.handoff || any_ready(b)) {
    Thread* t = std::exchange(machine.handoff, nullptr);
    if (!t) t = pop_ready(b);
    if (!t->fiber) {
      t->fiber = &machine.fibers.take();
      t->fiber->thread = t;
    }
    Fiber& fiber = *t->fiber;
    machine.current = t;
    machine.running = &fiber;
    fiber.enter();
    machine.current = nullptr;
    if (!fiber.thread) machine.fibers.give(fiber);
    if (machine.fault) std::rethrow_exception(std::exchange(machine.fault, nullptr));
    if (!machine.race.empty()) fail(std::exchange(machine.race, {}));
  }
  if (b.dynamic.overrun())
    fail("block " + text(b.index) + " wrote past the end of its dynamic shared memory");
}

[[noreturn]] inline void fail_deadlock(const Block& b) {
  std::string what = "deadlock in block " + text(b.index) + ":";
  std::vector<std::string> seen;
  for (const Thread& t : b.threads) {
    if (t.state == State::exited) continue;
    const std::string call = text_call(t);
    if (std::find(seen.begin(), seen.end(), call) != seen.end()) continue;
    seen.push_back(call);
    size_t n = 0;
    for (const Thread& u : b.threads) n += u.state != State::exited && text_call(u) == call;
    what +=
        " " + std::to_string(n) + " threads, first " + text(t.index) + ", wait in " + call + ";";
    if (seen.size() == 4) break;
  }
  what.pop_back();
  fail(what);
}

inline void start_block(Block& b, uint64_t rank) {
  const Launch& launch = *machine.launch;
  b.rank = rank;
  const uint64_t row = rank / launch.grid.x;
  b.index = uint3{unsigned(rank % launch.grid.x), unsigned(row % launch.grid.y),
                  unsigned(row / launch.grid.y)};
  const unsigned n = launch.block.x * launch.block.y * launch.block.z;
  b.threads.resize(n);
  b.warps.assign((n + 31) / 32, Warp{});
  b.exited = b.at_barrier = b.at_grid = b.epoch = 0;
  b.ready.clear(), b.next = 0;
  std::vector<Thread*> all;
  for (unsigned r = 0; r < n; ++r) {
    Thread& t = b.threads[r];
    t = Thread{};
    t.index = uint3{r % launch.block.x, r / launch.block.x % launch.block.y,
                    r / launch.block.x / launch.block.y};
    t.rank = r, t.lane = r % 32, t.block = &b, t.warp = &b.warps[r / 32];
    t.warp->lane[t.lane] = &t;
    t.warp->exists |= 1u << t.lane;
    all.push_back(&t);
  }
  release(all);
  for (Thread* t : all) t->state = State::fresh;
  if (!b.dynamic.data() || b.dynamic.size() != launch.shared_bytes)
    b.dynamic.resize(launch.shared_bytes);
  poison(b.dynamic.data(), launch.shared_bytes);
}

}  // namespace sublimate::emulator
