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

enum class Mode { nearest, bilinear, bilinear_twice };  // twice: both the height and the width

// The inputs of which an output is made, and the weight of the second.
struct Between {
  int first, second;
  float weight;
};
template <Mode kMode>
__device__ __forceinline__ Between between(const Axis& axis, int o) {
  if constexpr (kMode == Mode::nearest) {
    const int i = (2 * o + 1) * axis.inputs / (2 * axis.outputs);
    return {i, i, 0};
  } else if constexpr (kMode == Mode::bilinear_twice) {
    const int second = (o + 1) / 2;
    return {second > 0 ? second - 1 : 0, second < axis.inputs ? second : second - 1, o % 2 == 0 ? .75f : .25f};
  } else {
    const int at = axis.position(o) > 0 ? axis.position(o) : 0, first = at / (2 * axis.outputs);
    return {first, first + 1 < axis.inputs ? first + 1 : first,
            static_cast<float>(at - first * 2 * axis.outputs) / static_cast<float>(2 * axis.outputs)};
  }
}

template <class V>
__device__ __forceinline__ V lerp(const V& a, const V& b, float t) {
  return fma(b, V(t), a * V(1 - t));
}

template <class T, int L, Mode kMode>
__global__ void __launch_bounds__(kColumnThreads, 4) resize(TensorView x, TensorView y) {
  using V = Vec<L>;
  const Axis vertical{x.H, y.H}, horizontal{x.W, y.W};
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Between h = between<kMode>(vertical, row % y.H);
    const int image = row / y.H * x.H;
    const T* const upper = row_of<const T>(x, image + h.first);
    const T* const lower = row_of<const T>(x, image + h.second);
    T* const out = row_of<T>(y, row);
    if constexpr (kMode == Mode::bilinear_twice) {  // two outputs for each input w, between it and its neighbours
      for (int w = threadIdx.y; w < x.W; w += blockDim.y) {
        const int left = (w > 0 ? w - 1 : 0) * x.pitch, right = (w + 1 < x.W ? w + 1 : w) * x.pitch;
        for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L) {
          const auto column = [&](int at) { return lerp(load<V>(upper + at + c), load<V>(lower + at + c), h.weight); };
          const V a = column(left), b = column(w * x.pitch), d = column(right);
          store(out + w * 2 * y.pitch + c, lerp(a, b, .75f));
          store(out + (w * 2 + 1) * y.pitch + c, lerp(b, d, .25f));
        }
      }
    } else {
      for (int w = threadIdx.y; w < y.W; w += blockDim.y) {
        const Between s = between<kMode>(horizontal, w);
        for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
          if constexpr (kMode == Mode::nearest) {
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
}

// The range begin..end of outputs that may interpolate from input i, and the weight of i in each.
template <Mode kMode>
struct Contributions {
  Axis axis;
  int i, begin, end;
  float scale;
  __device__ __forceinline__ Contributions(const Axis& axis, int i)
      : axis(axis), i(i), scale(1.0f / static_cast<float>(2 * axis.outputs)) {
    constexpr bool kNearest = kMode == Mode::nearest;
    const int n = axis.inputs, m = axis.outputs;
    // The first output whose position is not before input j; where they are not interpolated, before its lower edge.
    const auto from = [&](int j) { return -floor_divide(-(kNearest ? 2 * j * m - n : (2 * j + 1) * m - n), 2 * n); };
    begin = clamp(from(kNearest ? i : i - 1), 0, m);
    end = clamp(from(i + 1), 0, m);
  }
  __device__ __forceinline__ float weight(int o) const {
    if constexpr (kMode == Mode::nearest) return 1;
    const int d = axis.position(o) - 2 * axis.outputs * i;
    if ((i == 0 && d < 0) || (i == axis.inputs - 1 && d > 0)) return 1;
    return 1 - static_cast<float>(d < 0 ? -d : d) * scale;
  }
};
// Of two outputs to an input: four in a row, the ones outside with weight 0, so that loops over them need no branches.
template <>
struct Contributions<Mode::bilinear_twice> {
  int at[4];
  float weight[4];
  __device__ __forceinline__ Contributions(const Axis& axis, int i) {
    const int last = axis.outputs - 1;
    for (int j = 0; j < 4; ++j) {
      const int o = 2 * i - 1 + j;
      at[j] = clamp(o, 0, last);
      weight[j] = o != at[j] ? 0 : o == 0 || o == last ? 1 : j == 1 || j == 2 ? .75f : .25f;
    }
  }
};

// Blocks of a multiprocessor: two leave registers for the many loads at once of two outputs to an input.
template <class T, int L, Mode kMode>
__global__ void __launch_bounds__(kColumnThreads, kMode == Mode::bilinear_twice ? 2 : 4)
    resize_gradient(TensorView dy, TensorView dx, bool accumulate) {
  using V = Vec<L>;
  const Axis vertical{dx.H, dy.H}, horizontal{dx.W, dy.W};
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Contributions<kMode> h(vertical, row % dx.H);
    const int image = row / dx.H * dy.H;
    T* const out = row_of<T>(dx, row);
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      const Contributions<kMode> s(horizontal, w);
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        // A row's pointer is made once: an address of 64 bits for each of its pixels takes registers.
        const auto line = [&](int p) { return row_of<const T>(dy, image + p) + c; };
        V sum(0);
        if constexpr (kMode == Mode::bilinear_twice) {
          for (int i = 0; i < 4; ++i) {
            const T* const from = line(h.at[i]);
            V part(0);
            for (int j = 0; j < 4; ++j) part = fma(load<V>(from + s.at[j] * dy.pitch), V(s.weight[j]), part);
            sum = fma(part, V(h.weight[i]), sum);
          }
        } else {
          for (int p = h.begin; p < h.end; ++p) {
            const T* const from = line(p);
            V part(0);
            for (int q = s.begin; q < s.end; ++q) part = fma(load<V>(from + q * dy.pitch), V(s.weight(q)), part);
            sum = fma(part, V(h.weight(p)), sum);
          }
        }
        T* const to = out + w * dx.pitch + c;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

// Nearest, to twice the height and width: each input gives four outputs.

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 4) repeat_twice(TensorView x, TensorView y) {
  using V = Vec<L>;
  const Rows rows = block_rows(x);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(x, row);
    T* out = row_of<T>(y, row * 2);
    for (int w = threadIdx.y; w < x.W; w += blockDim.y) {
      for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L) {
        const V v = load<V>(in + w * x.pitch + c);
        for (int i = 0; i < 2; ++i)
          for (int j = 0; j < 2; ++j) store(out + (i * y.W + w * 2 + j) * y.pitch + c, v);
      }
    }
  }
}

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 4)
    repeat_twice_gradient(TensorView dy, TensorView dx, bool accumulate) {
  using V = Vec<L>;
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(dy, row * 2);
    T* out = row_of<T>(dx, row);
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        V sum(0);
        for (int i = 0; i < 2; ++i)
          for (int j = 0; j < 2; ++j) sum += load<V>(in + (i * dy.W + w * 2 + j) * dy.pitch + c);
        T* to = out + w * dx.pitch + c;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

bool is_twice(const TensorView& x, const TensorView& y) { return y.H == 2 * x.H && y.W == 2 * x.W; }

void check(const char* kernel, const TensorView& x, const TensorView& y) {
  if (x.N != y.N || x.C != y.C || x.dtype != y.dtype)
    throw KernelError(std::string(kernel) + ": both maps must have the same N, C and element type");
  for (const int size : {x.H, x.W, y.H, y.W}) {
    if (size < 1 || (size > kResizeSize && !is_twice(x, y)))
      throw KernelError(std::string(kernel) + ": takes heights and widths from 1 to " + std::to_string(kResizeSize) +
                        ", not " + std::to_string(size));
  }
}

}  // namespace

