// y = a + b, or y = a where b is absent: the copy of a slice. Also y += a (+ b), where `accumulate` says so, and
// y = max(0, a + b), where `relu` does. y may be a or b.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct AddForward {
  TensorView a, b;  // (N, H, W, C), one element type; b may be null
  TensorView y;     // (N, H, W, C)
  bool accumulate = false;
  bool relu = false;  // with b, and without accumulate
};
REGOLITH_KERNEL(add_forward, AddForward);

}  // namespace regolith::kernels
