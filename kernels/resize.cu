#include "kernels/resize.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// Positions are counted in 1 / (2 * outputs) of an input, so that they are whole numbers: the centre of output o of n
// inputs lies at (2 * o + 1) * n - outputs from the centre of the first input.
struct Axis {
  int inputs, outputs;
  __device__ __forceinline__ int position(int o) const { return (2 * o + 1) * inputs - outputs; }
};

__device__ __forceinline__ int floor_divide(int a, int b) { return (a >= 0 ? a : a - b + 1) / b; }
__device__ __forceinline__ int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// The inputs of which an output is made, and the weight of the second.
struct Between {
  int first, second;
  float weight;
};
template <bool kBilinear>
__device__ __forceinline__ Between between(const Axis& axis, int o) {
  if constexpr (!kBilinear) {
    const int i = (2 * o + 1) * axis.inputs / (2 * axis.outputs);
    return {i, i, 0};
  } else {
    const int at = axis.position(o) > 0 ? axis.position(o) : 0, first = at / (2 * axis.outputs);
    return {first, first + 1 < axis.inputs ? first + 1 : first,
            static_cast<float>(at - first * 2 * axis.outputs) / static_cast<float>(2 * axis.outputs)};
  }
}

// The outputs begin..end that may read input i, and what of it they take.
template <bool kBilinear>
struct Contributions {
  Axis axis;
  int i, begin, end;
  float scale;
  __device__ __forceinline__ Contributions(const Axis& axis, int i)
      : axis(axis), i(i), scale(1.0f / static_cast<float>(2 * axis.outputs)) {
    const int n = axis.inputs, m = axis.outputs;
    // The first output whose position is not before input j; where they are not interpolated, before its lower edge.
    const auto from = [&](int j) { return -floor_divide(-(kBilinear ? (2 * j + 1) * m - n : 2 * j * m - n), 2 * n); };
    begin = clamp(from(kBilinear ? i - 1 : i), 0, m);
    end = clamp(from(i + 1), 0, m);
  }
  __device__ __forceinline__ float weight(int o) const {
    if constexpr (!kBilinear) return 1;
    const int d = axis.position(o) - 2 * axis.outputs * i;
    if ((i == 0 && d < 0) || (i == axis.inputs - 1 && d > 0)) return 1;
    return 1 - static_cast<float>(d < 0 ? -d : d) * scale;
  }
};

template <class T, int L, bool kBilinear>
__global__ void __launch_bounds__(kColumnThreads, 4) resize(TensorView x, TensorView y) {
  using V = Vec<L>;
  const Axis vertical{x.H, y.H}, horizontal{x.W, y.W};
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Between h = between<kBilinear>(vertical, row % y.H);
    const int image = row / y.H * x.H;
    const T* const upper = row_of<const T>(x, image + h.first);
    const T* const lower = row_of<const T>(x, image + h.second);
    T* const out = row_of<T>(y, row);
    for (int w = threadIdx.y; w < y.W; w += blockDim.y) {
      const Between s = between<kBilinear>(horizontal, w);
      for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
        if constexpr (!kBilinear) {
          store(out + w * y.pitch + c, load<V>(upper + s.first * x.pitch + c));
        } else {
          const auto across = [&](const T* from) {
            return fma(load<V>(from + s.second * x.pitch + c), V(s.weight),
                       load<V>(from + s.first * x.pitch + c) * V(1 - s.weight));
          };
          store(out + w * y.pitch + c, fma(across(lower), V(h.weight), across(upper) * V(1 - h.weight)));
        }
      }
    }
  }
}

template <class T, int L, bool kBilinear>
__global__ void __launch_bounds__(kColumnThreads, 4) resize_gradient(TensorView dy, TensorView dx, bool accumulate) {
  using V = Vec<L>;
  const Axis vertical{dx.H, dy.H}, horizontal{dx.W, dy.W};
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Contributions<kBilinear> h(vertical, row % dx.H);
    const int image = row / dx.H * dy.H;
    T* const out = row_of<T>(dx, row);
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      const Contributions<kBilinear> s(horizontal, w);
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        V sum(0);
        for (int p = h.begin; p < h.end; ++p) {
          const T* const from = row_of<const T>(dy, image + p) + c;
          V part(0);
          for (int q = s.begin; q < s.end; ++q) part = fma(load<V>(from + q * dy.pitch), V(s.weight(q)), part);
          sum = fma(part, V(h.weight(p)), sum);
        }
        T* const to = out + w * dx.pitch + c;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

void check(const char* kernel, const TensorView& x, const TensorView& y) {
  if (x.N != y.N || x.C != y.C || x.dtype != y.dtype)
    throw KernelError(std::string(kernel) + ": both maps must have the same N, C and element type");
  for (const int size : {x.H, x.W, y.H, y.W}) {
    if (size < 1 || size > kResizeSize)
      throw KernelError(std::string(kernel) + ": takes heights and widths from 1 to " + std::to_string(kResizeSize) +
                        ", not " + std::to_string(size));
  }
}

}  // namespace

void resize_forward(Stream& stream, const ResizeForward& k) {
  check("resize_forward", k.x, k.y);
  with_float_type(k.y.dtype, "resize_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, k.bilinear ? "resize_bilinear" : "resize_nearest", {row_blocks(stream, k.y)},
             columns_block(k.y.C / L), 0, k.bilinear ? resize<T, L, true> : resize<T, L, false>, k.x, k.y);
    });
  });
}

void resize_backward(Stream& stream, const ResizeBackward& k) {
  check("resize_backward", k.dx, k.dy);
  with_float_type(k.dx.dtype, "resize_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.dy, k.dx}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, k.bilinear ? "resize_bilinear_backward" : "resize_nearest_backward", {row_blocks(stream, k.dx)},
             columns_block(k.dx.C / L), 0, k.bilinear ? resize_gradient<T, L, true> : resize_gradient<T, L, false>,
             k.dy, k.dx, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
