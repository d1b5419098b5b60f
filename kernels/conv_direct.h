// Convolution by plain loops, in fp32, in an order that depends on the shape alone: the yardstick of the faster ones,
// and what runs where no library does. Maps may be slices. Semantics as in engine/conv/provider.h: a cross-correlation,
// zeros around the image; weights (K,R,S,C) of the maps' element type.
//
// Occupancy: at least 25% (256 threads).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct ConvWindow {
  int R = 1, S = 1;
  int stride[2] = {1, 1}, dilation[2] = {1, 1};
  int pad[2] = {0, 0};  // top, left; bottom and right follow from the size of y
};

struct ConvDirectForward {
  TensorView x;                 // (N, H, W, C)
  const void* w = nullptr;      // (K, R, S, C)
  const float* bias = nullptr;  // (K) or null
  TensorView y;                 // (N, P, Q, K)
  ConvWindow window;
  bool relu = false;
};
REGOLITH_KERNEL(conv_direct_forward, ConvDirectForward);

struct ConvDirectDgrad {
  TensorView dy;            // (N, P, Q, K)
  const void* w = nullptr;  // (K, R, S, C)
  TensorView dx;            // (N, H, W, C); written, or added to
  ConvWindow window;
  bool accumulate = false;
};
REGOLITH_KERNEL(conv_direct_dgrad, ConvDirectDgrad);

struct ConvDirectWgrad {
  TensorView x, dy;     // (N, H, W, C), (N, P, Q, K)
  float* dw = nullptr;  // (K, R, S, C); written, or added to
  ConvWindow window;
  bool accumulate = false;
};
REGOLITH_KERNEL(conv_direct_wgrad, ConvDirectWgrad);

}  // namespace regolith::kernels
