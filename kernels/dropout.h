// Dropout (Srivastava et al., JMLR 2014) and spatial dropout (Tompson et al., CVPR 2015), which drops whole channels of
// a sample: y = x * m / (1 - rate), m being 0 with probability `rate` (to 1 / 65536), else 1. As in Keras and PyTorch.
// Backward is the same call with dy for x and dx for y: m is drawn again from (key, step, sample, element).
// Maps are (N, H, W, C) of one element type and may be slices of channels. Throws KernelError for shapes or rates that
// do not fit.
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/core/random.h"

namespace regolith::kernels {

struct Dropout {
  TensorView x;
  TensorView y;        // may be x
  DropoutDraws draws;  // rate 0: a copy, or nothing where y is x
  bool accumulate = false;
};
REGOLITH_KERNEL(dropout, Dropout);

}  // namespace regolith::kernels
