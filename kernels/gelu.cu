#include "kernels/gelu.h"

#include "kernels/core/crew.h"
#include "kernels/core/launch.h"
#include "kernels/core/math.h"

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
  for_shares<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
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
  for_shares<T, P>(block_range(pixels), C, [&](int c, int64_t first, int64_t last, int step) {
    for (int64_t p = first; p < last; p += step) {
      T* out = dx + p * dx_pitch + c;
      P g = P::each(slope, load_pack<P>(x + p * x_pitch + c)) * load_pack<P>(dy + p * dy_pitch + c);
      if (accumulate) g += load_pack<P>(out);
      store_pack(out, g);
    }
  });
}

template <class F>
void with_shapes(const char* kernel, std::initializer_list<Map> maps, F&& f) {
  const Map& x = *maps.begin();
  for (const Map& m : maps) {
    if (m.pixels() != x.pixels() || m.C != x.C || m.dtype != x.dtype)
      throw KernelError(std::string(kernel) + ": all maps must have one shape and one element type");
  }
  with_float_type(x.dtype, kernel, [&](auto t) {
    using T = decltype(t);
    with_lanes<T>(maps, [&](auto lanes) { with_pack<lanes>(x.C, [&](auto packs) { f(t, Pack<lanes, packs>{}); }); });
  });
}

}  // namespace

void gelu_forward(Stream& stream, const GeluForward& k) {
  const int64_t pixels = k.x.pixels();
  with_shapes("gelu_forward", {k.x, k.y}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    launch(stream, "gelu", {blocks_for(stream, pixels * k.x.C / P::size, 1024)}, {kThreads}, 0, gelu<T, P>,
           k.x.as<const T>(), k.x.pitch, k.y.as<T>(), k.y.pitch, pixels, k.x.C);
  });
}

void gelu_backward(Stream& stream, const GeluBackward& k) {
  const int64_t pixels = k.x.pixels();
  with_shapes("gelu_backward", {k.x, k.dy, k.dx}, [&](auto t, auto pack) {
    using T = decltype(t);
    using P = decltype(pack);
    launch(stream, "gelu_gradient", {blocks_for(stream, pixels * k.x.C / P::size, 1024)}, {kThreads}, 0,
           gelu_gradient<T, P>, k.x.as<const T>(), k.x.pitch, k.dy.as<const T>(), k.dy.pitch, k.dx.as<T>(), k.dx.pitch,
           pixels, k.x.C, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
