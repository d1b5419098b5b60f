// Convolutions by oneDNN (v3 interface) on the CPU. Activations are NHWC; weights are kept in the layouts that the
// primitives ask for. Primitives are compiled once per request and process.
//
// Where the processor has no bf16 (AVX512-BF16), bf16 runs as fp32 between casts; so does fp16 everywhere.
#pragma once

#include "engine/conv/provider.h"

namespace regolith {

// Who computes weight gradients: `measured` is whoever was fastest on such a processor, `library` oneDNN; `direct` and
// `tiled` are kernels of our own, the latter in bf16 with AMX.
enum class WeightGradients { measured, library, direct, tiled };

std::variant<std::unique_ptr<Convolution>, UnsupportedReason> make_onednn_convolution(
    Device& device, const ConvRequest& request, WeightGradients weight_gradients = WeightGradients::measured);

}  // namespace regolith
