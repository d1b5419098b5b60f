#include "kernels/upsample.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// In all of these F is the factor where the compiler may know it (2), else 0.

template <class T, int L, int F>
__global__ void __launch_bounds__(kColumnThreads, 4) upsample_nearest(TensorView x, TensorView y, int factor) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Rows rows = block_rows(x);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(x, row);
    T* out = row_of<T>(y, row * f);
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
__global__ void __launch_bounds__(kColumnThreads, 4)
    upsample_nearest_backward(TensorView dy, TensorView dx, int factor, bool accumulate) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(dy, row * f);
    T* out = row_of<T>(dx, row);
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
__global__ void __launch_bounds__(kColumnThreads, 4) upsample_bilinear(TensorView x, TensorView y, int factor) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const int o = row % y.H;
    const Between h = between(o / f, x.H, o % f, f);
    const T* in = row_of<const T>(x, row / y.H * x.H);
    const T* upper = in + h.first * x.W * x.pitch;
    const T* lower = in + h.second * x.W * x.pitch;
    T* out = row_of<T>(y, row);
    for (int w = threadIdx.y; w < x.W; w += blockDim.y) {
      // The columns left of, at and right of w; output j lies between the first two of them, or the last two.
      const int left = (w > 0 ? w - 1 : 0) * x.pitch, right = (w + 1 < x.W ? w + 1 : w) * x.pitch;
      for (int c = threadIdx.x * L; c < x.C; c += blockDim.x * L) {
        const auto column = [&](int at) { return lerp(load<V>(upper + at + c), load<V>(lower + at + c), h.weight); };
        const V a = column(left), b = column(w * x.pitch), d = column(right);
        for (int j = 0; j < f; ++j) {
          const bool before = 2 * j + 1 < f;
          store(out + (w * f + j) * y.pitch + c, lerp(before ? a : b, before ? b : d, between(w, x.W, j, f).weight));
        }
      }
    }
  }
}

// The outputs o that read input i of n, begin..end, and what of it they take.
struct Contributions {
  int i, n, f, begin, end;
  __device__ __forceinline__ Contributions(int i, int n, int f) : i(i), n(n), f(f) {
    begin = f * (i - 1) + (f - 1) / 2 + 1;
    end = f * (i + 1) + f / 2;
  }
  __device__ __forceinline__ int inside(int o) const { return o < 0 ? 0 : o < f * n ? o : f * n - 1; }
  __device__ __forceinline__ float weight(int o) const {
    if (o != inside(o)) return 0;
    const int d = 2 * o + 1 - f - 2 * f * i;  // from centre to centre, in 1 / 2f
    if ((i == 0 && d < 0) || (i == n - 1 && d > 0)) return 1;
    return 1 - static_cast<float>(d < 0 ? -d : d) / static_cast<float>(2 * f);
  }
};
// Those of a factor of 2: four in a row, the ones outside with weight 0, so that loops over them need no branches.
struct FourContributions {
  int at[4];
  float weight[4];
  __device__ __forceinline__ explicit FourContributions(const Contributions& r) {
    for (int j = 0; j < 4; ++j) {
      at[j] = r.inside(r.begin + j);
      weight[j] = r.weight(r.begin + j);
    }
  }
};

// Blocks of a multiprocessor: two leave registers for many loads at once, which only F == 2 makes.
template <class T, int L, int F>
__global__ void __launch_bounds__(kColumnThreads, F == 2 ? 2 : 3)
    upsample_bilinear_backward(TensorView dy, TensorView dx, int factor, bool accumulate) {
  using V = Vec<L>;
  const int f = F > 0 ? F : factor;
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const Contributions h(row % dx.H, dx.H, f);
    [[maybe_unused]] const FourContributions h4(h);
    const T* in = row_of<const T>(dy, row / dx.H * dy.H);
    T* out = row_of<T>(dx, row);
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      const Contributions s(w, dx.W, f);
      [[maybe_unused]] const FourContributions s4(s);
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        // A row's pointer is made once: an address of 64 bits for each of its pixels takes registers.
        const auto line = [&](int p) { return in + static_cast<int64_t>(p) * dy.W * dy.pitch + c; };
        V sum(0);
        if constexpr (F == 2) {
          for (int i = 0; i < 4; ++i) {
            const T* const from = line(h4.at[i]);
            V part(0);
            for (int j = 0; j < 4; ++j) part = fma(load<V>(from + s4.at[j] * dy.pitch), V(s4.weight[j]), part);
            sum = fma(part, V(h4.weight[i]), sum);
          }
        } else {
          for (int p = h.begin; p < h.end; ++p) {
            const T* const from = line(h.inside(p));
            V part(0);
            for (int q = s.begin; q < s.end; ++q)
              part = fma(load<V>(from + s.inside(q) * dy.pitch), V(s.weight(q)), part);
            sum = fma(part, V(h.weight(p)), sum);
          }
        }
        T* to = out + w * dx.pitch + c;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

void check(const char* kernel, const TensorView& small, const TensorView& large, int f) {
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
             {row_blocks(stream, k.dx)}, columns_block(k.dx.C / L), 0, kernel, k.dy, k.dx, k.factor, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
