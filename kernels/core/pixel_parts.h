// Into how many parts the pixels of a map, or of an image, are divided where blocks sum them up: a function of the
// shape alone, so that the order of the sums does not depend on the machine or on the batch.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/tensor_view.h"

namespace regolith::kernels {

struct PixelParts {
  int parts;
  int64_t each;  // pixels of a part
  PixelParts(int64_t pixels, int C, int most)
      : parts(static_cast<int>(std::clamp<int64_t>(pixels * C / 16384, 1, most))), each((pixels + parts - 1) / parts) {}
};

inline PixelParts image_parts(const TensorView& x) { return {static_cast<int64_t>(x.H) * x.W, x.C, 64}; }
// Bytes of the partial sums of each image and channel. The map's data may be null.
inline size_t image_sum_workspace(const TensorView& x) {
  return static_cast<size_t>(image_parts(x).parts) * x.N * x.C * sizeof(float);
}

}  // namespace regolith::kernels
