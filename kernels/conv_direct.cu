#include "kernels/conv_direct.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

inline constexpr int kTile = 4;  // output channels of a thread, which share what is read of x

// A thread owns kTile channels of a pixel of y; lanes are input channels, summed at the end.
template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 2)
    conv_forward(TensorView x, const T* w, const float* bias, TensorView y, ConvWindow o, bool relu) {
  using V = Vec<L>;
  const int C = x.C, K = y.C;
  const int64_t filter = static_cast<int64_t>(o.R) * o.S * C;
  const Rows rows = block_rows(y);
  for (int row = rows.begin; row < rows.end; ++row) {
    const int n = row / y.H, top = row % y.H * o.stride[0] - o.pad[0];
    for (int q = threadIdx.y; q < y.W; q += blockDim.y) {
      const int left = q * o.stride[1] - o.pad[1];
      for (int k0 = threadIdx.x * kTile; k0 < K; k0 += blockDim.x * kTile) {
        const T* filters[kTile];  // the last one again where there are no more
        V sum[kTile];
        for (int j = 0; j < kTile; ++j) {
          filters[j] = w + (k0 + j < K ? k0 + j : K - 1) * filter;
          sum[j] = V(0);
        }
        for (int r = 0; r < o.R; ++r) {
          const int h = top + r * o.dilation[0];
          if (h < 0 || h >= x.H) continue;
          for (int s = 0; s < o.S; ++s) {
            const int v = left + s * o.dilation[1];
            if (v < 0 || v >= x.W) continue;
            const T* in = row_of<const T>(x, n * x.H + h) + v * x.pitch;
            const int tap = (r * o.S + s) * C;
            for (int c = 0; c < C; c += L) {
              const V a = load<V>(in + c);
              for (int j = 0; j < kTile; ++j) sum[j] = fma(a, load<V>(filters[j] + tap + c), sum[j]);
            }
          }
        }
        T* out = row_of<T>(y, row) + q * y.pitch + k0;
        for (int j = 0; j < kTile && k0 + j < K; ++j) {
          const float value = sum_lanes(sum[j]) + (bias != nullptr ? bias[k0 + j] : 0.0f);
          out[j] = static_cast<T>(relu && value < 0 ? 0.0f : value);
        }
      }
    }
  }
}

// A thread owns a vector of channels of a pixel of dx.
template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads, 4)
    conv_dgrad(TensorView dy, const T* w, TensorView dx, ConvWindow o, bool accumulate) {
  using V = Vec<L>;
  const int C = dx.C, K = dy.C;
  const int64_t filter = static_cast<int64_t>(o.R) * o.S * C;
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const int n = row / dx.H, h = row % dx.H;
    for (int v = threadIdx.y; v < dx.W; v += blockDim.y) {
      for (int c = threadIdx.x * L; c < C; c += blockDim.x * L) {
        V even(0), odd(0);
        for (int r = 0; r < o.R; ++r) {
          const int down = h + o.pad[0] - r * o.dilation[0], p = down / o.stride[0];
          if (down < 0 || down % o.stride[0] != 0 || p >= dy.H) continue;
          for (int s = 0; s < o.S; ++s) {
            const int right = v + o.pad[1] - s * o.dilation[1], q = right / o.stride[1];
            if (right < 0 || right % o.stride[1] != 0 || q >= dy.W) continue;
            const T* grad = row_of<const T>(dy, n * dy.H + p) + q * dy.pitch;
            const T* at = w + (r * o.S + s) * C + c;
            int k = 0;
            for (; k + 1 < K; k += 2) {
              even = fma(V(static_cast<float>(grad[k])), load<V>(at + k * filter), even);
              odd = fma(V(static_cast<float>(grad[k + 1])), load<V>(at + (k + 1) * filter), odd);
            }
            if (k < K) even = fma(V(static_cast<float>(grad[k])), load<V>(at + k * filter), even);
          }
        }
        T* to = row_of<T>(dx, row) + v * dx.pitch + c;
        V sum = even + odd;
        if (accumulate) sum += load<V>(to);
        store(to, sum);
      }
    }
  }
}

