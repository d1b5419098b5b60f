// Sums over the pixels of a map or of each image, channel by channel, and sums of maps and of such numbers.
//
//   channel_sum: sum[c] (+)= sum over n, h, w of x[n,h,w,c]: the gradient of a bias
//   image_sum:   sum[n,c] = scale * sum over h, w of x[n,h,w,c]
//   pending_sums: many sums of blocks' partial results, as they end the gradients of weights
//   add_images:  y[n,h,w,c] (+)= parts_0[n,h,w,c] + parts_1[n,h,w,c] + ... + scale * image[n,c] + bias[c]
//
// With scale 1 / (H * W) the second is Keras' GlobalAveragePooling2D(keepdims=True) and PyTorch's AdaptiveAvgPool2d(1),
// the third without parts its gradient. In fp32, through partial sums that are added in an order that depends on the
// shape alone. Maps are (N, H, W, C) of one element type and may be slices.
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/core/pixel_parts.h"

namespace regolith::kernels {

struct ChannelSum {
  TensorView x;  // (N, H, W, C)
  float* sum;    // (C); written, or added to
  bool accumulate;
  void* workspace;  // channel_sum_workspace(x) bytes, 256-byte aligned
};
REGOLITH_KERNEL(channel_sum, ChannelSum);

// Few channels, side by side: 16 pixels of C are summed as if they were one of 16 * C, in whole vectors, and those sums
// are added up at the end.
inline int channel_sum_fold(const TensorView& x) {
  return x.C % 16 != 0 && x.C < 64 && x.whole() && x.pixels() % 16 == 0 ? 16 : 1;
}
inline PixelParts channel_sum_parts(const TensorView& x) {  // of folded pixels
  const int fold = channel_sum_fold(x);
  return {x.pixels() / fold, x.C * fold, 512};
}
inline size_t channel_sum_workspace(const TensorView& x) {  // the map's data may be null
  return static_cast<size_t>(channel_sum_parts(x).parts) * channel_sum_fold(x) * x.C * sizeof(float);
}

// Makes the sums that wait in Stream::pending, up to kMostSums by a launch, and empties it.
struct PendingSums {
  std::vector<PartialSums>* sums;
};
REGOLITH_KERNEL(pending_sums, PendingSums);
inline constexpr int kMostSums = 64;

inline constexpr int kMostParts = 8;

struct ImageSum {
  TensorView x;
  TensorView sum;  // (N, 1, 1, C)
  float scale = 1;
  void* workspace = nullptr;  // image_sum_workspace(x) bytes (pixel_parts.h), 256-byte aligned
};
REGOLITH_KERNEL(image_sum, ImageSum);

struct AddImages {
  TensorView parts[kMostParts];
  int count = 0;
  TensorView image;  // (N, 1, 1, C) or null
  float scale = 1;
  const float* bias = nullptr;  // (C) or null
  TensorView y;                 // may be one of the parts
  bool accumulate = false;
};
REGOLITH_KERNEL(add_images, AddImages);

}  // namespace regolith::kernels
