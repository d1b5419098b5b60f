#include "kernels/activation.h"

#include "kernels/core/flat.h"
#include "kernels/core/launch.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 256;

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    relu(const T* x, int x_pitch, T* y, int y_pitch, int64_t pixels, int C) {
  for_each_tile<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      store_pack(y + p * y_pitch + c, max(P(0), load_pack<P>(x + p * x_pitch + c)));
    }
  });
}

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    relu_gradient(const T* y, int y_pitch, const T* dy, int dy_pitch, T* dx, int dx_pitch, int64_t pixels, int C,
                  bool accumulate) {
  for_each_tile<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      T* out = dx + p * dx_pitch + c;
      P g = where_positive(load_pack<P>(y + p * y_pitch + c), load_pack<P>(dy + p * dy_pitch + c));
      if (accumulate) g += load_pack<P>(out);
      store_pack(out, g);
    }
  });
}

}  // namespace

void relu_forward(Stream& stream, const ReluForward& k) {
  TensorView x = k.x, y = k.y;
  with_elements(
      "relu_forward",
      [&](auto t, auto pack) {
        using T = decltype(t);
        using P = decltype(pack);
        launch(stream, "relu", {blocks_for(stream, x.elements() / P::size, 1024)}, {kThreads}, 0, relu<T, P>, x.as<T>(),
               x.pitch, y.as<T>(), y.pitch, x.pixels(), x.C);
      },
      x, y);
}

void relu_backward(Stream& stream, const ReluBackward& k) {
  TensorView y = k.y, dy = k.dy, dx = k.dx;
  with_elements(
      "relu_backward",
      [&](auto t, auto pack) {
        using T = decltype(t);
        using P = decltype(pack);
        launch(stream, "relu_gradient", {blocks_for(stream, y.elements() / P::size, 1024)}, {kThreads}, 0,
               relu_gradient<T, P>, y.as<T>(), y.pitch, dy.as<T>(), dy.pitch, dx.as<T>(), dx.pitch, y.pixels(), y.C,
               k.accumulate);
      },
      y, dy, dx);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
