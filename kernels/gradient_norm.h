// Around the optimizer: the norm of all gradients, whether they are finite, clipping by the global norm, and the loss
// scale. Everything stays on the device; a step is begin_update, the optimizer, end_update.
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/step_state.h"

namespace regolith::kernels {

// norm = |g| / loss_scale over the whole flat buffer; finite = whether the norm is; gradient_scale = clip / loss_scale
// with clip = clip_norm / max(norm, clip_norm) (1 where clip_norm is 0); bias_correction from the betas.
struct BeginUpdate {
  StepState* state = nullptr;       // device memory, as all pointers here
  const float* gradient = nullptr;  // (count), 16-byte aligned; times the loss scale
  int64_t count = 0;
  float clip_norm = 0;
  double beta1 = 0, beta2 = 0;
  double* workspace = nullptr;  // gradient_norm_partials(count) values
};
REGOLITH_KERNEL(begin_update, BeginUpdate);

inline constexpr int64_t kNormBlockValues = 16384;  // that one block sums up: the order does not depend on the machine
inline int64_t gradient_norm_partials(int64_t count) { return (count + kNormBlockValues - 1) / kNormBlockValues; }

// Counts the step. A finite one is an update; the other is skipped. With dynamic_scale (fp16) the loss scale doubles
// after 2000 updates in a row, up to 2^24, and halves at a skipped step (Micikevicius et al., "Mixed precision
// training", 2018; the numbers are those of PyTorch's GradScaler).
struct EndUpdate {
  StepState* state = nullptr;
  bool dynamic_scale = false;
  int64_t growth_interval = 2000;
};
REGOLITH_KERNEL(end_update, EndUpdate);

// Writes the learning rate of the coming steps: a launch of its own, between replays of a captured step.
struct SetLearningRate {
  StepState* state = nullptr;
  float value = 0;
};
REGOLITH_KERNEL(set_learning_rate, SetLearningRate);

}  // namespace regolith::kernels
