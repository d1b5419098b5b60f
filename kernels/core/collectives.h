// Barriers, shuffles and sums of the threads of a block. Each has a GPU body, a checked body (publish, yield, read) and
// a fast body, where a block is one thread, so that most are the identity.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/core/execution.h"
#include "kernels/core/shared.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// Waits for all threads of the block; what they wrote to shared and global memory is visible after it.
__device__ __forceinline__ void sync_block() {
#if defined(__CUDACC__)
  __syncthreads();
#elif defined(REGOLITH_CHECKED)
  host::barrier();
#endif
}

// Waits for the lanes of the warp; what they wrote to shared memory is visible after it.
__device__ __forceinline__ void sync_warp() {
#if defined(__CUDACC__)
  __syncwarp();
#elif defined(REGOLITH_CHECKED)
  host::warp_barrier();
#endif
}

__device__ __forceinline__ int thread_rank() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ __forceinline__ int block_threads() { return blockDim.x * blockDim.y * blockDim.z; }
__device__ __forceinline__ int lane() { return thread_rank() % kWarp; }
__device__ __forceinline__ int warp_rank() { return thread_rank() / kWarp; }
__device__ __forceinline__ int warps() { return (block_threads() + kWarp - 1) / kWarp; }

// The value of lane `source`. All lanes of the warp call it. T: a type of 4 bytes. No shuffle orders memory: what
// other lanes wrote to shared memory wants a sync_warp().
template <class T>
__device__ __forceinline__ T shuffle(T x, [[maybe_unused]] int source) {
#if defined(__CUDACC__)
  return __shfl_sync(0xffffffffu, x, source);
#elif defined(REGOLITH_CHECKED)
  T all[kWarp];
  host::exchange(&x, all, sizeof x);
  return all[source % kWarp];
#else
  return x;
#endif
}

// The value of the lane whose number differs in the bits of `mask`. All lanes of the warp call it. In the fast
// execution a warp is one lane: loops over masks run `for (m = kWarp / 2; m > 0; m /= 2)`, that is not at all.
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, [[maybe_unused]] int mask) {
#if defined(__CUDACC__)
  return __shfl_xor_sync(0xffffffffu, x, mask);
#else
  return shuffle(x, lane() ^ mask);
#endif
}

// Sum and maximum over the warp, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int m = kWarp / 2; m > 0; m /= 2) x += shuffle_xor(x, m);
  return x;
}
template <class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int m = kWarp / 2; m > 0; m /= 2) {
    const T other = shuffle_xor(x, m);
    x = x > other ? x : other;
  }
  return x;
}

// Sum over the block in a fixed order, the same bits in every thread. `scratch`: kReduceScratch elements of shared
// memory that nothing else uses meanwhile. The block's size is a multiple of the warp's.
inline constexpr int kReduceScratch = 32;
template <class T>
__device__ __forceinline__ T block_sum(T x, [[maybe_unused]] T* scratch) {
  if constexpr (kWarp == 1) {
    return x;
  } else {
    x = warp_sum(x);
    sync_block();  // the scratch may still be read by an earlier sum
    if (lane() == 0) scratch[warp_rank()] = x;
    sync_block();
    T total = scratch[0];
    for (int w = 1; w < warps(); ++w) total += scratch[w];
    return total;
  }
}

// The contiguous part of 0..n that belongs to this block of a one-dimensional grid, in units of `step`.
struct Range {
  int64_t begin, end;
};
__device__ __forceinline__ Range block_range(int64_t n, int64_t step = 1) {
  const int64_t units = (n + step - 1) / step, each = (units + gridDim.x - 1) / gridDim.x;
  const int64_t begin = each * blockIdx.x * step, end = begin + each * step;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
