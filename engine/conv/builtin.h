// The providers that a build can have, and what they share; conv_providers() lists those that it has.
#pragma once

#include "engine/conv/provider.h"

namespace regolith {

// Kernels compute in fp16 on a GPU (and in the checked execution) only: "" or why a provider of ours refuses.
inline std::string half_refusal(Device& device, const ConvRequest& request) {
  const bool refuses = request.type == DType::f16 && device.execution() == Execution::fast;
  return refuses ? "fp16 needs CUDA" : "";
}

ConvProvider& thin_provider();       // kernels of our own for the thin ends: few channels in or out, 1x1
ConvProvider& tile_provider();       // kernels of our own on GPUs, in 16 bits: few channels, and the norms around them
ConvProvider& amx_provider();        // bf16 of stride 1 on processors with AMX-BF16
ConvProvider& winograd_provider();   // 3x3 of stride 1 on the CPU, and in inference 2x2
ConvProvider& upscale_provider();    // transposed convolutions of inference whose kernel is their stride, on the CPU
ConvProvider& reference_provider();  // plain loops, every request, every device
#if defined(REGOLITH_ONEDNN)
ConvProvider& onednn_provider();  // the CPU
#endif
#if defined(REGOLITH_CUDA)
ConvProvider& cudnn_provider();  // CUDA
#endif

// Throws KernelError where x, or y, is not the request's map: of its shape and type, and whole unless slices are taken.
// `provider` leads the text.
void check_x(std::string_view provider, const ConvRequest& request, const TensorView& x, bool slices = false);
void check_y(std::string_view provider, const ConvRequest& request, const TensorView& y, bool slices = false);

}  // namespace regolith
