// y = x + bias, one per channel, with ReLU if asked: what follows a transposed convolution, whose library has no
// epilogue for it.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct BiasForward {
  TensorView x;       // (N, H, W, C)
  const float* bias;  // (C)
  TensorView y;       // like x, and may be x
  bool relu = false;
};
REGOLITH_KERNEL(bias_forward, BiasForward);

}  // namespace regolith::kernels
