#include "engine/conv/provider.h"

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "engine/conv/builtin.h"

namespace regolith {
namespace {

void check(std::string_view provider, const char* name, const ConvRequest& r, const TensorView& m, int H, int W, int C,
           bool slices) {
  if (m.data != nullptr && (m.whole() || slices) && m.dtype == r.type && m.N == r.shape.N && m.H == H && m.W == W &&
      m.C == C)
    return;
  throw KernelError("convolution " + to_string(r.shape) + " (" + std::string(provider) + "): " + name +
                    " must be a whole map " + size_text({r.shape.N, H, W, C}) + " " + std::string(name_of(r.type)) +
                    ", not " +
                    (m.data == nullptr ? "a null "
                     : m.whole()       ? "a whole "
                                       : "a slice ") +
                    size_text({m.N, m.H, m.W, m.C}) + " " + std::string(name_of(m.dtype)) + " of pitch " +
                    std::to_string(m.pitch) + "; pack a slice first");
}

}  // namespace

std::string to_string(const ConvShape& s) {
  const auto pair = [](std::array<int, 2> v) { return v[0] == v[1] ? std::to_string(v[0]) : join(v, ","); };
  return size_text({s.N, s.H, s.W, s.C}) + " -> " + std::to_string(s.K) + ", " + size_text({s.R, s.S}) + " stride " +
         pair(s.stride) + (s.dilation != std::array{1, 1} ? " dilation " + pair(s.dilation) : "") + " pad " +
         join(s.pad_before, ",") + "," + join(s.pad_after, ",");
}

void Convolution::require(bool asked_for, const char* what) const {
  if (!asked_for)
    throw KernelError("convolution " + to_string(request_.shape) + " (" + std::string(provider()) +
                      "): its request asked for no " + what);
}
void Convolution::forward(DeviceStream&, const TensorView&, const void*, const void*, const ChannelBias&,
                          const TensorView&, void*, const ForwardEpilogue&) {
  require(false, "forward");
}
void Convolution::dgrad(DeviceStream&, const TensorView&, const void*, const void*, const TensorView&, void*,
                        const DgradEpilogue&) {
  require(false, "dgrad");
}
void Convolution::wgrad(DeviceStream&, const TensorView&, const TensorView&, float*, float*, bool, void*) {
  require(false, "wgrad");
}

void check_x(std::string_view provider, const ConvRequest& r, const TensorView& x, bool slices) {
  check(provider, "x", r, x, r.shape.H, r.shape.W, r.shape.C, slices);
}
void check_y(std::string_view provider, const ConvRequest& r, const TensorView& y, bool slices) {
  check(provider, "y", r, y, r.shape.P(), r.shape.Q(), r.shape.K, slices);
}

}  // namespace regolith
