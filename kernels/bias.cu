#include "kernels/bias.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads) add_bias(TensorView x, const float* bias, TensorView y, float floor) {
  using V = Vec<L>;
  const Range pixels = block_range(x.pixels(), 64);
  for (int64_t p = pixels.begin + threadIdx.y; p < pixels.end; p += blockDim.y) {
    const T* in = x.as<const T>() + p * x.pitch;
    T* out = y.as<T>() + p * y.pitch;
    for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L)
      store(out + c, max(V(floor), load<V>(in + c) + load<V>(bias + c)));  // NaN stays: max(a, NaN) is NaN
  }
}

}  // namespace

void bias_forward(Stream& stream, const BiasForward& k) {
  with_float_type(k.y.dtype, "bias_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y, row_map(k.bias, k.y.C)}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "bias", {blocks_for(stream, k.y.pixels(), 64)}, columns_block(k.y.C / L), 0, add_bias<T, L>, k.x,
             k.bias, k.y, k.relu ? 0.0f : -INFINITY);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
