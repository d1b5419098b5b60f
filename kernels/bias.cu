#include "kernels/bias.h"

#include "kernels/core/elementwise.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

struct AddBias {
  float floor;
  template <class V>
  __device__ __forceinline__ V operator()(const V& x, const V& bias) const {
    return max(V(floor), x + bias);  // NaN stays: max(a, NaN) is NaN
  }
};

}  // namespace

void bias_forward(Stream& stream, const BiasForward& k) {
  elementwise(stream, "bias", AddBias{k.relu ? 0.0f : -INFINITY}, k.y, false, k.x, Parameter{k.bias, 0});
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
