// What a training step keeps in device memory, so that a captured step needs no word from the host: written by the
// kernels of gradient_norm.h, read by the optimizers, the loss (loss_scale) and whatever draws random numbers (step).
#pragma once

#include <cstdint>

namespace regolith {

// 80 bytes, 8-byte aligned. Start from a StepState{} with the learning rate (and 2^16 as loss_scale for fp16) set.
struct StepState {
  int64_t step = 0;              // steps begun so far, skipped ones too: the counter of random numbers
  int64_t updates = 0;           // steps that changed the weights: the t of the moments' bias correction
  int64_t skipped = 0;           // steps whose gradients were not finite
  int64_t skipped_in_a_row = 0;  // the same, since the last update
  int64_t clean_steps = 0;       // updates since the loss scale last changed
  double gradient_norm = 0;      // of the last step: over all parameters, loss scale taken out; may be infinite or NaN
  double bias_correction[2] = {};  // 1 - beta^t of the coming update, t = updates + 1
  float learning_rate = 0;
  float loss_scale = 1;      // the gradient of the loss is multiplied by it
  float gradient_scale = 1;  // clip factor / loss scale: what the optimizer multiplies the gradient by
  int32_t finite = 1;        // 0: the gradients of the last step were not, and the optimizer leaves everything as it is
};
static_assert(sizeof(StepState) == 80);

}  // namespace regolith
