// Sums over the pixels of each image, channel by channel, in fp32: partial sums in a workspace, then added in an order
// that depends on the shape of an image alone, so that slicing a batch changes nothing.
#pragma once

#include "kernels/core/columns.h"
#include "kernels/core/image_parts.h"
#include "kernels/core/thread_tile.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// In a grid of (parts, N) blocks of columns_block(C / P::size): adds up term(pixel, channel), a P, over this block's
// part of its image, into partials (parts, N, C). Pixels are counted through the batch. All threads of the block call
// it; `scratch`: column_scratch(L) floats.
template <int L, int K, class F>
__device__ __forceinline__ void sum_image_part(int64_t image_pixels, int C, int64_t each, float* partials,
                                               float* scratch, F&& term) {
  using P = Pack<L, K>;
  const int64_t image = static_cast<int64_t>(blockIdx.y) * image_pixels, last = image + image_pixels;
  const int64_t begin = image + blockIdx.x * each, end = begin + each < last ? begin + each : last;
  float* const out = partials + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * C;
  for (int base = 0; base < C; base += static_cast<int>(blockDim.x) * P::size) {
    const int c = base + static_cast<int>(threadIdx.x) * P::size;
    P sum(0);
    if (c < C) {
      for (int64_t p = begin + threadIdx.y; p < end; p += blockDim.y) sum += term(p, c);
    }
    for (int k = 0; k < K; ++k) {
      const Vec<L> total = column_sum(sum.v[k], scratch);
      if (threadIdx.y == 0 && c < C) store(out + c + k * L, total);
    }
  }
}

// y (+)= scale * the sum of the parts. y: (N, 1, 1, C).
template <class T, int L>
__global__ void __launch_bounds__(256)
    add_image_parts(const float* partials, int parts, float scale, TensorView y, bool accumulate) {
  using V = Vec<L>;
  const int vectors = y.C / L;
  const int64_t n = static_cast<int64_t>(y.N) * vectors;
  const Range r = block_range(n, 256);
  for (int64_t i = r.begin + threadIdx.x; i < r.end; i += blockDim.x) {
    V sum(0);
    for (int part = 0; part < parts; ++part) sum += load<V>(partials + (part * n + i) * L);
    sum = sum * V(scale);
    T* const out = y.as<T>() + i / vectors * y.pitch + i % vectors * L;
    if (accumulate) sum += load<V>(out);
    store(out, sum);
  }
}
template <class T, int L>
void finish_image_sums(Stream& stream, const float* partials, int parts, float scale, const TensorView& y,
                       bool accumulate) {
  launch(stream, "add_image_parts", {blocks_for(stream, static_cast<int64_t>(y.N) * y.C / L, 256)}, {256}, 0,
         add_image_parts<T, L>, partials, parts, scale, y, accumulate);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
