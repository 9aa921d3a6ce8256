// Function multiversioning by translation unit: CMake compiles each <family>/cpu.cpp once per
// level, with that level's instruction set and SUBLIMATE_ISA naming the namespace; the module picks
// a level once at load. (Preferred to target_clones because a source can then use the level's mask
// registers under plain #ifdef, and because it does not need ifunc.) Rule: such a source defines
// nothing with weak linkage, so that no wide instruction leaks into another level; a test reads the
// symbols.
#pragma once

namespace sublimate {

enum class Isa : int { base = 0, v3 = 1, v4 = 2 };

// Highest level this machine runs; SUBLIMATE_CPU_ISA=base|v3|v4 lowers it (for tests).
Isa detect_isa();
const char* isa_name(Isa);

}  // namespace sublimate
