#include "kernels/activation.h"

#include "kernels/core/crew.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

constexpr unsigned kThreads = 256;

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    relu(const T* x, int x_pitch, T* y, int y_pitch, int64_t pixels, int C) {
  for_shares<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      store_pack(y + p * y_pitch + c, max(P(0), load_pack<P>(x + p * x_pitch + c)));
    }
  });
}

template <class T, class P>
__global__ REGOLITH_FLAT void __launch_bounds__(kThreads, 4)
    relu_gradient(const T* y, int y_pitch, const T* dy, int dy_pitch, T* dx, int dx_pitch, int64_t pixels, int C,
                  bool accumulate) {
  for_shares<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      T* out = dx + p * dx_pitch + c;
      P g = where_positive(load_pack<P>(y + p * y_pitch + c), load_pack<P>(dy + p * dy_pitch + c));
      if (accumulate) g += load_pack<P>(out);
      store_pack(out, g);
    }
  });
}

template <class F>
void with_shapes(const char* kernel, std::initializer_list<Map> maps, F&& f) {
  const Map& x = *maps.begin();
  for (const Map& m : maps) {
    if (m.pixels() != x.pixels() || m.C != x.C || m.dtype != x.dtype) {
      throw KernelError(std::string(kernel) + ": all maps must have one shape and one element type");
    }
  }
  with_float_type(x.dtype, kernel, [&](auto t) {
    using T = decltype(t);
    with_lanes<T>(maps, [&](auto lanes) { with_pack<lanes>(x.C, [&](auto packs) { f(t, Pack<lanes, packs>{}); }); });
  });
}

}  // namespace

void relu_forward(Stream& stream, const ReluForward& k) {
  const int64_t pixels = k.x.pixels();
  with_shapes("relu_forward", {k.x, k.y}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    launch(stream, "relu", {blocks_for(stream, pixels * k.x.C / P::size, 1024)}, {kThreads}, 0, relu<T, P>, k.x.as<T>(),
           k.x.pitch, k.y.as<T>(), k.y.pitch, pixels, k.x.C);
  });
}

void relu_backward(Stream& stream, const ReluBackward& k) {
  const int64_t pixels = k.y.pixels();
  with_shapes("relu_backward", {k.y, k.dy, k.dx}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    launch(stream, "relu_gradient", {blocks_for(stream, pixels * k.y.C / P::size, 1024)}, {kThreads}, 0,
           relu_gradient<T, P>, k.y.as<T>(), k.y.pitch, k.dy.as<T>(), k.dy.pitch, k.dx.as<T>(), k.dx.pitch, pixels,
           k.y.C, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
