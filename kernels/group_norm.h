// Group normalisation (Wu and He, "Group Normalization", ECCV 2018) with residual add and ReLU in the same pass:
//
//   y = act(gamma * (x - mean) * rstd + beta (+ residual)),  rstd = 1 / sqrt(variance + epsilon)
//
// mean and (biased) variance are those of the H * W * C / groups values of a sample's group of neighbouring channels,
// summed in fp32 about a shift. Results do not depend on timing; on another machine they may round differently.
// Maps are (N, H, W, C) of one element type and may be slices of channels. Throws KernelError for shapes that do not
// fit.
//
// Occupancy: at least 25% (512 threads).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct GroupNormForward {
  TensorView x;
  TensorView residual;        // or null
  TensorView y;               // may be x or residual
  const float *gamma, *beta;  // (C)
  float *mean, *rstd;         // (N, groups), kept for backward
  float* sums = nullptr;      // (N, C) or null: sums of y over H and W, before y is rounded
  int groups = 32;            // divides C
  float epsilon = 1e-3f;
  bool relu = false;
  void* workspace = nullptr;  // group_norm_workspace() bytes
};
REGOLITH_KERNEL(group_norm_forward, GroupNormForward);

// With g = act'(y) * (dy + dy2): dx is the gradient of x, dresidual is g. Each map may be null where not wanted, but
// for x, dy and dx.
struct GroupNormBackward {
  TensorView x;
  TensorView y;          // with relu and a residual: the activation's mask is taken from it; null: computed anew from x
  TensorView dy, dy2;    // dy2: a second gradient of y, or null
  TensorView dx;         // may be dy or dy2
  TensorView dresidual;  // or null; may be dy or dy2, where dx is not
  const float *gamma, *beta, *mean, *rstd;
  float *dgamma, *dbeta;  // (C)
  int groups = 32;
  bool relu = false;
  bool accumulate_dx = false, accumulate_dresidual = false, accumulate_parameters = false;
  void* workspace = nullptr;  // group_norm_workspace() bytes
};
REGOLITH_KERNEL(group_norm_backward, GroupNormBackward);

// Bytes of the workspace, forward and backward, of maps of N samples and C channels on any machine: room for 512
// partial sums, or one a sample, and for the samples' totals.
constexpr size_t group_norm_workspace(int N, int C) {
  return (static_cast<size_t>(N < 512 ? 512 : N) + static_cast<size_t>(N)) * 2 * static_cast<size_t>(C) * sizeof(float);
}

}  // namespace regolith::kernels
