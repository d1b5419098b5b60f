// The providers that a build can have; conv_providers() lists those that it has.
#pragma once

#include "engine/conv/provider.h"

namespace regolith {

ConvProvider& thin_provider();       // kernels of our own for the thin ends: few channels in or out, 1x1
ConvProvider& reference_provider();  // plain loops, every request, every device
#if defined(REGOLITH_ONEDNN)
ConvProvider& onednn_provider();  // the CPU
#endif
#if defined(REGOLITH_CUDA)
ConvProvider& cudnn_provider();  // CUDA
#endif

}  // namespace regolith
