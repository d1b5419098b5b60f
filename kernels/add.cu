#include "kernels/add.h"

#include "kernels/core/launch.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, int L>
__global__ void __launch_bounds__(256)
    add(const T* a, int a_pitch, const T* b, int b_pitch, T* y, int y_pitch, int64_t pixels, int C, bool accumulate) {
  using V = Vec<L>;
  const int vectors = C / L;  // of a pixel
  const Range r = block_range(pixels * vectors, 256);
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x) {
    const int64_t p = i / vectors, c = i % vectors * L;
    V sum = load<V>(a + p * a_pitch + c);
    if (b != nullptr) sum += load<V>(b + p * b_pitch + c);
    T* out = y + p * y_pitch + c;
    if (accumulate) sum += load<V>(out);
    store(out, sum);
  }
}

}  // namespace

void add_forward(Stream& stream, const AddForward& k) {
  const int64_t pixels = k.y.pixels();
  with_float_type(k.y.dtype, "add_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.a, k.b, k.y}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "add", {blocks_for(stream, pixels * k.y.C / L, 1024)}, {256}, 0, add<T, L>, k.a.as<T>(), k.a.pitch,
             k.b.as<T>(), k.b.pitch, k.y.as<T>(), k.y.pitch, pixels, k.y.C, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
