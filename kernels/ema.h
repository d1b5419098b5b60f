// The moving average of the weights over the steps of a training (Polyak averaging, with exponential weights).
// Occupancy: at least 100% (256 threads).
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/step_state.h"

namespace regolith::kernels {

// After the optimizer and end_update(), with t = state->updates, the update that was just made counted:
//   average = weights                                   t = 1, as PyTorch's AveragedModel
//   average += (1 - d) (weights - average)              d = decay, or with warm_up min(decay, (1 + t) / (10 + t)), as
//                                                       TensorFlow's ExponentialMovingAverage with num_updates
// A step that was skipped, its gradients not being finite, leaves the average as it is.
struct Ema {
  const StepState* state = nullptr;  // device memory, as all pointers here
  const float* weights = nullptr;    // (count) each; 16-byte aligned
  float* average = nullptr;
  int64_t count = 0;
  double decay = 0.999;
  bool warm_up = true;
};
REGOLITH_KERNEL(ema, Ema);

// Exchanges two buffers.
struct Exchange {
  float *a = nullptr, *b = nullptr;  // (count) each, apart from each other; 16-byte aligned
  int64_t count = 0;
};
REGOLITH_KERNEL(exchange, Exchange);

}  // namespace regolith::kernels
