// Softmax over the channels of each pixel, as Keras' and PyTorch's softmax with the last axis of NHWC. In fp32, the
// largest channel subtracted first. Maps are (N, H, W, C) of one element type and may be slices of channels; y of the
// forward pass may be of fp32 beside any x.
//
// Occupancy of softmax: at least 50% (256 threads, 5120 bytes of shared memory).
// Occupancy of softmax_gradient: at least 50% (256 threads, 10240 bytes of shared memory).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

inline constexpr int kSoftmaxChannels = 384;  // at most

struct SoftmaxForward {               // y = exp(x) / sum over c of exp(x)
  TensorView x, y;                    // y may be x
  const uint8_t* excluded = nullptr;  // (C) device memory; where it is not 0, the channel's y is 0 and the others share
};
REGOLITH_KERNEL(softmax_forward, SoftmaxForward);

struct SoftmaxBackward {  // dx = y * (dy - sum over c of dy * y)
  TensorView y, dy;
  TensorView dx;  // written, or added to; may be dy
  bool accumulate = false;
};
REGOLITH_KERNEL(softmax_backward, SoftmaxBackward);

}  // namespace regolith::kernels