// A thread owns a vector of input channels at one tap of kTile filters, and goes over all pixels. Rows are summed
// first, which keeps the rounding of long sums small.
template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads)
    conv_wgrad(TensorView x, TensorView dy, float* dw, ConvWindow o, bool accumulate) {
  using V = Vec<L>;
  const int C = x.C, K = dy.C, taps = o.R * o.S;
  const Range items = block_range(static_cast<int64_t>((K + kTile - 1) / kTile) * taps);
  for (int item = static_cast<int>(items.begin + threadIdx.y); item < items.end; item += blockDim.y) {
    const int k0 = item / taps * kTile, tap = item % taps;
    const int down = tap / o.S * o.dilation[0] - o.pad[0], right = tap % o.S * o.dilation[1] - o.pad[1];
    // The q for which q * stride + right is inside the image.
    const int q_begin = right < 0 ? (-right + o.stride[1] - 1) / o.stride[1] : 0;
    const int q_last = x.W - 1 - right < 0 ? -1 : (x.W - 1 - right) / o.stride[1];
    const int q_end = q_last + 1 < dy.W ? q_last + 1 : dy.W;
    int last[kTile];  // the last filter again where there are no more
    for (int j = 0; j < kTile; ++j) last[j] = k0 + j < K ? k0 + j : K - 1;
    for (int c = threadIdx.x * L; c < C; c += blockDim.x * L) {
      V total[kTile];
      for (int j = 0; j < kTile; ++j) total[j] = V(0);
      for (int row = 0; row < dy.N * dy.H; ++row) {
        const int h = row % dy.H * o.stride[0] + down;
        if (h < 0 || h >= x.H) continue;
        const T* in = row_of<const T>(x, row / dy.H * x.H + h) + right * x.pitch + c;
        const T* grad = row_of<const T>(dy, row);
        V sum[kTile];
        for (int j = 0; j < kTile; ++j) sum[j] = V(0);
        for (int q = q_begin; q < q_end; ++q) {
          const V a = load<V>(in + q * o.stride[1] * x.pitch);
          for (int j = 0; j < kTile; ++j) sum[j] = fma(a, V(static_cast<float>(grad[q * dy.pitch + last[j]])), sum[j]);
        }
        for (int j = 0; j < kTile; ++j) total[j] += sum[j];
      }
      for (int j = 0; j < kTile && k0 + j < K; ++j) {
        float* to = dw + (static_cast<int64_t>(k0 + j) * taps + tap) * C + c;
        if (accumulate) total[j] += load<V>(to);
        store(to, total[j]);
      }
    }
  }
}

}  // namespace

void conv_direct_forward(Stream& stream, const ConvDirectForward& k) {
  with_float_type(k.y.dtype, "conv_direct_forward", [&](auto t) {
    using T = decltype(t);
    const T* w = static_cast<const T*>(k.w);
    with_lanes<T>({k.x, row_map(w, k.x.C)}, [&](auto lanes) {
      launch(stream, "conv_direct_forward", {row_blocks(stream, k.y)}, columns_block((k.y.C + kTile - 1) / kTile), 0,
             conv_forward<T, lanes>, k.x, w, k.bias, k.y, k.window, k.relu);
    });
  });
}

void conv_direct_dgrad(Stream& stream, const ConvDirectDgrad& k) {
  with_float_type(k.dx.dtype, "conv_direct_dgrad", [&](auto t) {
    using T = decltype(t);
    const T* w = static_cast<const T*>(k.w);
    with_lanes<T>({k.dx, row_map(w, k.dx.C)}, [&](auto lanes) {
      launch(stream, "conv_direct_dgrad", {row_blocks(stream, k.dx)}, columns_block(k.dx.C / lanes), 0,
             conv_dgrad<T, lanes>, k.dy, w, k.dx, k.window, k.accumulate);
    });
  });
}

void conv_direct_wgrad(Stream& stream, const ConvDirectWgrad& k) {
  with_float_type(k.x.dtype, "conv_direct_wgrad", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, row_map(k.dw, k.x.C)}, [&](auto lanes) {
      const int64_t items = static_cast<int64_t>((k.dy.C + kTile - 1) / kTile) * k.window.R * k.window.S;
      launch(stream, "conv_direct_wgrad", {blocks_for(stream, items, 1)}, columns_block(k.x.C / lanes), 0,
             conv_wgrad<T, lanes>, k.x, k.dy, k.dw, k.window, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
