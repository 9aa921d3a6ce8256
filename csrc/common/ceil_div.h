// How many parts of a size a count makes.
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace sublimate {

// ceil(a / b) for a >= 0, b > 0, without overflow.
SUBLIMATE_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace sublimate
