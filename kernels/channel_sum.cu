#include "kernels/channel_sum.h"

#include "kernels/core/columns.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

// A block sums `each` pixels into a row of `partials`; a thread owns G vectors of channels.
template <class T, int L, int G>
__global__ void __launch_bounds__(kColumnThreads)
    sum_pixels(const T* x, int pitch, int64_t pixels, int C, int64_t each, float* partials) {
  using V = Vec<L>;
  Shared shared;
  [[maybe_unused]] float* scratch = shared.take<float>(column_scratch(L));
  const int64_t begin = blockIdx.x * each, end = begin + each < pixels ? begin + each : pixels;
  for (int base = 0; base < C; base += blockDim.x * L * G) {
    const int c = base + threadIdx.x * L * G;
    V sum[G];
    for (int g = 0; g < G; ++g) sum[g] = V(0);
    if (c < C) {
#if defined(__CUDACC__)
#pragma unroll 4
#endif
      for (int64_t p = begin + threadIdx.y; p < end; p += blockDim.y)
        for (int g = 0; g < G; ++g) sum[g] += load<V>(x + p * pitch + c + g * L);
    }
    for (int g = 0; g < G; ++g) {
      const V total = column_sum(sum[g], scratch);
      if (threadIdx.y == 0 && c < C) store(partials + blockIdx.x * static_cast<int64_t>(C) + c + g * L, total);
    }
  }
}

template <int L>
__global__ void __launch_bounds__(256)
    add_partials(const float* partials, int parts, int64_t stride, int64_t n, float* out, bool accumulate) {
  using V = Vec<L>;
  Shared shared;
  [[maybe_unused]] float* scratch = shared.take<float>(column_scratch(L));
  const Range r = block_range(n / L, blockDim.x);
  for (int64_t base = r.begin; base < r.end; base += blockDim.x) {
    const int64_t i = (base + threadIdx.x) * L;
    V sum(0);
    if (i < n)
      for (int p = threadIdx.y; p < parts; p += blockDim.y) sum += load<V>(partials + p * stride + i);
    sum = column_sum(sum, scratch);
    if (threadIdx.y > 0 || i >= n) continue;
    if (accumulate) sum += load<V>(out + i);
    store(out + i, sum);
  }
}

}  // namespace

void channel_sum(Stream& stream, const ChannelSum& k) {
  const ChannelSumLayout layout(k.x);
  TensorView x = k.x;  // folded
  x.C *= layout.fold;
  if (layout.fold > 1) x.pitch = x.C;
  float* partials = static_cast<float*>(k.workspace);
  with_float_type(x.dtype, "channel_sum", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({x}, [&](auto lanes) {
      constexpr int L = lanes;
      const auto run = [&](auto kernel, int vectors) {
        launch(stream, "channel_sum", {static_cast<unsigned>(layout.parts)}, columns_block(vectors),
               shared_bytes<float>(column_scratch(L)), kernel, x.as<const T>(), x.pitch, k.x.pixels() / layout.fold,
               x.C, layout.each, partials);
      };
      if constexpr (kWarp == 1) {  // one thread reads whole pixels
        if (x.C % (4 * L) == 0) return run(sum_pixels<T, L, 4>, x.C / (4 * L));
        if (x.C % (2 * L) == 0) return run(sum_pixels<T, L, 2>, x.C / (2 * L));
      }
      run(sum_pixels<T, L, 1>, x.C / L);
    });
  });
  sum_partials(stream, {partials, layout.parts * layout.fold, k.x.C, k.x.C, k.sum, k.accumulate});
}

void sum_partials(Stream& stream, const SumPartials& k) {
  with_lanes<float>({row_map(k.partials, k.n, k.stride), row_map(k.out, k.n)}, [&](auto lanes) {
    constexpr int L = lanes;
    const int64_t vectors = k.n / L;
    launch(stream, "sum_partials", {blocks_for(stream, vectors, 16)}, {16, 16}, shared_bytes<float>(column_scratch(L)),
           add_partials<L>, k.partials, k.parts, k.stride, k.n, k.out, k.accumulate);
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
