// Copies of 16 bytes from global to shared memory that run beside the arithmetic, so that one tile is fetched while
// another is multiplied.
//
//   copy_async(tile, source);  commit_copies();  ...  wait_for_copies<1>();  sync_block();   // all but the newest
//   group
//
// The host executions copy at once.
#pragma once

#include <cstring>

#include "kernels/core/collectives.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// Both ends are 16-byte aligned.
template <class T>
__device__ __forceinline__ void copy_async(T* shared, const T* global) {
#if defined(__CUDACC__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  std::memcpy(shared, global, 16);
#endif
}

// The copies of this thread since its last call are one group.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the newest `kPending` groups of this thread are under way. The other threads see what it copied
// after the next sync_block().
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
