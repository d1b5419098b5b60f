// Layer normalisation (Ba, Kiros, Hinton 2016) of every pixel over its channels, as PyTorch's LayerNorm(C) on NHWC
// maps:
//
//   y = gamma * (x - mean) * rstd + beta,  rstd = 1 / sqrt(variance + epsilon)
//
// mean and (biased) variance are those of the pixel's C values, the variance summed about the mean, in fp32. Backward,
// with h = (x - mean) * rstd and g = gamma * dy, and means over the channels of the pixel:
//
//   dx = rstd * (g - mean(g) - h * mean(g * h)),  dgamma = sum over the pixels of dy * h,  dbeta = sum of dy
//
// The sums over the pixels go through partial sums, added in an order that depends on the shape alone. Maps are
// (N, H, W, C) of one element type and may be slices of channels. Throws KernelError for shapes that do not fit.
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/core/pixel_parts.h"

namespace regolith::kernels {

struct LayerNormForward {
  TensorView x;
  TensorView y;               // may be x, where backward does not need it
  const float *gamma, *beta;  // (C)
  float *mean, *rstd;         // (N * H * W), kept for backward
  float epsilon = 1e-5f;
};
REGOLITH_KERNEL(layer_norm_forward, LayerNormForward);

struct LayerNormBackward {
  TensorView x, dy;
  TensorView dx;             // may be dy; null: not wanted
  const float* gamma;        // (C)
  const float *mean, *rstd;  // (N * H * W)
  float *dgamma, *dbeta;     // (C)
  bool accumulate_dx = false, accumulate_parameters = false;
  void* workspace;  // layer_norm_workspace(x) bytes, 256-byte aligned
};
REGOLITH_KERNEL(layer_norm_backward, LayerNormBackward);

// In which the parameters' gradients are summed.
inline PixelParts layer_norm_parts(const TensorView& x) { return {x.pixels(), x.C, 512}; }
inline size_t layer_norm_workspace(const TensorView& x) {  // the map's data may be null
  return static_cast<size_t>(layer_norm_parts(x).parts) * 2 * x.C * sizeof(float);
}

}  // namespace regolith::kernels
