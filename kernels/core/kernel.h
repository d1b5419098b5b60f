// How a kernel is offered to the engine: one line in its header,
//
//   struct MaxPoolForward { TensorView x, y; };                          // what it takes
//   REGOLITH_KERNEL(max_pool_forward, MaxPoolForward);            // void max_pool_forward(Stream&, const
//   MaxPoolForward&)
//
// and in its .cu the definition, `void max_pool_forward(Stream& s, const MaxPoolForward& a)`, inside
// `namespace regolith::kernels::REGOLITH_EXECUTION`. The call picks the execution of the stream. The executions that a
// program does not link (no CUDA toolkit; checked, outside the tests) are null, and asking for one is an error.
#pragma once

#include <string>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

#define REGOLITH_KERNEL(function, Args)                                                                          \
  namespace gpu {                                                                                                \
  [[gnu::weak]] void function(Stream&, const Args&);                                                             \
  }                                                                                                              \
  namespace fast {                                                                                               \
  [[gnu::weak]] void function(Stream&, const Args&);                                                             \
  }                                                                                                              \
  namespace checked {                                                                                            \
  [[gnu::weak]] void function(Stream&, const Args&);                                                             \
  }                                                                                                              \
  inline void function(Stream& stream, const Args& args) {                                                       \
    static constexpr void (*table[])(Stream&, const Args&) = {gpu::function, fast::function, checked::function}; \
    ::regolith::kernels::pick(table, stream, #function)(stream, args);                                           \
  }                                                                                                              \
  static_assert(true)

namespace regolith::kernels {

template <class F>
F* pick(F* const (&table)[3], const Stream& stream, const char* name) {
  F* f = table[static_cast<int>(stream.execution())];
  if (f == nullptr) {
    constexpr const char* executions[] = {"CUDA", "fast host", "checked host"};
    throw KernelError(std::string("kernel ") + name + ": this program was built without the " +
                      executions[static_cast<int>(stream.execution())] + " execution");
  }
  return f;
}

}  // namespace regolith::kernels
