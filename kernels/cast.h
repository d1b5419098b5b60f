// Copies of arrays with conversion between fp32, bf16 and fp16, rounded to nearest even.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct Cast {
  const void* from;
  DType from_type;
  void* to;  // may be `from` where the types are equal
  DType to_type;
  int64_t n;
  bool accumulate = false;  // adds to what stands there, in fp32
};
REGOLITH_KERNEL(cast, Cast);

}  // namespace regolith::kernels
