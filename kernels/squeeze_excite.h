// Squeeze and excitation (Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018), with what follows it folded
// into its pass:
//
//   s = sigmoid(W2 relu(W1 mean(x) + b1) + b2),   y = x * s
//   pool:    y = max_pool(x) * s, windows of 2x2 (s > 0, so that the maximum of x * s is the maximum of x, times s)
//   dropout: y = x * s * m / (1 - rate), as dropout.h has it
//
// With `norm` the x of these is what a norm before would have made of the map: max(0, (x - mean) * scale + beta). Then
// backward need not write dx either: of sums over the pixels alone it makes those that the norm's gradient wants, and
// leaves to its reader (GradientOnLoad of conv_tile.h) what makes the gradient at the norm's output of dy.
//
// mean(x) is that of a sample's H * W values of a channel, in fp32. Dense layers are (out, in), as in PyTorch; the
// semantics are those of Keras' GlobalAveragePooling2D, Dense, Dense, multiply. Maps are (N, H, W, C) of one element
// type and may be slices of channels. Throws KernelError for shapes that do not fit.
//
// Occupancy: at least 25% (256 threads).
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/core/random.h"

namespace regolith::kernels {

// What both directions share.
struct SqueezeExcite {
  TensorView x;
  int hidden = 1;
  const float *reduce, *reduce_bias;  // W1 (hidden, C), b1 (hidden)
  const float *expand, *expand_bias;  // W2 (C, hidden), b2 (C)
  float *mean, *activation, *scale;   // (N, C), (N, hidden), (N, C): made by forward, read by backward
  bool pool = false;
  DropoutDraws dropout;  // rate 0: none; not with pool
  // (N, 3, C), mean, scale and beta, and (N, 2, C), made by forward: sums over an image of the slope of ReLU, and of it
  // times x - mean. Not with pool. Or null.
  const float* norm = nullptr;
  float* slopes = nullptr;
  void* workspace = nullptr;  // squeeze_excite_workspace() bytes
};

struct SqueezeExciteForward {
  SqueezeExcite op;
  TensorView y;                 // like x, and may be x; pool: (N, H / 2, W / 2, C)
  const float* sums = nullptr;  // (N, C): sums of x over H and W, where whoever made x has them; null: taken here
};
REGOLITH_KERNEL(squeeze_excite_forward, SqueezeExciteForward);

struct SqueezeExciteBackward {
  SqueezeExcite op;
  TensorView dy;  // like y
  TensorView dx;  // like x, and may be dy; null where not wanted, and with norm
  float *dreduce, *dreduce_bias, *dexpand, *dexpand_bias;  // null where not wanted
  bool accumulate_dx = false, accumulate_parameters = false;
  // With norm: (N, 2, C), sums of the gradient g before its ReLU, and of g * (x - mean); (N, 2, C), scale and offset of
  // dy (* dropout).
  float *sums = nullptr, *affine = nullptr;
};
REGOLITH_KERNEL(squeeze_excite_backward, SqueezeExciteBackward);

// Bytes of the workspace, forward and backward, on any machine: room for 512 partial results of two sums, or one a
// sample, and for the gradients of what the dense layers computed.
constexpr size_t squeeze_excite_workspace(int N, int C, int hidden) {
  return (static_cast<size_t>(N < 512 ? 512 : N) * 2 * C + static_cast<size_t>(N) * (2 * C + hidden)) * sizeof(float);
}

}  // namespace regolith::kernels
