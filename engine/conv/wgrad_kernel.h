// Weight gradients by kernels of our own on the CPU, which stand in for a library's.
#pragma once

#include <cstddef>

namespace regolith {

class WgradKernel {
 public:
  virtual ~WgradKernel() = default;
  virtual const char* name() const = 0;
  virtual size_t workspace() const = 0;
  // dw (K,R,S,C) and, unless null, db (K): written, or added to. Partial sums are added in a fixed order.
  virtual void run(const void* x, const void* dy, float* dw, float* db, bool accumulate, void* workspace) const = 0;
};

}  // namespace regolith
