// Shared memory, by an accessor instead of a bare `__shared__`, so that the checked executor can poison and guard it.
//
//   Shared shared;                          // every thread makes one, and takes the same pieces in the same order
//   float* tile = shared.take<float>(n);    // 16-byte aligned
//
// The launcher passes the sum of the pieces' `shared_bytes<T>(n)`.
#pragma once

#include <cstddef>

#include "kernels/core/execution.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

template <class T>
constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + 15) / 16 * 16;
}

class Shared {
 public:
  template <class T>
  __device__ __forceinline__ T* take(size_t count) {
#if defined(__CUDACC__)
    extern __shared__ __align__(16) unsigned char regolith_shared[];
    T* piece = reinterpret_cast<T*>(regolith_shared + used_);
    used_ += shared_bytes<T>(count);
    return piece;
#elif defined(REGOLITH_CHECKED)
    return static_cast<T*>(host::take_shared(used_++, count * sizeof(T)));
#else
    T* piece = reinterpret_cast<T*>(host_fast::shared_memory() + used_);
    used_ += shared_bytes<T>(count);
    return piece;
#endif
  }

 private:
  size_t used_ = 0;  // bytes so far; in the checked execution, pieces so far
};

}  // namespace regolith::kernels::REGOLITH_EXECUTION
