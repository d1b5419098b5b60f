// Batch normalisation (Ioffe and Szegedy, ICML 2015) with residual add and ReLU in the same pass:
//
//   y = act(gamma * (x - mean) * rstd + beta (+ residual)),  rstd = 1 / sqrt(variance + epsilon)
//
// Training: mean and biased variance of a channel over N, H and W, and
//   running = keep * running + (1 - keep) * batch,
// keep being the momentum and the batch's variance the biased one, as in Keras 3 (PyTorch keeps 1 - momentum, and takes
// the unbiased variance). With a step t it is the least of momentum and (1 + t) / (10 + t), as TensorFlow's
// ExponentialMovingAverage(num_updates=t) has it: else the statistics would be those of the initial values for hundreds
// of steps, a momentum of 0.99 leaves a third of them after a hundred. Otherwise: the running statistics are used, and
// backward treats them as constants. Maps are (N, H, W, C) of one element type and may be slices of channels. Throws
// KernelError for shapes that do not fit.
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct BatchNormForward {
  TensorView x;
  TensorView residual;                     // or null
  TensorView y;                            // may be x or residual
  const float *gamma, *beta;               // (C)
  float *running_mean, *running_variance;  // (C), updated in training, else read
  float *mean, *rstd;                      // (C), what was used: kept for backward
  float momentum = 0.99f, epsilon = 1e-3f;
  const int64_t* step = nullptr;  // in device memory: steps done before this one; or null
  bool relu = false;
  bool training = true;
  void* workspace = nullptr;  // batch_norm_workspace() bytes
};
REGOLITH_KERNEL(batch_norm_forward, BatchNormForward);

// With g = act'(y) * (dy + dy2): dx is the gradient of x, dresidual is g. Each map may be null where not wanted, but
// for x, dy and dx.
struct BatchNormBackward {
  TensorView x;
  TensorView y;          // with relu and a residual: the activation's mask is taken from it; null: computed anew from x
  TensorView dy, dy2;    // dy2: a second gradient of y, or null
  TensorView dx;         // may be dy or dy2
  TensorView dresidual;  // or null; may be dy or dy2, where dx is not
  const float *gamma, *beta, *mean, *rstd;
  float *dgamma, *dbeta;  // (C)
  bool relu = false;
  bool training = true;
  bool accumulate_dx = false, accumulate_dresidual = false, accumulate_parameters = false;
  void* workspace = nullptr;  // batch_norm_workspace() bytes
};
REGOLITH_KERNEL(batch_norm_backward, BatchNormBackward);

// Bytes of the workspace, forward and backward, of maps of C channels on any machine: 512 partial sums and the total.
constexpr size_t batch_norm_workspace(int C) { return (512 + 1) * 2 * static_cast<size_t>(C) * sizeof(float); }

}  // namespace regolith::kernels
