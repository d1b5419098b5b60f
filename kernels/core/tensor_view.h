// A batch of feature maps in NHWC, or a slice of the channels of a wider batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace regolith {

struct TensorView {
  void* data = nullptr;  // element (0,0,0,0) of the slice, in device memory
  int N = 0, H = 0, W = 0, C = 0;
  int pitch = 0;  // elements from one pixel to the next: C for a whole buffer, the parent's channels for a slice
  DType dtype = DType::f32;

  REGOLITH_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
  REGOLITH_HOST_DEVICE int64_t pixels() const { return static_cast<int64_t>(N) * H * W; }
  REGOLITH_HOST_DEVICE int64_t elements() const { return pixels() * C; }
  REGOLITH_HOST_DEVICE bool whole() const { return pitch == C; }
  template <class T>
  REGOLITH_HOST_DEVICE T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace regolith
