// Shared memory, by an accessor instead of a bare `__shared__`, so that the checked executor can poison and guard it.
//
//   Shared shared;                          // every thread makes one, and takes the same pieces in the same order
//   float* tile = shared.take<float>(n);    // 16-byte aligned
//
// A kernel of several pieces declares them once, for itself and for its launcher, in a struct:
//
//   struct Layout {
//     float *q, *o;  // (rows, d)
//     bf16* k;       // (d, columns)
//     template <class A>
//     REGOLITH_HOST_DEVICE Layout(A& a, int d) {
//       a.take_each(kRows * d, q, o);
//       a.take(k, d * kColumns);
//     }
//   };
//   const Layout s = take_shared<Layout>(d);       // in the kernel
//   launch(..., shared_bytes_of<Layout>(d), ...)   // in the launcher
//
// The launcher of a kernel that takes its pieces one by one passes the sum of their `shared_bytes<T>(n)`.
#pragma once

#include <cstddef>

#include "kernels/core/dtype.h"
#include "kernels/core/execution.h"

namespace regolith::kernels::REGOLITH_EXECUTION {

template <class T>
constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + 15) / 16 * 16;
}

class Shared {
 public:
  template <class T>
  REGOLITH_HOST_DEVICE __forceinline__ T* take(size_t count) {
#if defined(__CUDACC__) && !defined(__CUDA_ARCH__)
    return nullptr;  // the host compiler sees a layout's constructor, and never calls it
#elif defined(__CUDACC__)
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
  template <class T>
  REGOLITH_HOST_DEVICE __forceinline__ void take(T*& piece, size_t count) {
    piece = take<T>(count);
  }
  template <class... T>
  REGOLITH_HOST_DEVICE __forceinline__ void take_each(size_t count, T*&... pieces) {
    (take(pieces, count), ...);
  }

 private:
  size_t used_ = 0;  // bytes so far; in the checked execution, pieces so far
};

// Takes the same pieces in the launcher, which wants to know how many bytes they are.
class SharedSize {
 public:
  template <class T>
  REGOLITH_HOST_DEVICE void take(T*& piece, size_t count) {
    piece = nullptr;
    bytes_ += shared_bytes<T>(count);
  }
  template <class... T>
  REGOLITH_HOST_DEVICE void take_each(size_t count, T*&... pieces) {
    (take(pieces, count), ...);
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

template <class Layout, class... Sizes>
__device__ __forceinline__ Layout take_shared(Sizes... sizes) {
  Shared shared;
  return Layout(shared, sizes...);
}
template <class Layout, class... Sizes>
size_t shared_bytes_of(Sizes... sizes) {
  SharedSize size;
  const Layout layout(size, sizes...);
  return size.bytes();
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
