// One number per image and channel: sums over the pixels of each image, and sums of maps and of such numbers.
//
//   image_sum:  sum[n,c] = scale * sum over h, w of x[n,h,w,c]
//   add_images: y[n,h,w,c] (+)= parts_0[n,h,w,c] + parts_1[n,h,w,c] + ... + scale * image[n,c]
//
// With scale 1 / (H * W) the first is Keras' GlobalAveragePooling2D(keepdims=True) and PyTorch's AdaptiveAvgPool2d(1),
// the second without parts its gradient. In fp32, in an order that depends on the shape alone. Maps are (N, H, W, C) of
// one element type and may be slices.
#pragma once

#include "kernels/core/image_parts.h"
#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kMostParts = 8;

struct ImageSum {
  TensorView x;
  TensorView sum;  // (N, 1, 1, C)
  float scale = 1;
  void* workspace = nullptr;  // image_sum_workspace(x) bytes, 256-byte aligned
};
REGOLITH_KERNEL(image_sum, ImageSum);
inline size_t image_sum_workspace(const TensorView& x) { return ImageSumLayout(x).bytes(x); }  // data may be null

struct AddImages {
  TensorView parts[kMostParts];
  int count = 0;
  TensorView image;  // (N, 1, 1, C) or null
  float scale = 1;
  TensorView y;  // may be one of the parts
  bool accumulate = false;
};
REGOLITH_KERNEL(add_images, AddImages);

}  // namespace regolith::kernels
