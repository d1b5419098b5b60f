// Sums over the pixels of a map: the gradient of a bias. In fp32, through partial sums that are added in an order that
// depends on the shape alone.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/kernel.h"

namespace regolith::kernels {

struct ChannelSum {
  TensorView x;  // (N, H, W, C)
  float* sum;    // (C); written, or added to
  bool accumulate;
  void* workspace;  // channel_sum_workspace(x) bytes, 256-byte aligned
};
REGOLITH_KERNEL(channel_sum, ChannelSum);

// Few channels, side by side: 16 pixels of C are summed as if they were one of 16 * C, in whole vectors, and those sums
// are added up at the end.
struct ChannelSumLayout {
  int fold, parts;
  int64_t each;  // folded pixels of one part
  explicit ChannelSumLayout(const TensorView& x) {
    fold = x.C % 16 != 0 && x.C < 64 && x.whole() && x.pixels() % 16 == 0 ? 16 : 1;
    const int64_t pixels = x.pixels() / fold;
    parts = static_cast<int>(std::clamp<int64_t>(x.elements() / 16384, 1, 512));
    each = (pixels + parts - 1) / parts;
  }
};
inline size_t channel_sum_workspace(const TensorView& x) {  // the map's data may be null
  const ChannelSumLayout layout(x);
  return static_cast<size_t>(layout.parts) * layout.fold * x.C * sizeof(float);
}

// out[i] (+)= partials[0 * stride + i] + partials[1 * stride + i] + ... for i < n: the end of every such reduction.
struct SumPartials {
  const float* partials;  // (parts, stride)
  int parts;
  int64_t stride;
  int64_t n;
  float* out;  // (n)
  bool accumulate;
};
REGOLITH_KERNEL(sum_partials, SumPartials);

}  // namespace regolith::kernels
