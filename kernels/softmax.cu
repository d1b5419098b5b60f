#include "kernels/softmax.h"

#include <limits>

#include "kernels/core/launch.h"
#include "kernels/core/math.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// A block walks over its pixels tile by tile. A tile lies in shared memory in fp32, channel by channel, so that a
// thread owns a vector of neighbouring pixels (one, on the GPU) and finds any number of channels without holding them.
// It reads and writes the pixels that it owns, and no others: nothing is waited for.
constexpr int kThreads = 256;
constexpr int kPixels = kWarp == 1 ? kLanes<float> : 1;
using V = Vec<kPixels>;

template <class T>
__device__ __forceinline__ void load_pixels(const T* x, int pitch, int pixels, int C, float* tile, int width) {
  for (int p = 0; p < pixels; ++p)
    for (int c = 0; c < C; ++c) tile[c * width + p] = static_cast<float>(x[p * pitch + c]);
  for (int p = pixels; p < kPixels; ++p)  // past the last pixel
    for (int c = 0; c < C; ++c) tile[c * width + p] = 0;
}

template <class T>
__device__ __forceinline__ void store_pixels(T* x, int pitch, int pixels, int C, const float* tile, int width,
                                             bool accumulate) {
  for (int p = 0; p < pixels; ++p) {
    for (int c = 0; c < C; ++c) {
      T& e = x[p * pitch + c];
      const float v = tile[c * width + p];
      e = static_cast<T>(accumulate ? v + static_cast<float>(e) : v);
    }
  }
}

// Calls f(first pixel, pixels, place in the tile) for all that this thread owns.
template <class F>
__device__ __forceinline__ void for_pixels(int64_t pixels, int width, F&& f) {
  const Range r = block_range(pixels, width);
  for (int64_t begin = r.begin; begin < r.end; begin += width) {
    const int here = static_cast<int>(begin + width < r.end ? width : r.end - begin);
    for (int p = static_cast<int>(threadIdx.x) * kPixels; p < here; p += static_cast<int>(blockDim.x) * kPixels)
      f(begin + p, here - p < kPixels ? here - p : kPixels, p);
  }
}

template <class T, class Y>
__global__ void __launch_bounds__(kThreads)
    softmax(const T* x, int x_pitch, Y* y, int y_pitch, const uint8_t* excluded, int64_t pixels, int C, int width) {
  Shared shared;
  float* const tile = shared.take<float>(static_cast<size_t>(C) * width);
  for_pixels(pixels, width, [&](int64_t first, int n, int place) {
    float* const t = tile + place;
    load_pixels(x + first * x_pitch, x_pitch, n, C, t, width);
    for (int c = 0; excluded != nullptr && c < C; ++c)
      if (excluded[c] != 0) store(t + c * width, V(-std::numeric_limits<float>::infinity()));
    V most = load<V>(t), sum(0);
    for (int c = 1; c < C; ++c) most = max(most, load<V>(t + c * width));
    for (int c = 0; c < C; ++c) {
      const V e = exp(load<V>(t + c * width) - most);
      sum += e;
      store(t + c * width, e);
    }
    const V scale = V(1) / sum;
    for (int c = 0; c < C; ++c) store(t + c * width, load<V>(t + c * width) * scale);
    store_pixels(y + first * y_pitch, y_pitch, n, C, t, width, false);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_gradient(const T* y, int y_pitch, const T* dy, int dy_pitch, T* dx, int dx_pitch, int64_t pixels, int C,
                     int width, bool accumulate) {
  Shared shared;
  float* const ys = shared.take<float>(static_cast<size_t>(C) * width);
  float* const gs = shared.take<float>(static_cast<size_t>(C) * width);
  for_pixels(pixels, width, [&](int64_t first, int n, int place) {
    float *const s = ys + place, *const g = gs + place;
    load_pixels(y + first * y_pitch, y_pitch, n, C, s, width);
    load_pixels(dy + first * dy_pitch, dy_pitch, n, C, g, width);
    V sum(0);
    for (int c = 0; c < C; ++c) sum = fma(load<V>(s + c * width), load<V>(g + c * width), sum);
    for (int c = 0; c < C; ++c) store(g + c * width, load<V>(s + c * width) * (load<V>(g + c * width) - sum));
    store_pixels(dx + first * dx_pitch, dx_pitch, n, C, g, width, accumulate);
  });
}

void check(const char* kernel, std::initializer_list<TensorView> maps, DType other) {
  const TensorView& x = *maps.begin();
  for (const TensorView& m : maps) {
    if (m.N != x.N || m.H != x.H || m.W != x.W || m.C != x.C || (m.dtype != x.dtype && m.dtype != other))
      throw KernelError(std::string(kernel) + ": all maps must have one shape and one element type");
  }
  if (x.C > kSoftmaxChannels)
    throw KernelError(std::string(kernel) + ": takes at most " + std::to_string(kSoftmaxChannels) + " channels, not " +
                      std::to_string(x.C));
}

// Pixels of a tile: as many as `tiles` of them leave in 48 KiB, up to one per thread.
int tile_width(int C, int tiles) {
  int width = kThreads;
  while (width > 16 && static_cast<size_t>(width) * C * tiles * sizeof(float) > 48 * 1024) width /= 2;
  return width;
}

}  // namespace

void softmax_forward(Stream& stream, const SoftmaxForward& k) {
  check("softmax_forward", {k.x, k.y}, DType::f32);
  const int width = tile_width(k.x.C, 1);
  with_float_type(k.x.dtype, "softmax_forward", [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto y) {
      using Y = decltype(y);
      launch(stream, "softmax", {blocks_for(stream, k.x.pixels(), width)}, {kThreads},
             shared_bytes<float>(static_cast<size_t>(k.x.C) * width), softmax<T, Y>, k.x.as<T>(), k.x.pitch,
             k.y.as<Y>(), k.y.pitch, k.excluded, k.x.pixels(), k.x.C, width);
    };
    k.y.dtype == k.x.dtype ? run(t) : run(float{});
  });
}

void softmax_backward(Stream& stream, const SoftmaxBackward& k) {
  check("softmax_backward", {k.y, k.dy, k.dx}, k.y.dtype);
  const int width = tile_width(k.y.C, 2);
  with_float_type(k.y.dtype, "softmax_backward", [&](auto t) {
    using T = decltype(t);
    launch(stream, "softmax_gradient", {blocks_for(stream, k.y.pixels(), width)}, {kThreads},
           2 * shared_bytes<float>(static_cast<size_t>(k.y.C) * width), softmax_gradient<T>, k.y.as<T>(), k.y.pitch,
           k.dy.as<T>(), k.dy.pitch, k.dx.as<T>(), k.dx.pitch, k.y.pixels(), k.y.C, width, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
