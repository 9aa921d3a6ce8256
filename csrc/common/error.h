// Status codes at the binding: 0 is success, positive numbers are CUDA's, negative ones are ours.
#pragma once

namespace sublimate {

enum Status : int {
  ok = 0,
  bad_dtype = -1,
  bad_argument = -2,
  unsupported = -3,
};

inline const char* error_text(int status) {
  switch (status) {
    case ok:
      return "success";
    case bad_dtype:
      return "element type not supported by this kernel";
    case bad_argument:
      return "argument out of the kernel's range";
    case unsupported:
      return "not supported by this build";
    default:
      return "unknown error";
  }
}

}  // namespace sublimate
