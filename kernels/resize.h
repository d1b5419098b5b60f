// Resizing to any height and width, up or down, between half-pixel centres: TensorFlow's tf.image.resize without
// antialiasing; in PyTorch's interpolate `bilinear` with align_corners=False, and `nearest-exact`. Backward gathers: a
// pixel of dx reads its dy's. Whole factors, the same both ways, are the business of upsample, which is faster.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kResizeSize = 8192;  // heights and widths, at most

struct ResizeForward {
  Map x;  // (N, H, W, C)
  Map y;  // (N, H', W', C)
  bool bilinear = false;
};
REGOLITH_KERNEL(resize_forward, ResizeForward);

struct ResizeBackward {
  Map dy;  // (N, H', W', C)
  Map dx;  // (N, H, W, C); written, or added to
  bool bilinear = false;
  bool accumulate = false;
};
REGOLITH_KERNEL(resize_backward, ResizeBackward);

}  // namespace regolith::kernels
