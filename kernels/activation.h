// Activations: y = f(x) and dx (+)= dy * f'(x), element by element. Maps are (N, H, W, C) of one element type and may
// be slices of channels. Adding one is a line here and a line in engine/ops/pointwise.cpp.
#pragma once

#include <string_view>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

// Name; whether the gradient reads x or y; y of x; dx of that and dy. V is a vector of fp32. NaN stays NaN in all.
//
// GELU (Hendrycks and Gimpel 2016) is the exact form, PyTorch's default: x * F(x), F(x) = (1 + erf(x / sqrt(2))) / 2.
// clang-format off
#define REGOLITH_ACTIVATIONS(ACTIVATION)                                                                              \
  ACTIVATION(relu, y, max(V(0), x), select(y > V(0), dy, V(0)))                                                       \
  ACTIVATION(sigmoid, y, V(1) / (V(1) + exp(V(0) - x)), dy * y * (V(1) - y))                                          \
  ACTIVATION(gelu, x, x * normal_distribution(x), fma(x, normal_density(x), normal_distribution(x)) * dy)
// clang-format on

#define REGOLITH_NAME(name, saved, y_of_x, dx_of_dy) name,
enum class Activation { REGOLITH_ACTIVATIONS(REGOLITH_NAME) };
#undef REGOLITH_NAME

struct ActivationTraits {
  std::string_view name;
  bool gradient_reads_x;  // else y, and y may be x
};
constexpr ActivationTraits traits_of(Activation f) {
#define REGOLITH_TRAITS(name, saved, y_of_x, dx_of_dy) {#name, std::string_view(#saved) == "x"},
  constexpr ActivationTraits all[] = {REGOLITH_ACTIVATIONS(REGOLITH_TRAITS)};
#undef REGOLITH_TRAITS
  return all[static_cast<int>(f)];
}

struct ActivationForward {
  Activation f;
  TensorView x, y;  // y may be x
};
REGOLITH_KERNEL(activation_forward, ActivationForward);

struct ActivationBackward {
  Activation f;
  TensorView saved, dy;  // saved: x or y, as traits_of() says
  TensorView dx;         // written, or added to; may be dy
  bool accumulate = false;
};
REGOLITH_KERNEL(activation_backward, ActivationBackward);

}  // namespace regolith::kernels
