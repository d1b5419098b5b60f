// What all kernels of attention know.
#pragma once

#include <cstdint>

#include "kernels/core/launch.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// The d channels of a head in a map of one image.
template <class T>
struct Head {
  T* first;
  int pitch, positions;
  __device__ __forceinline__ T* row(int p) const {  // null beyond the last position
    return p < positions ? first + static_cast<int64_t>(p) * pitch : nullptr;
  }
};

// One image is `positions` pixels. A block works for head blockIdx.y of image blockIdx.z.
struct Attention {
  int positions, heads, d;
  float scale;                                                           // 1 / sqrt(d)
  int qkv_pitch, y_pitch, C;                                             // C = heads * d
  __device__ __forceinline__ int left_from(int first, int most) const {  // positions, at most `most`
    return positions - first < most ? positions - first : most;
  }
  template <class T>
  __device__ __forceinline__ Head<T> of_qkv(T* qkv, int which) const {  // 0: q, 1: k, 2: v
    return head(qkv + which * C, qkv_pitch);
  }
  template <class T>
  __device__ __forceinline__ Head<T> of_y(T* y) const {
    return head(y, y_pitch);
  }
  __device__ __forceinline__ int64_t row() const {  // of lse and of D
    return (static_cast<int64_t>(blockIdx.z) * heads + static_cast<int>(blockIdx.y)) * positions;
  }

 private:
  template <class T>
  __device__ __forceinline__ Head<T> head(T* map, int pitch) const {
    const int64_t image = static_cast<int64_t>(blockIdx.z) * positions;
    return {map + image * pitch + static_cast<int>(blockIdx.y) * d, pitch, positions};
  }
};

}  // namespace regolith::kernels::REGOLITH_EXECUTION
