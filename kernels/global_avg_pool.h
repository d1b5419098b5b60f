// The mean over the pixels of each image, channel by channel: Keras' GlobalAveragePooling2D(keepdims=True), PyTorch's
// AdaptiveAvgPool2d(1). Sums in fp32, in a fixed order. Maps of one element type; they may be slices of channels.
#pragma once

#include "kernels/core/image_parts.h"
#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct GlobalAvgPoolForward {
  Map x;            // (N, H, W, C)
  Map y;            // (N, 1, 1, C)
  void* workspace;  // global_avg_pool_workspace(x) bytes, 256-byte aligned
};
REGOLITH_KERNEL(global_avg_pool_forward, GlobalAvgPoolForward);

inline size_t global_avg_pool_workspace(const Map& x) { return ImageSumLayout(x).bytes(x); }  // data may be null

struct GlobalAvgPoolBackward {  // dx = dy / (H * W)
  Map dy;                       // (N, 1, 1, C)
  Map dx;                       // (N, H, W, C); written, or added to
  bool accumulate = false;
};
REGOLITH_KERNEL(global_avg_pool_backward, GlobalAvgPoolBackward);

}  // namespace regolith::kernels
