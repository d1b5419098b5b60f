// The rectifier as a pass of its own, for where no norm or convolution takes it along. Maps are (N, H, W, C) of one
// element type and may be slices of channels.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct ReluForward {  // y = max(x, 0); NaN stays NaN
  TensorView x, y;    // y may be x
};
REGOLITH_KERNEL(relu_forward, ReluForward);

struct ReluBackward {  // dx = dy where y > 0, else 0
  TensorView y, dy;
  TensorView dx;  // may be dy
  bool accumulate = false;
};
REGOLITH_KERNEL(relu_backward, ReluBackward);

}  // namespace regolith::kernels
