// Blocks whose threads go over channel vectors (x) and pixels (y). In the fast execution such a block is one thread,
// and loops that stride by blockDim become plain nested loops: no division finds a thread its place.
#pragma once

#include <algorithm>

#include "kernels/core/collectives.h"
#include "kernels/core/launch.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/vec.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kColumnThreads = 256;  // at most, in a block of columns_block

// `vectors`: what one pixel has of them.
inline Dim3 columns_block(int vectors) {
  const unsigned x = std::clamp(vectors, 1, kColumnThreads);
  return {x, kColumnThreads / x, 1};
}

// The rows (n, h) of a map that belong to this block of a one-dimensional grid: neighbours, numbered n * H + h. In 32
// bits: dividing 64 takes a GPU a subroutine, and the registers saved around it.
struct Rows {
  int begin, end;
};
__device__ __forceinline__ Rows block_rows(const TensorView& map) {
  const int rows = map.N * map.H, each = (rows + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = each * static_cast<int>(blockIdx.x), end = begin + each;
  return {begin < rows ? begin : rows, end < rows ? end : rows};
}
template <class T>
__device__ __forceinline__ T* row_of(const TensorView& map, int64_t row) {  // its first pixel
  return map.as<T>() + row * map.W * map.pitch;
}
// What to launch for them.
inline unsigned row_blocks(const Stream& stream, const TensorView& map) {
  return blocks_for(stream, static_cast<int64_t>(map.N) * map.H, 1);
}

// Sum of `v` over the threads of equal threadIdx.x, pairwise in a fixed order, given to the thread with threadIdx.y 0.
// All threads of the block call it. `scratch`: kColumnThreads * N floats of shared memory that nothing else uses.
template <int N>
__device__ __forceinline__ Vec<N> column_sum(Vec<N> v, [[maybe_unused]] float* scratch) {
  if constexpr (kWarp > 1) {
    float* mine = scratch + (threadIdx.y * blockDim.x + threadIdx.x) * N;
    sync_block();  // an earlier sum may still be read
    store(mine, v);
    for (unsigned n = blockDim.y; n > 1;) {
      const unsigned half = (n + 1) / 2;
      sync_block();
      if (threadIdx.y + half < n) {
        v += load<Vec<N>>(mine + half * blockDim.x * N);
        store(mine, v);
      }
      n = half;
    }
  }
  return v;
}
// Floats of scratch that column_sum needs for vectors of N.
constexpr size_t column_scratch(int N) { return kWarp > 1 ? static_cast<size_t>(kColumnThreads) * N : 0; }

// n numbers as with_lanes looks at them, every `stride` numbers such a row.
template <class T>
TensorView row_map(const T* p, int64_t n, int64_t stride = 0) {
  return {const_cast<T*>(p), 1, 1, 1, static_cast<int>(n), static_cast<int>(stride > 0 ? stride : n), DType::f32};
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
