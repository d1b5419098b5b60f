// Resizing to any height and width, up or down, between half-pixel centres: TensorFlow's tf.image.resize without
// antialiasing; in PyTorch's interpolate `bilinear` with align_corners=False, and `nearest-exact`. Backward gathers: a
// pixel of dx reads its dy's. Whole factors, the same both ways, are the business of upsample, which is faster.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kResizeSize = 8192;  // heights and widths, at most

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
