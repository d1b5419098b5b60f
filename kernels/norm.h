// Group normalisation (Wu and He, "Group Normalization", ECCV 2018) and batch normalisation (Ioffe and Szegedy, ICML
// 2015) with residual add, ReLU and dropout (dropout.h) in the same pass:
//
//   y = act(gamma * (x - mean) * rstd + beta (+ residual)) (* dropout),  rstd = 1 / sqrt(variance + epsilon)
//
// Group norm: mean and (biased) variance are those of the H * W * C / groups values of a sample's group of neighbouring
// channels. Batch norm is the norm of one sample whose every channel is a group: they are those of a channel over N, H
// and W. Both are summed in fp32 about a shift. Results do not depend on timing; on another machine they may round
// differently.
//
// Batch norm in training also updates
//   running = keep * running + (1 - keep) * batch,
// keep being the momentum and the batch's variance the biased one, as in Keras 3 (PyTorch keeps 1 - momentum, and takes
// the unbiased variance). With a step t it is the least of momentum and (1 + t) / (10 + t), as TensorFlow's
// ExponentialMovingAverage(num_updates=t) has it: else the statistics would be those of the initial values for hundreds
// of steps, a momentum of 0.99 leaves a third of them after a hundred. Otherwise it uses the running statistics, and
// backward treats them as constants.
//
// With `ranks`, batch norm's statistics are those of the images of all ranks, as PyTorch's SyncBatchNorm has them: each
// rank's moments are merged in the order of the ranks, and in backward their sums added up in it. Every rank must have
// an image. The gradients of gamma and beta are those of the rank's own images.
//
// Maps are (N, H, W, C) of one element type and may be slices of channels. Throws KernelError for shapes that do not
// fit.
//
// Occupancy: at least 37% (256 threads).
// Occupancy of norm_gradient_sums: at least 25% (256 threads).
// Occupancy of norm_apply_gradient: at least 25% (256 threads).
#pragma once

#include "kernels/core/batch_ranks.h"
#include "kernels/core/kernel.h"
#include "kernels/core/random.h"

namespace regolith::kernels {

// What both directions have in common.
struct Norm {
  TensorView x;
  int groups = 0;             // of group norm, a divisor of C; 0: batch norm
  const float *gamma, *beta;  // (C)
  float *mean, *rstd;         // (N, groups) or (C): written by forward, read by backward
  // (N, C) of group norm, each channel's mean less that of its group: written by forward without x_sums, read for
  // dx_sums; or null.
  float* deviation = nullptr;
  bool relu = false;
  DropoutDraws dropout{};       // rate 0: none
  bool training = true;         // false: batch norm by its running statistics
  void* workspace = nullptr;    // norm_workspace() bytes
  BatchRanks* ranks = nullptr;  // of batch norm in training; or null

  REGOLITH_HOST_DEVICE int samples() const { return groups > 0 ? x.N : 1; }
  REGOLITH_HOST_DEVICE int64_t pixels() const { return static_cast<int64_t>(groups > 0 ? 1 : x.N) * x.H * x.W; }
  REGOLITH_HOST_DEVICE int group_channels() const { return groups > 0 ? x.C / groups : 1; }
};

struct NormForward {
  Norm norm;
  TensorView residual;  // or null
  TensorView y;         // may be x or residual
  float epsilon = 1e-3f;
  float* sums = nullptr;  // of group norm: (N, C), sums of y over H and W before y is rounded; or null
  // Of group norm: (N, 2, C), the sums of x over H and W and those of its squares, which spare a pass over x; or null.
  const float* x_sums = nullptr;
  // Of group norm without a residual: (N, 2, C), each channel's scale and shift: y would be act(x * scale + shift), and
  // is not written. Or null.
  float* affine = nullptr;
  // Moments of the strips of x, as tile_forward leaves them (conv_tile.h), which spare a pass over x; or null.
  const float* x_moments = nullptr;
  // (samples, 3, C), for readers that normalise x themselves (NormOnLoad of conv_tile.h): y is not written then. Or
  // null.
  float* on_load = nullptr;
  // Of batch norm: (C), a bias that x lacks, and that the running mean has; or null.
  const float* x_bias = nullptr;
  float *running_mean = nullptr, *running_variance = nullptr;  // of batch norm: (C), updated in training, else read
  float momentum = 0.99f;
  const int64_t* step = nullptr;  // in device memory: steps done before this one; or null
};
REGOLITH_KERNEL(norm_forward, NormForward);

// With g = act'(y) * dy (* dropout): dx is the gradient of x, dresidual is g.
struct NormBackward {
  Norm norm;
  // With relu and a residual: the masks of activation and dropout are taken from it. Null: that of the activation is
  // computed anew from x, and what dropout drew is drawn again.
  TensorView y;
  TensorView dy;
  TensorView dx;          // may be dy; null: not wanted
  TensorView dresidual;   // null: not wanted; may be dy, where dx is not
  float *dgamma, *dbeta;  // (C)
  // (C), sums over the pixels of dx and of dresidual before they are rounded: the gradient of a bias that was added to
  // x or to the residual. Those of dx are zero, but for rounding, where a group is one channel, and need `deviation`
  // where it is more. Null: not wanted.
  float *dx_sums = nullptr, *dresidual_sums = nullptr;
  bool accumulate_dx = false, accumulate_dresidual = false, accumulate_parameters = false;
  // Sums of the strips of dy, as tile_backward leaves them: dy is g. Or null. whole_sums: those of each image instead,
  // and dy is not needed.
  const float* sums = nullptr;
  bool whole_sums = false;
  // (samples, 5, C), for a reader of dy that takes the gradient of x from it (GradientOnLoad of conv_tile.h): dx is
  // null then, and dy is not to be the memory of dresidual. Or null.
  float* on_load = nullptr;
  // With on_load and dresidual, (N, 2, C): of each image dy is first to be multiplied by the first row and the second
  // added, as a squeeze behind leaves them (squeeze_excite.h). Or null.
  const float* squeeze = nullptr;
};
REGOLITH_KERNEL(norm_backward, NormBackward);

// Bytes of the workspace, forward and backward, of maps of C channels in `samples` samples (1 for batch norm) on any
// machine: room for 512 partial sums of two quantities, or one a sample, and for the samples' totals of three.
constexpr size_t norm_workspace(int samples, int C) {
  return (static_cast<size_t>(samples < 512 ? 512 : samples) * 2 + static_cast<size_t>(samples) * 3) *
         static_cast<size_t>(C) * sizeof(float);
}

}  // namespace regolith::kernels
