// Upsampling by a whole factor, as Keras' UpSampling2D (PyTorch's interpolate with align_corners=False): nearest, or
// bilinear between half-pixel centres with the edge pixels repeated. Backward gathers: a pixel of dx reads its dy's.
//
// Occupancy: at least 50% (256 threads).
// Occupancy of upsample_bilinear_backward: at least 25% (256 threads).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct UpsampleForward {
  TensorView x;  // (N, H, W, C)
  TensorView y;  // (N, factor * H, factor * W, C)
  int factor = 2;
  bool bilinear = false;
};
REGOLITH_KERNEL(upsample_forward, UpsampleForward);

struct UpsampleBackward {
  TensorView dy;  // (N, factor * H, factor * W, C)
  TensorView dx;  // (N, H, W, C); written, or added to
  int factor = 2;
  bool bilinear = false;
  bool accumulate = false;
};
REGOLITH_KERNEL(upsample_backward, UpsampleBackward);

}  // namespace regolith::kernels
