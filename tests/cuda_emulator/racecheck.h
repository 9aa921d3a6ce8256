// Data race detector. Active when compiled with -fsanitize=thread and linked without it: g++ then
// calls a hook at every load and store, and the hooks below are ours. Included by emulator.h.
//
// Two accesses of one byte by two threads, one of them a write and not both atomic, race unless
//  - they are in one block with a block barrier between them, or
//  - in one warp with __syncwarp between them (votes and shuffles order no memory), or
//  - in two blocks with a grid barrier between them, or with __threadfence in the first block after
//    its access and an atomic in the second before its own (the "last block" idiom).
#pragma once

namespace sublimate::emulator::racecheck {

enum class Kind : uint16_t { none, read, write, atomic };

#if !defined(__SANITIZE_THREAD__)
inline void launch_begin() {}
inline void forget() {}
inline void warp_done(const Warp&, unsigned, Op) {}
inline void fence() {}
inline void access(const void*, size_t, Kind, const void*) {}
#else
}  // namespace sublimate::emulator::racecheck
#include "racecheck_hooks.h"
namespace sublimate::emulator::racecheck {
#endif

}  // namespace sublimate::emulator::racecheck
