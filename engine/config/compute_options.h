// How the ops of a network compute, which NetworkOptions, ProgramOptions and CompileContext extend and pass on whole;
// and the copies of weights that their kernels ask for.
#pragma once

#include <cstddef>
#include <string>

#include "engine/config/fields.h"
#include "kernels/core/dtype.h"

namespace regolith {

// Engines of cuDNN that ask for a larger workspace are left out: they only copy whole maps into columns first.
inline constexpr size_t kWorkspaceLimit = size_t{256} << 20;

// What the user may say of the provider of convolutions; "auto" lets pick_convolution() choose.
struct ConvChoice {
  std::string provider = "auto";
  int workspace_mib = static_cast<int>(kWorkspaceLimit >> 20);
};
template <class V>
void fields(V& v, ConvChoice& s) {
  v("provider", s.provider,
    {.doc = "who computes convolutions; auto: the best that takes each",
     .names = {"auto", "cudnn", "onednn", "amx", "winograd", "upscale", "tile", "thin", "reference"}});
  v("workspace_mib", s.workspace_mib, {.doc = "most that an engine of cuDNN may ask for", .min = 0, .max = 1 << 20});
}

// A copy of weights in the layout that a kernel reads. Programs of other batch sizes and modes that ask a node for a
// copy of the same layout share it.
struct Prepacked {
  std::string layout;  // unique within the node
  size_t bytes = 0;    // 0: the kernel reads the parameters as they are
};

struct ComputeOptions {
  DType type = DType::f32;  // of the maps
  bool tf32 = false;        // fp32 products may round their factors to tf32
  bool training = true;     // backward will run
  bool frozen = false;      // of this network it never will: copies of weights need not be those of training
  bool deterministic = true;
  ConvChoice conv;
};

}  // namespace regolith
