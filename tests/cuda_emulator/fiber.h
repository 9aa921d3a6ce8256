// Stacks on which the threads of a block run, and the switch between them. One host thread only.
//
// A fiber outlives the CUDA thread it carries: when a thread ends, the fiber takes the next one
// that has not begun, so a kernel without barriers runs whole blocks without a single switch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if !defined(__x86_64__) && !defined(SUBLIMATE_EMULATOR_UCONTEXT)
#define SUBLIMATE_EMULATOR_UCONTEXT 1
#endif
#if defined(SUBLIMATE_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Code that the sanitizers must leave alone: it touches redzones or runs between two stacks.
#define SUBLIMATE_EMULATOR_RAW __attribute__((no_sanitize("address", "thread", "undefined")))

namespace sublimate::emulator {

struct Thread;
void fiber_main();  // emulator.h: what every fiber executes

#if defined(SUBLIMATE_EMULATOR_UCONTEXT)
using Context = ucontext_t;

inline void switch_context(Context* save, Context* load) { swapcontext(save, load); }

inline void make_context(Context* context, char* low, size_t size) {
  getcontext(context);
  context->uc_stack.ss_sp = low;
  context->uc_stack.ss_size = size;
  context->uc_link = nullptr;
  makecontext(context, fiber_main, 0);
}
#else
using Context = void*;  // the stack pointer; the callee-saved registers lie just above it

// swapcontext makes a system call for the signal mask; this does not.
__attribute__((naked, noinline, noipa)) SUBLIMATE_EMULATOR_RAW inline void switch_context(
    Context* /*save: rdi*/, Context* /*load: rsi*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq (%rsi), %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

SUBLIMATE_EMULATOR_RAW inline void make_context(Context* context, char* low, size_t size) {
  // Six zero registers, the entry point as return address, and a null return address of its own:
  // after `ret` the stack pointer is 8 below a multiple of 16, as after a call.
  auto* top = reinterpret_cast<volatile uintptr_t*>(low + size);
  for (int slot = 1; slot <= 8; ++slot) top[-slot] = 0;
  top[-2] = reinterpret_cast<uintptr_t>(&fiber_main);
  *context = const_cast<uintptr_t*>(top - 8);
}
#endif

class Fiber {
 public:
  Thread* thread = nullptr;  // null while idle

  explicit Fiber(size_t stack_bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_ = (stack_bytes + page - 1) / page * page;
    mapped_ = size_ + page;  // one guard page below the stack: an overflow stops the process
    void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(base);
    if (mprotect(base_, page, PROT_NONE) != 0) {
      munmap(base_, mapped_);
      throw std::bad_alloc();
    }
    low_ = base_ + page;
    make_context(&context_, low_, size_);
  }
  ~Fiber() { munmap(base_, mapped_); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  bool holds(const void* address) const {
    return address >= low_ && address < static_cast<const void*>(low_ + size_);
  }

  // Scheduler -> fiber; returns when the fiber leaves.
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, low_, size_);
    switch_context(&host_, &context_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    switch_context(&host_, &context_);
#endif
  }
  // First thing on a new stack.
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &host_low_, &host_size_);
#endif
  }
  // Fiber -> scheduler; returns when the fiber is entered again.
  void leave() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, host_low_, host_size_);
    switch_context(&context_, &host_);
    __sanitizer_finish_switch_fiber(fake, &host_low_, &host_size_);
#else
    switch_context(&context_, &host_);
#endif
  }
  // Forgets whatever the stack holds: after a fault its frames are never unwound.
  void reset() {
    thread = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(low_, size_);
#endif
    make_context(&context_, low_, size_);
  }

 private:
  char* base_ = nullptr;
  char* low_ = nullptr;
  size_t size_ = 0, mapped_ = 0;
  Context context_{}, host_{};
#if defined(__SANITIZE_ADDRESS__)
  const void* host_low_ = nullptr;
  size_t host_size_ = 0;
#endif
};

// All fibers ever needed, kept for the next launch.
class FiberPool {
 public:
  Fiber& take() {
    if (idle_.empty()) {
      all_.push_back(std::make_unique<Fiber>(stack_bytes()));
      return *all_.back();
    }
    Fiber& fiber = *idle_.back();
    idle_.pop_back();
    return fiber;
  }
  void give(Fiber& fiber) { idle_.push_back(&fiber); }
  // Fresh contexts for all: a suspended frame may hold addresses of one host thread's variables.
  void reset() {
    idle_.clear();
    for (auto& fiber : all_) {
      fiber->reset();
      idle_.push_back(fiber.get());
    }
  }

 private:
  static size_t stack_bytes() {
    if (const char* text = std::getenv("SUBLIMATE_EMULATOR_STACK")) {
      const long long bytes = std::atoll(text);
      if (bytes >= 16384) return size_t(bytes);
    }
#if defined(__SANITIZE_ADDRESS__)
    return size_t(512) << 10;
#else
    return size_t(128) << 10;
#endif
  }
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> idle_;
};

}  // namespace sublimate::emulator
