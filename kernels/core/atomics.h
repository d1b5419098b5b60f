// Atomic additions of integers: the order of the additions does not show in the sum. There is none for floats.
#pragma once

#include <cstdint>

#include "kernels/core/execution.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

// Adds to a counter in shared memory (fast execution: of this block alone, hence a plain addition).
__device__ __forceinline__ void count_shared(int* counter, int by) {
#if defined(__CUDACC__)
  atomicAdd(counter, by);
#elif defined(REGOLITH_CHECKED)
  __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
#else
  *counter += by;
#endif
}

// Adds to a counter in global memory.
__device__ __forceinline__ void count_global(int64_t* counter, int64_t by) {
#if defined(__CUDACC__)
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(by));
#else
  __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
#endif
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