void resize_forward(Stream& stream, const ResizeForward& k) {
  check("resize_forward", k.x, k.y);
  const bool twice = is_twice(k.x, k.y);
  with_float_type(k.y.dtype, "resize_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y}, [&](auto lanes) {
      constexpr int L = lanes;
      const auto kernel = k.bilinear ? (twice ? resize<T, L, Mode::bilinear_twice> : resize<T, L, Mode::bilinear>)
                                     : (twice ? repeat_twice<T, L> : resize<T, L, Mode::nearest>);
      launch(stream, k.bilinear ? "resize_bilinear" : "resize_nearest",
             {row_blocks(stream, twice && !k.bilinear ? k.x : k.y)}, columns_block(k.y.C / L), 0, kernel, k.x, k.y);
    });
  });
}

void resize_backward(Stream& stream, const ResizeBackward& k) {
  check("resize_backward", k.dx, k.dy);
  const bool twice = is_twice(k.dx, k.dy);
  with_float_type(k.dx.dtype, "resize_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.dy, k.dx}, [&](auto lanes) {
      constexpr int L = lanes;
      const auto kernel =
          k.bilinear ? (twice ? resize_gradient<T, L, Mode::bilinear_twice> : resize_gradient<T, L, Mode::bilinear>)
                     : (twice ? repeat_twice_gradient<T, L> : resize_gradient<T, L, Mode::nearest>);
      launch(stream, k.bilinear ? "resize_bilinear_backward" : "resize_nearest_backward", {row_blocks(stream, k.dx)},
             columns_block(k.dx.C / L), 0, kernel, k.dy, k.dx, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
