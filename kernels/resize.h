// Resizing to any height and width, up or down, between half-pixel centres: TensorFlow's tf.image.resize without
// antialiasing and Keras' UpSampling2D; in PyTorch's interpolate `bilinear` with align_corners=False, and
// `nearest-exact`, which for whole factors is `nearest`. Backward gathers: a pixel of dx reads its dy's. Twice the
// height and width has loops of its own.
//
// Occupancy: at least 50% (256 threads).
// Occupancy of resize_gradient: at least 25% (256 threads).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kResizeSize = 8192;  // heights and widths, at most; where both double, any

struct ResizeForward {
  TensorView x;  // (N, H, W, C)
  TensorView y;  // (N, H', W', C)
  bool bilinear = false;
};
REGOLITH_KERNEL(resize_forward, ResizeForward);

struct ResizeBackward {
  TensorView dy;  // (N, H', W', C)
  TensorView dx;  // (N, H, W, C); written, or added to
  bool bilinear = false;
  bool accumulate = false;
};
REGOLITH_KERNEL(resize_backward, ResizeBackward);

}  // namespace regolith::kernels
