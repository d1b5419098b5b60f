// The errors that a kernel or its launch can throw. A message names the kernel, what was expected, and what to do; all
// other kinds stand in engine/base/error.h.
#pragma once

#include <stdexcept>
#include <string>

namespace regolith {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct DeviceError : Error {  // allocation, launch, CUDA, simulated device
  using Error::Error;
};
struct KernelError : Error {  // a kernel called with arguments it does not take, or a fault the checked executor found
  using Error::Error;
};

}  // namespace regolith
