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
template <bool kBilinear, bool kTwice>
__device__ __forceinline__ Between between(const Axis& axis, int o) {
  if constexpr (!kBilinear) {
    const int i = kTwice ? o / 2 : (2 * o + 1) * axis.inputs / (2 * axis.outputs);
    return {i, i, 0};
  } else if constexpr (kTwice) {
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

template <class T, int L, bool kBilinear, bool kTwice>
__global__ void __launch_bounds__(kColumnThreads, 4) resize(TensorView x, TensorView y) {
  using V = Vec<L>;
  const Axis vertical{x.H, y.H}, horizontal{x.W, y.W};
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Between h = between<kBilinear, kTwice>(vertical, row % y.H);
    const int image = row / y.H * x.H;
    const T* const upper = row_of<const T>(x, image + h.first);
    const T* const lower = row_of<const T>(x, image + h.second);
    T* const out = row_of<T>(y, row);
    const auto put = [&](int w, int c, const V& v) { store(out + w * y.pitch + c, v); };
    if constexpr (kTwice) {  // two outputs for each input w, between it and its neighbours
      for (int w = threadIdx.y; w < x.W; w += blockDim.y) {
        for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L) {
          const auto column = [&](int i) {
            const V a = load<V>(upper + i * x.pitch + c);
            return kBilinear ? lerp(a, load<V>(lower + i * x.pitch + c), h.weight) : a;
          };
          const V here = column(w);
          if constexpr (kBilinear) {
            const V left = column(w > 0 ? w - 1 : 0), right = column(w + 1 < x.W ? w + 1 : w);
            put(2 * w, c, lerp(left, here, .75f));
            put(2 * w + 1, c, lerp(here, right, .25f));
          } else {
            put(2 * w, c, here);
            put(2 * w + 1, c, here);
          }
        }
      }
    } else {
      for (int w = threadIdx.y; w < y.W; w += blockDim.y) {
        const Between s = between<kBilinear, false>(horizontal, w);
        for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
          const auto across = [&](const T* from) {
            return fma(load<V>(from + s.second * x.pitch + c), V(s.weight),
                       load<V>(from + s.first * x.pitch + c) * V(1 - s.weight));
          };
          if constexpr (kBilinear)
            put(w, c, fma(across(lower), V(h.weight), across(upper) * V(1 - h.weight)));
          else
            put(w, c, load<V>(upper + s.first * x.pitch + c));
        }
      }
    }
  }
}

// The range begin..end of outputs that may interpolate from input i, and the weight of i in each.
template <bool kBilinear, bool kTwice>
struct Contributions {
  Axis axis;
  int i, begin, end;
  float scale;
  __device__ __forceinline__ Contributions(const Axis& axis, int i)
      : axis(axis), i(i), begin(2 * i), end(2 * i + 2), scale(1.0f / static_cast<float>(2 * axis.outputs)) {
    if constexpr (kTwice) return;
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
// The bilinear ones of two outputs to an input: four in a row, the ones outside with weight 0, so that loops over them
// need no branches.
template <>
struct Contributions<true, true> {
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
template <class T, int L, bool kBilinear, bool kTwice>
__global__ void __launch_bounds__(kColumnThreads, kBilinear&& kTwice ? 2 : 4)
    resize_gradient(TensorView dy, TensorView dx, bool accumulate) {
  using V = Vec<L>;
  using Outputs = Contributions<kBilinear, kTwice>;
  const Axis vertical{dx.H, dy.H}, horizontal{dx.W, dy.W};
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Outputs h(vertical, row % dx.H);
    const T* const in = row_of<const T>(dy, row / dx.H * dy.H);
    T* const out = row_of<T>(dx, row);
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      const Outputs s(horizontal, w);
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        // A row's pointer is made once: an address of 64 bits for each of its pixels takes registers.
        const auto line = [&](int p) { return in + static_cast<int64_t>(p) * dy.W * dy.pitch + c; };
        V sum(0);
        if constexpr (kBilinear && kTwice) {
          for (int i = 0; i < 4; ++i) {
            const T* const from = line(h.at[i]);
            V part(0);
            for (int j = 0; j < 4; ++j) part = fma(load<V>(from + s.at[j] * dy.pitch), V(s.weight[j]), part);
            sum = fma(part, V(h.weight[i]), sum);
          }
        } else if constexpr (kTwice) {
          for (int p = h.begin; p < h.end; ++p) {
            const T* const from = line(p);
            for (int q = s.begin; q < s.end; ++q) sum += load<V>(from + q * dy.pitch);
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

// Calls f(element type, lanes, bilinear, twice) for kernels of such maps, which are constants of their types.
template <class F>
void with_variant(const char* kernel, const TensorView& x, const TensorView& y, bool bilinear, F&& f) {
  check(kernel, x, y);
  with_float_type(x.dtype, kernel, [&](auto t) {
    with_lanes<decltype(t)>({x, y}, [&](auto lanes) {
      const auto with = [&](auto mode) {
        if (is_twice(x, y))
          f(t, lanes, mode, std::true_type{});
        else
          f(t, lanes, mode, std::false_type{});
      };
      if (bilinear)
        with(std::true_type{});
      else
        with(std::false_type{});
    });
  });
}

}  // namespace

void resize_forward(Stream& stream, const ResizeForward& k) {
  with_variant("resize_forward", k.x, k.y, k.bilinear, [&](auto t, auto lanes, auto bilinear, auto twice) {
    constexpr int L = lanes;
    launch(stream, bilinear ? "resize_bilinear" : "resize_nearest", {row_blocks(stream, k.y)}, columns_block(k.y.C / L),
           0, resize<decltype(t), L, bilinear, twice>, k.x, k.y);
  });
}

void resize_backward(Stream& stream, const ResizeBackward& k) {
  with_variant("resize_backward", k.dx, k.dy, k.bilinear, [&](auto t, auto lanes, auto bilinear, auto twice) {
    constexpr int L = lanes;
    launch(stream, bilinear ? "resize_bilinear_backward" : "resize_nearest_backward", {row_blocks(stream, k.dx)},
           columns_block(k.dx.C / L), 0, resize_gradient<decltype(t), L, bilinear, twice>, k.dy, k.dx, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
