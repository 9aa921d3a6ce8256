// Status codes at the binding: every compiled function returns int. 0 is success, a positive number
// is CUDA's own error number, a negative one is ours.
#pragma once

#include <string>

#if defined(__CUDACC__) || defined(SUBLIMATE_CUDA_EMULATOR)
#include <cuda_runtime.h>
#endif

namespace sublimate {

enum Status : int {
  kOk = 0,
  kBadDtype = -1,     // an element type the function has no code for
  kBadArgument = -2,  // a size, stride, count or name out of range
  kUnsupported = -3,  // valid, but not on this device or in this build
  kOutOfMemory = -4,  // host memory
};

// Name and meaning of a status code, for messages.
inline std::string status_text(int code) {
  switch (code) {
    case kOk:
      return "success";
    case kBadDtype:
      return "element type not supported by this function";
    case kBadArgument:
      return "argument out of range";
    case kUnsupported:
      return "not supported on this device or in this build";
    case kOutOfMemory:
      return "out of host memory";
    default:
      break;
  }
  if (code < 0) return "unknown status " + std::to_string(code);
#if defined(__CUDACC__) || defined(SUBLIMATE_CUDA_EMULATOR)
  const auto error = static_cast<cudaError_t>(code);
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
#else
  return "CUDA error " + std::to_string(code);
#endif
}

}  // namespace sublimate
