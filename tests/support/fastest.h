// The execution that a test of kernels takes where any will do.
#pragma once

#include "engine/tensor/device.h"

namespace regolith::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)  // those programs have the checked kernels alone
inline constexpr Execution kFastest = Execution::checked;
#else
inline constexpr Execution kFastest = Execution::fast;
#endif

}  // namespace regolith::testing
