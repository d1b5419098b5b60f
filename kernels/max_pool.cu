#include "kernels/max_pool.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// The larger of a new value and the maximum so far: NaN once NaN.
template <class V>
__device__ __forceinline__ V max_with_nan(const V& x, const V& m) {
  return select(x == x, max(x, m), x);
}

// Two: kernel and stride are 2, known to the compiler.
template <class T, int L, bool Two>
__global__ void __launch_bounds__(kColumnThreads, 4) max_pool(TensorView x, TensorView y, int kernel, int stride) {
  using V = Vec<L>;
  const int k = Two ? 2 : kernel, step = Two ? 2 : stride;
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(x, row / y.H * x.H + row % y.H * step);
    T* out = row_of<T>(y, row);
    for (int q = threadIdx.y; q < y.W; q += blockDim.y) {
      for (int c = threadIdx.x * L; c < y.C; c += blockDim.x * L) {
        const T* p = in + q * step * x.pitch + c;
        V m = load<V>(p);
        for (int i = 1; i < k * k; ++i) m = max_with_nan(load<V>(p + (i / k * x.W + i % k) * x.pitch), m);
        store(out + q * y.pitch + c, m);
      }
    }
  }
}

// 2x2 windows that tile x: a thread takes a window, and every pixel is in one.
template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads)
    max_pool_backward_tiles(TensorView x, TensorView dy, TensorView dx, bool accumulate) {
  using V = Vec<L>;
  const Rows rows = block_rows(dy);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* in = row_of<const T>(x, row * 2);
    const T* grad = row_of<const T>(dy, row);
    T* out = row_of<T>(dx, row * 2);
    for (int q = threadIdx.y; q < dy.W; q += blockDim.y) {
      for (int c = threadIdx.x * L; c < dy.C; c += blockDim.x * L) {
        V v[4], m;
        for (int i = 0; i < 4; ++i) {
          const int ahead = i / 2 * x.W + (q + 8) * 2 + i % 2;  // pixels
          prefetch(in, ahead * x.pitch + c);
          prefetch(out, ahead * dx.pitch + c);
          v[i] = load<V>(in + (i / 2 * x.W + q * 2 + i % 2) * x.pitch + c);
          m = i == 0 ? v[0] : max(v[i], m);
        }
        V rest = load<V>(grad + q * dy.pitch + c);
        for (int i = 0; i < 4; ++i) {
          T* to = out + (i / 2 * dx.W + q * 2 + i % 2) * dx.pitch + c;
          const V g = i == 3 ? rest : select(v[i] == m, rest, V(0));
          rest = select(v[i] == m, V(0), rest);
          if (accumulate) {  // not store(to, g, accumulate): sm_100 would spill
            store(to, g + load<V>(to));
          } else {
            store(to, g);
          }
        }
      }
    }
  }
}

// Any window: a thread takes a pixel of dx, and asks each window over it whether that pixel is its first maximum.
template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 3)
    max_pool_backward_gather(TensorView x, TensorView dy, TensorView dx, int k, int stride, bool accumulate) {
  using V = Vec<L>;
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const int n = row / dx.H, h = row % dx.H;
    const int p_begin = h < k ? 0 : (h - k) / stride + 1, p_end = h / stride < dy.H ? h / stride + 1 : dy.H;
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      const int q_begin = w < k ? 0 : (w - k) / stride + 1, q_end = w / stride < dy.W ? w / stride + 1 : dy.W;
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        V sum(0);
        for (int p = p_begin; p < p_end; ++p) {
          for (int q = q_begin; q < q_end; ++q) {
            const T* window = row_of<const T>(x, n * x.H + p * stride) + q * stride * x.pitch + c;
            const auto at = [&](int i) { return load<V>(window + (i / k * x.W + i % k) * x.pitch); };
            const int me = (h - p * stride) * k + w - q * stride;
            V m = at(0);
            for (int i = 1; i < k * k; ++i) m = max(at(i), m);
            V g = load<V>(row_of<const T>(dy, n * dy.H + p) + q * dy.pitch + c);
            for (int i = 0; i < me; ++i) g = select(at(i) == m, V(0), g);
            if (me < k * k - 1) g = select(at(me) == m, g, V(0));
            sum += g;
          }
        }
        store(row_of<T>(dx, row) + w * dx.pitch + c, sum, accumulate);
      }
    }
  }
}

void check(const char* kernel, const TensorView& x, const TensorView& y, int k, int stride) {
  if (k < 1 || stride < 1 || y.N != x.N || y.C != x.C || y.H != (x.H - k) / stride + 1 || y.W != (x.W - k) / stride + 1)
    throw KernelError(std::string(kernel) + ": the maps do not fit windows of " + std::to_string(k) + " every " +
                      std::to_string(stride) + " pixels");
}

}  // namespace

void max_pool_forward(Stream& stream, const MaxPoolForward& k) {
  check("max_pool_forward", k.x, k.y, k.kernel, k.stride);
  with_float_type(k.y.dtype, "max_pool_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y}, [&](auto lanes) {
      constexpr int L = lanes;
      const bool two = k.kernel == 2 && k.stride == 2;
      launch(stream, "max_pool", {row_blocks(stream, k.y)}, columns_block(k.y.C / L), 0,
             two ? max_pool<T, L, true> : max_pool<T, L, false>, k.x, k.y, k.kernel, k.stride);
    });
  });
}

void max_pool_backward(Stream& stream, const MaxPoolBackward& k) {
  check("max_pool_backward", k.x, k.dy, k.kernel, k.stride);
  with_float_type(k.dx.dtype, "max_pool_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.dy, k.dx}, [&](auto lanes) {
      constexpr int L = lanes;
      const Dim3 block = columns_block(k.dx.C / L);
      if (k.kernel == 2 && k.stride == 2 && k.dx.H % 2 == 0 && k.dx.W % 2 == 0) {
        launch(stream, "max_pool_backward", {row_blocks(stream, k.dy)}, block, 0, max_pool_backward_tiles<T, L>, k.x,
               k.dy, k.dx, k.accumulate);
      } else {
        launch(stream, "max_pool_backward", {row_blocks(stream, k.dx)}, block, 0, max_pool_backward_gather<T, L>, k.x,
               k.dy, k.dx, k.kernel, k.stride, k.accumulate);
      }
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
