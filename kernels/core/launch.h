// The one place where kernels are launched: opens an NVTX range, launches, checks the error.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/core/collectives.h"
#include "kernels/core/error.h"
#include "kernels/core/execution.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/vec.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>
#endif

namespace regolith::kernels::REGOLITH_EXECUTION {

// Launches `kernel` on `grid` blocks of `block` threads with `shared_bytes` of dynamic shared memory. The fast
// execution runs every block with one thread. Arguments are copied. Throws DeviceError (naming the kernel).
template <class... P, class... A>
void launch(Stream& stream, const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, void (*kernel)(P...),
            A&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;  // nothing to do, and CUDA refuses it
#if defined(__CUDACC__)
  const auto fail = [&](cudaError_t e, const char* what) {
    cudaGetLastError();  // whoever goes on, and asks for the last error, shall not hear of this one
    throw DeviceError(std::string("kernel ") + name + ": " + what + ": " + cudaGetErrorString(e));
  };
  const auto native = static_cast<cudaStream_t>(stream.native());  // of the device that is selected from here on
  if (shared_bytes > 48 * 1024) {
    const cudaError_t e =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (e != cudaSuccess) fail(e, "asks for more shared memory than the device has");
  }
  nvtxRangePushA(name);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(block.x, block.y, block.z);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = native;
  const cudaError_t e = cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(args))...);
  nvtxRangePop();
  if (e != cudaSuccess) fail(e, "launch failed");
#else
  std::tuple<P...> copies(static_cast<P>(std::forward<A>(args))...);
  const auto check = [&](const auto& argument) {
    using T = std::remove_cvref_t<decltype(argument)>;
    if constexpr (std::is_pointer_v<T> || std::is_class_v<T>) {
      // A copy, for what the stack left between the members may look like a pointer; and the kernel must not depend on
      // the built-in, which in g++ 12 takes members of structs in an array for padding.
      T seen = argument;
#if __has_builtin(__builtin_clear_padding)
      __builtin_clear_padding(&seen);
#endif
      stream.check_argument(name, &seen, sizeof(T), std::is_pointer_v<T>);
    }
  };
  std::apply([&](const auto&... each) { (check(each), ...); }, copies);
  stream.enqueue(name, [=] {
    const auto body = [&] { std::apply(kernel, copies); };
#if defined(REGOLITH_CHECKED)
    host::run_grid(name, grid, block, shared_bytes, body);
#else
    (void)block;
    host_fast::run_blocks(grid, shared_bytes, body);
#endif
  });
#endif
}

// Blocks for `items` independent items of which one block should have at least `least` (so that a launch is worth it)
// and the machine some `waves` blocks per processor.
inline unsigned blocks_for(const Stream& stream, int64_t items, int64_t least, int waves = kWarp == 1 ? 4 : 8) {
  const int64_t most = static_cast<int64_t>(stream.processors()) * waves;
  return static_cast<unsigned>(std::clamp<int64_t>((items + least - 1) / least, 1, most));
}

// Bytes of shared memory that a block may have.
inline size_t shared_limit([[maybe_unused]] const Stream& stream) {
#if defined(__CUDACC__)
  stream.native();  // selects its device
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return 48 * 1024;
  }
  return static_cast<size_t>(bytes);
#else
  return 48 * 1024;
#endif
}

// Calls f with a value of the element type (float, bf16, fp16) that `t` names. Throws KernelError for other types.
template <class F>
void with_stored_type(DType t, const char* kernel, F&& f) {
  switch (t) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(fp16{});
    default:
      throw KernelError(std::string(kernel) + ": takes fp32, bf16 or fp16, not " + std::string(name_of(t)));
  }
}

// The same for kernels that compute. The fast execution has no fp16: processors have bf16 or nothing.
template <class F>
void with_float_type(DType t, const char* kernel, F&& f) {
  if constexpr (kExecution == Execution::fast) {
    if (t == DType::f32) return f(float{});
    if (t == DType::bf16) return f(bf16{});
    throw KernelError(std::string(kernel) + ": takes fp32 or bf16 on the CPU, not " + std::string(name_of(t)));
  } else {
    with_stored_type(t, kernel, f);
  }
}

// Calls f with the number of channels that a thread may own, as a compile-time constant: kLanes<T> where the channels,
// pitches and addresses of all maps (null ones aside) allow whole vectors, else 1.
template <class T, class F>
void with_lanes(std::initializer_list<TensorView> maps, F&& f) {
  constexpr int L = kLanes<T>;
  constexpr size_t align = std::min<size_t>(16, L * sizeof(T));
  const bool whole = std::all_of(maps.begin(), maps.end(), [](const TensorView& m) {
    return !m || (m.C % L == 0 && m.pitch % L == 0 && reinterpret_cast<uintptr_t>(m.data) % align == 0);
  });
  if (whole) return f(std::integral_constant<int, L>{});
  return f(std::integral_constant<int, 1>{});
}

}  // namespace regolith::kernels::REGOLITH_EXECUTION
