#include "kernels/upsample.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// In all of these F is the factor where the compiler may know it (2), else 0.

template <class T, int L, int F>
__global__ void __launch_bounds__(kColumnThreads) upsample_nearest(Map x, Map y, int factor) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Range rows = block_range(static_cast<int64_t>(x.N) * x.H);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* in = x.as<const T>() + row * x.W * x.pitch;
    T* out = y.as<T>() + row * f * y.W * y.pitch;
    for (int w = threadIdx.y; w < x.W; w += blockDim.y) {
      for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L) {
        const V v = load<V>(in + w * x.pitch + c);
        for (int i = 0; i < f; ++i)
          for (int j = 0; j < f; ++j) store(out + (i * y.W + w * f + j) * y.pitch + c, v);
      }
    }
  }
}

template <class T, int L, int F>
__global__ void __launch_bounds__(kColumnThreads)
    upsample_nearest_backward(Map dy, Map dx, int factor, bool accumulate) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Range rows = block_range(static_cast<int64_t>(dx.N) * dx.H);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* in = dy.as<const T>() + row * f * dy.W * dy.pitch;
    T* out = dx.as<T>() + row * dx.W * dx.pitch;
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        V sum(0);
        for (int i = 0; i < f; ++i)
          for (int j = 0; j < f; ++j) sum += load<V>(in + (i * dy.W + w * f + j) * dy.pitch + c);
        T* to = out + w * dx.pitch + c;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

// The two inputs between which an output lies, and the weight of the second. The output is number `phase` of the
// `f` that input i (of n) gives: its centre is (2 * phase + 1 - f) / 2f away from that of i.
struct Between {
  int first, second;
  float weight;
};
__device__ __forceinline__ Between between(int i, int n, int phase, int f) {
  const int d = 2 * phase + 1 - f, first = d < 0 ? i - 1 : i;
  return {first < 0 ? 0 : first, first + 1 < n ? first + 1 : n - 1,
          static_cast<float>(d < 0 ? d + 2 * f : d) / static_cast<float>(2 * f)};
}

template <class V>
__device__ __forceinline__ V lerp(const V& a, const V& b, float t) {
  return fma(b, V(t), a * V(1 - t));
}

template <class T, int L, int F>
__global__ void __launch_bounds__(kColumnThreads) upsample_bilinear(Map x, Map y, int factor) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Range rows = block_range(static_cast<int64_t>(y.N) * y.H);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int o = static_cast<int>(row % y.H);
    const Between h = between(o / f, x.H, o % f, f);
    const T* in = x.as<const T>() + row / y.H * x.H * x.W * x.pitch;
    const T* upper = in + h.first * x.W * x.pitch;
    const T* lower = in + h.second * x.W * x.pitch;
    T* out = y.as<T>() + row * y.W * y.pitch;
    for (int w = threadIdx.y; w < x.W; w += blockDim.y) {
      for (int j = 0; j < f; ++j) {
        const Between s = between(w, x.W, j, f);
        const int left = s.first * x.pitch, right = s.second * x.pitch;
        for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L) {
          const V a = lerp(load<V>(upper + left + c), load<V>(upper + right + c), s.weight);
          const V b = lerp(load<V>(lower + left + c), load<V>(lower + right + c), s.weight);
          store(out + (w * f + j) * y.pitch + c, lerp(a, b, h.weight));
        }
      }
    }
  }
}

// Of the outputs o, those that read input i are in begin..end; weight(o) is what of it they take.
struct Readers {
  int i, n, f, begin, end;
  __device__ __forceinline__ Readers(int i, int n, int f) : i(i), n(n), f(f) {
    begin = f * (i - 1) + (f - 1) / 2 + 1;
    end = f * (i + 1) + f / 2;
    begin = begin < 0 ? 0 : begin;
    end = end > f * n ? f * n : end;
  }
  __device__ __forceinline__ float weight(int o) const {
    const int d = 2 * o + 1 - f - 2 * f * i;  // from centre to centre, in 1 / 2f
    if ((i == 0 && d < 0) || (i == n - 1 && d > 0)) return 1;
    return 1 - static_cast<float>(d < 0 ? -d : d) / static_cast<float>(2 * f);
  }
};

template <class T, int L, int F>
__global__ void __launch_bounds__(kColumnThreads)
    upsample_bilinear_backward(Map dy, Map dx, int factor, bool accumulate) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Range rows = block_range(static_cast<int64_t>(dx.N) * dx.H);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Readers h(static_cast<int>(row % dx.H), dx.H, f);
    const T* in = dy.as<const T>() + row / dx.H * dy.H * dy.W * dy.pitch;
    T* out = dx.as<T>() + row * dx.W * dx.pitch;
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      const Readers s(w, dx.W, f);
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        V sum(0);
        for (int p = h.begin; p < h.end; ++p) {
          V line(0);
          for (int q = s.begin; q < s.end; ++q)
            line = fma(load<V>(in + (p * dy.W + q) * dy.pitch + c), V(s.weight(q)), line);
          sum = fma(line, V(h.weight(p)), sum);
        }
        T* to = out + w * dx.pitch + c;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

void check(const char* kernel, const Map& small, const Map& large, int f) {
  if (f < 1 || large.N != small.N || large.C != small.C || large.H != f * small.H || large.W != f * small.W)
    throw KernelError(std::string(kernel) + ": the large map must be " + std::to_string(f) + " times the small one");
}

}  // namespace

void upsample_forward(Stream& stream, const UpsampleForward& k) {
  check("upsample_forward", k.x, k.y, k.factor);
  with_float_type(k.y.dtype, "upsample_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y}, [&](auto lanes) {
      constexpr int L = lanes;
      const auto kernel = k.bilinear ? (k.factor == 2 ? upsample_bilinear<T, L, 2> : upsample_bilinear<T, L, 0>)
                                     : (k.factor == 2 ? upsample_nearest<T, L, 2> : upsample_nearest<T, L, 0>);
      const int64_t rows = static_cast<int64_t>(k.x.N) * (k.bilinear ? k.y.H : k.x.H);
      launch(stream, k.bilinear ? "upsample_bilinear" : "upsample_nearest", {blocks_for(stream, rows, 1)},
             columns_block(k.x.C / L), 0, kernel, k.x, k.y, k.factor);
    });
  });
}

void upsample_backward(Stream& stream, const UpsampleBackward& k) {
  check("upsample_backward", k.dx, k.dy, k.factor);
  with_float_type(k.dx.dtype, "upsample_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.dy, k.dx}, [&](auto lanes) {
      constexpr int L = lanes;
      const auto kernel =
          k.bilinear ? (k.factor == 2 ? upsample_bilinear_backward<T, L, 2> : upsample_bilinear_backward<T, L, 0>)
                     : (k.factor == 2 ? upsample_nearest_backward<T, L, 2> : upsample_nearest_backward<T, L, 0>);
      launch(stream, k.bilinear ? "upsample_bilinear_backward" : "upsample_nearest_backward",
             {blocks_for(stream, static_cast<int64_t>(k.dx.N) * k.dx.H, 1)}, columns_block(k.dx.C / L), 0, kernel, k.dy,
             k.dx, k.factor, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
