// The weights that a term of the loss gives to single pixels. Both kinds may be asked for: they multiply.
//
// Near a boundary: 1 + boundary_weight * exp(-d^2 / (2 boundary_sigma^2)), d the distance in pixels to the nearest
// pixel of another class (1 beside it), exact within boundary_radius(sigma); 1 where there is none so near. After
// Ronneberger, Fischer, Brox, "U-Net", 2015, whose d is the sum of the distances to the two nearest cells, so that only
// gaps between cells weigh more. Pixels without truth are of no class: no boundary runs along them.
//
// Hard pixels (Shrivastava, Gupta, Girshick, "Training region-based object detectors with online hard example mining",
// 2016; for pixels Wu, Shen, van den Hengel, "Bridging category-level and instance-level semantic image segmentation",
// 2016): of each image those whose true class has a probability below hard_threshold, and at least a share hard_share
// of its pixels that count, those of the lowest probability, with all that equal the last of them. The others weigh 0.
// With hard_mean the kept ones weigh the image's pixels over their number, so that a mean over all pixels becomes one
// over them. Pixels without truth, and of a class of weight 0, do not count. NaN is kept.
//
// Occupancy: at least 50% (256 threads).
// Occupancy of true_probability: at least 50% (256 threads, 6144 bytes of shared memory).
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/loss_terms.h"

namespace regolith::kernels {

struct PixelWeights {
  TensorView logits;              // (N, H, W, K <= 32)
  const uint8_t* mask = nullptr;  // (N, H, W)
  int ignore = -1;
  LossTerms::Pixel term;  // that weighs_pixels()
  float* weights;         // (N, H, W)
  void* workspace;        // pixel_weights_workspace bytes, 4-byte aligned
};
// Throws KernelError for a boundary_sigma whose radius is above kMostBoundaryRadius.
REGOLITH_KERNEL(pixel_weights, PixelWeights);

inline constexpr int kMostBoundaryRadius = 254;
// Where boundary_weight has fallen to a 3000th.
inline int boundary_radius(float sigma) {
  const float radius = 4 * sigma;
  return static_cast<int>(radius) + (static_cast<float>(static_cast<int>(radius)) < radius);
}

inline size_t pixel_weights_workspace(int N, int H, int W) { return static_cast<size_t>(N) * H * W * sizeof(uint32_t); }

}  // namespace regolith::kernels
