// The Gaussian error linear unit (Hendrycks and Gimpel 2016) in its exact form, as PyTorch's GELU has it by default:
//
//   y = x * F(x), F(x) = (1 + erf(x / sqrt(2))) / 2;   dx = dy * (F(x) + x * exp(-x^2 / 2) / sqrt(2 pi))
//
// Maps are (N, H, W, C) of one element type and may be slices of channels.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct GeluForward {
  TensorView x, y;  // y may be x, where backward does not need it
};
REGOLITH_KERNEL(gelu_forward, GeluForward);

struct GeluBackward {
  TensorView x, dy;
  TensorView dx;  // may be dy
  bool accumulate = false;
};
REGOLITH_KERNEL(gelu_backward, GeluBackward);

}  // namespace regolith::kernels
