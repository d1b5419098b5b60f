// What all kernels of attention know.
#pragma once

#include <cstdint>

#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// One image is `positions` pixels. A block works for head blockIdx.y of image blockIdx.z.
struct Attention {
  int positions, heads, d;
  float scale;                                                           // 1 / sqrt(d)
  int qkv_pitch, y_pitch, C;                                             // C = heads * d
  __device__ __forceinline__ int left_from(int first, int most) const {  // positions, at most `most`
    return positions - first < most ? positions - first : most;
  }
  // The block's channels of the first pixel of its image.
  template <class T>
  __device__ __forceinline__ T* of_head(T* map, int pitch) const {
    return map + static_cast<int64_t>(blockIdx.z) * positions * pitch + static_cast<int>(blockIdx.y) * d;
  }
  // Its row of lse and of D.
  __device__ __forceinline__ int64_t row() const {
    return (static_cast<int64_t>(blockIdx.z) * heads + static_cast<int>(blockIdx.y)) * positions;
  }
};

}  // namespace regolith::kernels::REGOLITH_EXECUTION
