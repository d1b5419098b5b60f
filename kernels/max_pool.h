// Max pooling without padding ("valid"): y[n,p,q,c] = max over i, j < kernel of x[n, p*stride + i, q*stride + j, c].
// NaN propagates. The gradient of a window goes to its first maximum in row-major order, as in PyTorch and TensorFlow;
// a window that holds NaN gives it to one of its pixels.
//
// Occupancy: at least 37% (256 threads).
#pragma once

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct MaxPoolForward {
  TensorView x;  // (N, H, W, C)
  TensorView y;  // (N, (H - kernel) / stride + 1, (W - kernel) / stride + 1, C)
  int kernel = 2, stride = 2;
};
REGOLITH_KERNEL(max_pool_forward, MaxPoolForward);

// Finds the maxima again in x. Pixels that no window covers get zero.
struct MaxPoolBackward {
  TensorView x;   // as in forward
  TensorView dy;  // like y
  TensorView dx;  // like x; written, or added to
  int kernel = 2, stride = 2;
  bool accumulate = false;
};
REGOLITH_KERNEL(max_pool_backward, MaxPoolBackward);

}  // namespace regolith::kernels
