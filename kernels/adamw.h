// The optimizers: all parameters of a network, one flat buffer, one launch. The low-precision copy of the weights that
// convolutions read is written in the same pass. Nothing changes where the state says that a gradient is not finite.
// Occupancy: at least 100% (256 threads).
#pragma once

#include "kernels/core/kernel.h"
#include "kernels/step_state.h"

namespace regolith::kernels {

// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019). With g the gradient times the state's
// gradient_scale, and its lr and bias corrections c1 and c2:
//   w -= lr * weight_decay * w;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   w -= lr * (m / c1) / (sqrt(v / c2) + epsilon)                        as PyTorch
//   w -= lr * (m / c1) / (sqrt(v / c2) + epsilon / sqrt(c2))             epsilon_hat, as Keras: lr sqrt(c2) / c1 *
//                                                                        m / (sqrt(v) + epsilon)
struct AdamW {
  const StepState* state = nullptr;  // device memory, as all pointers here
  float* weights = nullptr;          // (count) each; 16-byte aligned
  const float* gradient = nullptr;
  float *m = nullptr, *v = nullptr;
  void* copy = nullptr;  // (count) of copy_type, bf16 or fp16; null: none
  DType copy_type = DType::bf16;
  int64_t count = 0;
  double beta1 = .9, beta2 = .999;  // double: 1 - beta2 has few digits of its own in a float
  float epsilon = 1e-7f, weight_decay = .004f;
  bool epsilon_hat = true;  // epsilon is added before the bias correction of v, which then divides it too
};
REGOLITH_KERNEL(adamw, AdamW);

// Gradient descent with momentum, as PyTorch's SGD: g += weight_decay * w;  m = momentum m + g;
// w -= lr * (nesterov ? g + momentum m : m)
struct Sgd {
  const StepState* state = nullptr;
  float* weights = nullptr;
  const float* gradient = nullptr;
  float* m = nullptr;
  void* copy = nullptr;
  DType copy_type = DType::bf16;
  int64_t count = 0;
  float momentum = .9f, weight_decay = 0;
  bool nesterov = false;
};
REGOLITH_KERNEL(sgd, Sgd);

}  // namespace regolith::kernels
