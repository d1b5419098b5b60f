#include "kernels/sigmoid.h"

#include "kernels/core/flat.h"
#include "kernels/core/launch.h"
#include "kernels/core/math.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 256;

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    sigmoid(const T* x, int x_pitch, T* y, int y_pitch, int64_t pixels, int C) {
  for_each_tile<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      store_pack(y + p * y_pitch + c, P::each(
                                          [](const auto& v) {
                                            using V = std::remove_cvref_t<decltype(v)>;
                                            return V(1) / (V(1) + exp(V(0) - v));
                                          },
                                          load_pack<P>(x + p * x_pitch + c)));
    }
  });
}

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    sigmoid_gradient(const T* y, int y_pitch, const T* dy, int dy_pitch, T* dx, int dx_pitch, int64_t pixels, int C,
                     bool accumulate) {
  for_each_tile<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      T* out = dx + p * dx_pitch + c;
      const P s = load_pack<P>(y + p * y_pitch + c);
      P g = load_pack<P>(dy + p * dy_pitch + c) * s * (P(1) - s);
      if (accumulate) g += load_pack<P>(out);
      store_pack(out, g);
    }
  });
}

}  // namespace

void sigmoid_forward(Stream& stream, const SigmoidForward& k) {
  TensorView x = k.x, y = k.y;
  with_elements(
      "sigmoid_forward",
      [&](auto t, auto pack) {
        using T = decltype(t);
        using P = decltype(pack);
        launch(stream, "sigmoid", {blocks_for(stream, x.elements() / P::size, 1024)}, {kThreads}, 0, sigmoid<T, P>,
               x.as<T>(), x.pitch, y.as<T>(), y.pitch, x.pixels(), x.C);
      },
      x, y);
}

void sigmoid_backward(Stream& stream, const SigmoidBackward& k) {
  TensorView y = k.y, dy = k.dy, dx = k.dx;
  with_elements(
      "sigmoid_backward",
      [&](auto t, auto pack) {
        using T = decltype(t);
        using P = decltype(pack);
        launch(stream, "sigmoid_gradient", {blocks_for(stream, y.elements() / P::size, 1024)}, {kThreads}, 0,
               sigmoid_gradient<T, P>, y.as<T>(), y.pitch, dy.as<T>(), dy.pitch, dx.as<T>(), dx.pitch, y.pixels(), y.C,
               k.accumulate);
      },
      y, dy, dx);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
