// Into how many parts an image is cut where its pixels are summed: see image_sums.h.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/core/tensor_view.h"

namespace regolith::kernels {

struct ImageSumLayout {
  int parts;     // of an image
  int64_t each;  // pixels of a part
  explicit ImageSumLayout(const TensorView& x) {
    const int64_t pixels = static_cast<int64_t>(x.H) * x.W;
    parts = static_cast<int>(std::clamp<int64_t>(pixels * x.C / 16384, 1, 64));
    each = (pixels + parts - 1) / parts;
  }
  size_t bytes(const TensorView& x) const { return static_cast<size_t>(parts) * x.N * x.C * sizeof(float); }
};

}  // namespace regolith::kernels
