#include "kernels/activation.h"

#include "kernels/core/elementwise.h"
#include "kernels/core/math.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class V>
__device__ __forceinline__ V normal_distribution(const V& x) {
  return fma(erf(x * V(0x1.6a09e6p-1f)), V(.5f), V(.5f));  // sqrt(1/2)
}
template <class V>
__device__ __forceinline__ V normal_density(const V& x) {
  return exp(x * x * V(-.5f)) * V(0x1.988454p-2f);  // 1 / sqrt(2 pi)
}

#define REGOLITH_FUNCTIONS(name, saved, y_of_x, dx_of_dy)                        \
  struct name {                                                                  \
    template <class V>                                                           \
    __device__ __forceinline__ V operator()(const V& x) const {                  \
      return y_of_x;                                                             \
    }                                                                            \
  };                                                                             \
  struct name##_gradient {                                                       \
    template <class V>                                                           \
    __device__ __forceinline__ V operator()(const V& saved, const V& dy) const { \
      return dx_of_dy;                                                           \
    }                                                                            \
  };
REGOLITH_ACTIVATIONS(REGOLITH_FUNCTIONS)

}  // namespace

void activation_forward(Stream& stream, const ActivationForward& k) {
  switch (k.f) {
#define REGOLITH_FORWARD(name, ...) \
  case Activation::name:            \
    return elementwise(stream, #name, name{}, k.y, false, k.x);
    REGOLITH_ACTIVATIONS(REGOLITH_FORWARD)
  }
}

void activation_backward(Stream& stream, const ActivationBackward& k) {
  switch (k.f) {
#define REGOLITH_BACKWARD(name, ...) \
  case Activation::name:             \
    return elementwise(stream, #name "_gradient", name##_gradient{}, k.dx, k.accumulate, k.saved, k.dy);
    REGOLITH_ACTIVATIONS(REGOLITH_BACKWARD)
  }
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
