// Which execution this translation unit is compiled for. Every kernel source is compiled once per execution, inside
// `namespace regolith::kernels::REGOLITH_EXECUTION`, so that all of them can live in one program.
#pragma once

#include <cstdint>

#include "kernels/core/stream.h"

#if defined(__CUDACC__)
#define REGOLITH_EXECUTION gpu
#elif defined(REGOLITH_CHECKED)
#define REGOLITH_EXECUTION checked
#else
#define REGOLITH_EXECUTION fast
#endif

namespace regolith {
struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
}  // namespace regolith

#if !defined(__CUDACC__)
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#endif

// Before a loop over what a thread holds in registers: a compiler keeps arrays there only if it unrolls the loop.
#if defined(__CUDACC__)
#define REGOLITH_UNROLL _Pragma("unroll")
#elif defined(REGOLITH_CHECKED)
#define REGOLITH_UNROLL
#define __forceinline__ inline  // the compiler's choice: under half the time to compile, up to a third more to run
#else
#define REGOLITH_UNROLL _Pragma("GCC unroll 16")
#define __forceinline__ inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__)
namespace regolith::kernels::gpu {
inline constexpr Execution kExecution = Execution::gpu;
inline constexpr int kWarp = 32;
}  // namespace regolith::kernels::gpu
#elif defined(REGOLITH_CHECKED)
#include "kernels/host/checked.h"
namespace regolith::kernels::checked {
using host::blockDim, host::blockIdx, host::gridDim, host::threadIdx;
inline constexpr Execution kExecution = Execution::checked;
inline constexpr int kWarp = 32;
}  // namespace regolith::kernels::checked
#else
#include "kernels/host/fast.h"
namespace regolith::kernels::fast {
using host_fast::blockIdx, host_fast::gridDim;
inline constexpr Dim3 threadIdx{0, 0, 0}, blockDim{1, 1, 1};
inline constexpr Execution kExecution = Execution::fast;
inline constexpr int kWarp = 1;
}  // namespace regolith::kernels::fast
#endif
