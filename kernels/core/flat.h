// Kernels over flat fp32 buffers whose elements all fare alike: the weights of a network, their moments, their average.
#pragma once

#include "kernels/core/launch.h"
#include "kernels/core/math.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

inline constexpr int kFlatThreads = 256, kFlatLanes = kWarp == 1 ? kLanes<float> : 4;

// Calls f(Vec<...>{}, i) for this block's share of 0..count: whole vectors, then the elements that are left.
template <class F>
__device__ __forceinline__ void for_vectors(int64_t count, F&& f) {
  constexpr int L = kFlatLanes;
  const int64_t whole = count / L * L;
  const Range r = block_range(whole, static_cast<int64_t>(kFlatThreads) * L);
  const int64_t first = r.begin + threadIdx.x * L;
  // Clamped to the end, it stays one index: a plain sum the compiler turns into a pointer for each of the arrays, in
  // more registers than the occupancy allows.
  for (int64_t i = first < r.end ? first : r.end; i < r.end; i += static_cast<int64_t>(blockDim.x) * L) f(Vec<L>(), i);
  if (blockIdx.x == 0)
    for (int64_t i = whole + threadIdx.x; i < count; i += blockDim.x) f(Vec<1>(), i);
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
