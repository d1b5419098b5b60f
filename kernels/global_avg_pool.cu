#include "kernels/global_avg_pool.h"

#include "kernels/core/image_sums.h"
#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {
namespace {

template <class T, int L, int K>
__global__ REGOLITH_FLAT void __launch_bounds__(kColumnThreads) image_sums(Map x, int64_t each, float* partials) {
  Shared shared;
  [[maybe_unused]] float* scratch = shared.take<float>(column_scratch(L));
  sum_image_part<L, K>(static_cast<int64_t>(x.H) * x.W, x.C, each, partials, scratch,
                       [&](int64_t p, int c) { return load_pack<Pack<L, K>>(x.as<const T>() + p * x.pitch + c); });
}

template <class T, int L>
__global__ void __launch_bounds__(kColumnThreads) spread(Map dy, Map dx, float scale, bool accumulate) {
  using V = Vec<L>;
  const Rows rows = block_rows(dx);
  for (int row = rows.begin; row < rows.end; ++row) {
    const T* const from = dy.as<const T>() + static_cast<int64_t>(row / dx.H) * dy.pitch;
    T* const to = row_of<T>(dx, row);
    for (int w = threadIdx.y; w < dx.W; w += blockDim.y) {
      for (int c = threadIdx.x * L; c < dx.C; c += blockDim.x * L) {
        V g = load<V>(from + c) * V(scale);
        T* const out = to + w * dx.pitch + c;
        if (accumulate) g += load<V>(out);
        store(out, g);
      }
    }
  }
}

void check(const char* kernel, const Map& large, const Map& small) {
  if (small.N != large.N || small.H != 1 || small.W != 1 || small.C != large.C || small.dtype != large.dtype)
    throw KernelError(std::string(kernel) + ": the small map must be (N, 1, 1, C) of the large one's N, C and type");
}

}  // namespace

void global_avg_pool_forward(Stream& stream, const GlobalAvgPoolForward& k) {
  check("global_avg_pool_forward", k.x, k.y);
  const ImageSumLayout layout(k.x);
  float* const partials = static_cast<float*>(k.workspace);
  const float scale = 1.0f / (static_cast<float>(k.x.H) * static_cast<float>(k.x.W));
  with_float_type(k.x.dtype, "global_avg_pool_forward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.x, k.y}, [&](auto lanes) {
      constexpr int L = lanes;
      with_pack<L>(k.x.C, [&](auto packs) {
        launch(stream, "image_sums", {static_cast<unsigned>(layout.parts), static_cast<unsigned>(k.x.N)},
               columns_block(k.x.C / (L * packs)), shared_bytes<float>(column_scratch(L)), image_sums<T, L, packs>, k.x,
               layout.each, partials);
      });
      finish_image_sums<T, L>(stream, partials, layout.parts, scale, k.y, false);
    });
  });
}

void global_avg_pool_backward(Stream& stream, const GlobalAvgPoolBackward& k) {
  check("global_avg_pool_backward", k.dx, k.dy);
  const float scale = 1.0f / (static_cast<float>(k.dx.H) * static_cast<float>(k.dx.W));
  with_float_type(k.dx.dtype, "global_avg_pool_backward", [&](auto t) {
    using T = decltype(t);
    with_lanes<T>({k.dy, k.dx}, [&](auto lanes) {
      constexpr int L = lanes;
      launch(stream, "global_avg_pool_spread", {row_blocks(stream, k.dx)}, columns_block(k.dx.C / L), 0, spread<T, L>,
             k.dy, k.dx, scale, k.accumulate);
    });
  });
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
