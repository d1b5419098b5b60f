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

// A block for pixels of `vectors` channel vectors.
inline Dim3 columns_block(int vectors) {
  const unsigned x = std::clamp(vectors, 1, kColumnThreads);
  return {x, kColumnThreads / x, 1};
}

// The range of rows n * H + h of a map that this block of a one-dimensional grid takes. In 32 bits, because a GPU
// divides 64-bit integers by a subroutine that costs registers.
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
// Blocks of a grid whose kernel calls block_rows.
inline unsigned row_blocks(const Stream& stream, const TensorView& map) {
  return blocks_for(stream, static_cast<int64_t>(map.N) * map.H, 1);
}

// Rows of n numbers, one every `stride` numbers (0: one row), as a map for with_lanes.
template <class T>
TensorView row_map(const T* p, int64_t n, int64_t stride = 0) {
  return {const_cast<T*>(p), 1, 1, 1, static_cast<int>(n), static_cast<int>(stride > 0 ? stride : n), DType::f32};
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
