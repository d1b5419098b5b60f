#include "kernels/gelu.h"

#include "kernels/core/flat.h"
#include "kernels/core/launch.h"
#include "kernels/core/math.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 256;

template <int L>
__device__ __forceinline__ Vec<L> normal_distribution(const Vec<L>& x) {
  using V = Vec<L>;
  return fma(erf(x * V(0x1.6a09e6p-1f)), V(.5f), V(.5f));  // sqrt(1/2)
}

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    gelu(const T* x, int x_pitch, T* y, int y_pitch, int64_t pixels, int C) {
  for_each_tile<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      const P value = load_pack<P>(x + p * x_pitch + c);
      store_pack(y + p * y_pitch + c, P::each([](const auto& v) { return v * normal_distribution(v); }, value));
    }
  });
}

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    gelu_gradient(const T* x, int x_pitch, const T* dy, int dy_pitch, T* dx, int dx_pitch, int64_t pixels, int C,
                  bool accumulate) {
  const auto slope = [](const auto& v) {
    using V = std::remove_cvref_t<decltype(v)>;
    const V density = exp(v * v * V(-.5f)) * V(0x1.988454p-2f);  // 1 / sqrt(2 pi)
    return fma(v, density, normal_distribution(v));
  };
  for_each_tile<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      T* out = dx + p * dx_pitch + c;
      P g = P::each(slope, load_pack<P>(x + p * x_pitch + c)) * load_pack<P>(dy + p * dy_pitch + c);
      if (accumulate) g += load_pack<P>(out);
      store_pack(out, g);
    }
  });
}

}  // namespace

void gelu_forward(Stream& stream, const GeluForward& k) {
  TensorView x = k.x, y = k.y;
  with_elements(
      "gelu_forward",
      [&](auto t, auto pack) {
        using T = decltype(t);
        using P = decltype(pack);
        launch(stream, "gelu", {blocks_for(stream, x.elements() / P::size, 1024)}, {kThreads}, 0, gelu<T, P>,
               x.as<const T>(), x.pitch, y.as<T>(), y.pitch, x.pixels(), x.C);
      },
      x, y);
}

void gelu_backward(Stream& stream, const GeluBackward& k) {
  TensorView x = k.x, dy = k.dy, dx = k.dx;
  with_elements(
      "gelu_backward",
      [&](auto t, auto pack) {
        using T = decltype(t);
        using P = decltype(pack);
        launch(stream, "gelu_gradient", {blocks_for(stream, x.elements() / P::size, 1024)}, {kThreads}, 0,
               gelu_gradient<T, P>, x.as<const T>(), x.pitch, dy.as<const T>(), dy.pitch, dx.as<T>(), dx.pitch,
               x.pixels(), x.C, k.accumulate);
      },
      x, dy, dx);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
