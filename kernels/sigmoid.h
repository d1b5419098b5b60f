// The logistic function. Maps are (N, H, W, C) of one element type and may be slices of channels.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct SigmoidForward {  // y = 1 / (1 + exp(-x)); NaN stays NaN
  TensorView x, y;       // y may be x
};
REGOLITH_KERNEL(sigmoid_forward, SigmoidForward);

struct SigmoidBackward {  // dx = dy * y * (1 - y)
  TensorView y, dy;
  TensorView dx;  // written, or added to; may be dy
  bool accumulate = false;
};
REGOLITH_KERNEL(sigmoid_backward, SigmoidBackward);

}  // namespace regolith::kernels
