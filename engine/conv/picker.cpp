#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/conv/builtin.h"

namespace regolith {

std::vector<ConvProvider*> conv_providers() {
  std::vector<ConvProvider*> list{&amx_provider(), &tile_provider(), &thin_provider(), &winograd_provider(),
                                  &upscale_provider()};
#if defined(REGOLITH_ONEDNN)
  list.push_back(&onednn_provider());
#endif
#if defined(REGOLITH_CUDA)
  list.push_back(&cudnn_provider());
#endif
  list.push_back(&reference_provider());
  return list;
}

ConvRequest conv_request(const ConvShape& shape, const ComputeOptions& options) {
  return {.shape = shape,
          .type = options.type,
          .tf32 = options.tf32,
          .needs_wgrad = options.training,
          .frozen = options.frozen,
          .deterministic = options.deterministic,
          .workspace_limit = static_cast<size_t>(options.conv.workspace_mib) << 20};
}

std::unique_ptr<Convolution> pick_convolution(Device& device, const ConvRequest& request, const ConvChoice& choice) {
  std::string refusals;
  std::vector<std::string> names;
  std::unique_ptr<Convolution> second_best;
  bool known = choice.provider == "auto";
  for (ConvProvider* provider : conv_providers()) {
    const std::string name(provider->name());
    names.push_back(name);
    if (choice.provider == "auto") {
      // The simulated device shows the engine's faults; the reference loops run there, and only there, unasked, where
      // the convolutions that take norms do not.
      const bool loops = name == "reference", simulated = device.kind() == DeviceKind::simulated;
      if (simulated ? !loops && name != "tile" : loops) continue;
    } else if (choice.provider != name) {
      continue;
    }
    known = true;
    auto made = provider->create(device, request);
    if (auto* convolution = std::get_if<std::unique_ptr<Convolution>>(&made)) {
      if (choice.provider != "auto" || (*convolution)->is_profitable()) return std::move(*convolution);
      if (second_best == nullptr) second_best = std::move(*convolution);
    } else {
      refusals += "\n  " + name + ": " + std::get<UnsupportedReason>(made).reason;
    }
  }
  if (second_best != nullptr) return second_best;
  const std::string what = "convolution " + to_string(request.shape) + " " + std::string(name_of(request.type));
  if (!known) {
    throw GraphError(what + ": no provider '" + choice.provider + "' in this build; choose auto or one of " +
                     join(names));
  }
  throw GraphError(
      what + " on " + device.name() + ": no provider takes it (provider: " + choice.provider + ")" +
      (refusals.empty() ? "; this build has none for the device, name reference for the slow loops" : refusals));
}

}  // namespace regolith
