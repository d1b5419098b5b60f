// Kernels of our own for the thin ends of a network: the first layer, of few input channels, and the 1x1 convolution to
// the classes. Libraries run these at a tenth of the machine.
#include "engine/conv/builtin.h"
#include "kernels/channel_sum.h"
#include "kernels/conv_direct.h"
#include "kernels/conv_thin.h"

namespace regolith {
namespace {

constexpr int kThinInputs = 4;  // with more, and as many taps, a library is as fast
constexpr int kWideStep = 16;   // whole vectors on every machine

// Few channels in, stride 1, a small window.
class ThinInConvolution : public Convolution {
 public:
  explicit ThinInConvolution(const ConvRequest& request) : Convolution(request) {
    window_ = {shape().R, shape().S, {shape().pad_before[0], shape().pad_before[1]}};
  }
  std::string_view provider() const override { return "thin"; }
  std::string implementation() const override { return "thin input"; }
  size_t wgrad_workspace() const override {
    return kernels::thin_gather_workspace({.N = shape().N, .H = shape().P(), .W = shape().Q(), .C = shape().K},
                                          shape().R * shape().S * shape().C);
  }

  void forward(DeviceStream& stream, const TensorView& x, const void* w, const void*, const ChannelBias& bias,
               const TensorView& y, void*, const ForwardEpilogue&) override {
    kernels::thin_spread(stream, {x, w, bias.full, y, window_, request_.relu});
  }
  // Of the images themselves: no network asks for it in training, so plain loops do.
  void dgrad(DeviceStream& stream, const TensorView& dy, const void* w, const void*, const TensorView& dx, void*,
             const DgradEpilogue&) override {
    kernels::conv_direct_dgrad(
        stream, {dy, w, dx, {.R = shape().R, .S = shape().S, .pad = {shape().pad_before[0], shape().pad_before[1]}}});
  }
  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    kernels::thin_gather(stream, {x, dy, dw, db, window_, accumulate, workspace});
  }
  int wgrad_launches(bool) const override { return 2; }

 private:
  kernels::ThinWindow window_;
};

// 1x1 to few channels. The gradients are those of a thin input, with the parts of x and dy exchanged.
class ThinOutConvolution : public Convolution {
 public:
  explicit ThinOutConvolution(const ConvRequest& request) : Convolution(request) {}
  std::string_view provider() const override { return "thin"; }
  std::string implementation() const override { return "thin output"; }
  size_t wgrad_workspace() const override {
    TensorView x{.N = shape().N, .H = shape().H, .W = shape().W, .C = shape().C, .pitch = shape().C}, dy = x;
    dy.C = dy.pitch = shape().K;
    return std::max(kernels::thin_gather_workspace(x, shape().K), kernels::channel_sum_workspace(dy));
  }

  void forward(DeviceStream& stream, const TensorView& x, const void* w, const void*, const ChannelBias& bias,
               const TensorView& y, void*, const ForwardEpilogue&) override {
    kernels::thin_dot(stream, {x, w, bias.full, y, request_.relu});
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void* w, const void*, const TensorView& dx, void*,
             const DgradEpilogue&) override {
    kernels::thin_spread(stream, {dy, w, nullptr, dx, {.taps_first = true}});
  }
  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    kernels::thin_gather(stream, {dy, x, dw, nullptr, {.taps_first = true}, accumulate, workspace});
    if (db != nullptr) kernels::channel_sum(stream, {dy, db, accumulate, workspace});
  }
  int wgrad_launches(bool db) const override { return db ? 4 : 2; }
};

// Why these kernels do not take a shape, or nothing.
std::string refusal_of(const ConvShape& o, bool in) {
  const auto count = [](int n, const char* what) { return std::to_string(n) + " " + what; };
  if (o.P() < 1 || o.Q() < 1) return "the filter is larger than the padded image";
  if (o.stride != std::array{1, 1} || o.dilation != std::array{1, 1}) return "strided or dilated";
  const int wide = in ? o.K : o.C;
  if (wide % kWideStep != 0 || wide > kernels::kThinWide)
    return count(wide, "channels on the wide side, not a multiple of ") + std::to_string(kWideStep) + " up to " +
           std::to_string(kernels::kThinWide);
  const TensorView map{.N = o.N, .H = o.P(), .W = o.Q(), .C = wide};
  const int taps = in ? o.R * o.S * o.C : o.K;
  if ((taps + 1) * wide > kernels::kThinWeights) return count(taps * wide, "weights, too many to be thin");
  const kernels::ThinWindow window{.R = o.R, .S = o.S};
  if (kernels::ThinStrips(map).patch(map, in ? o.C : o.K, window) > kernels::kThinPatch)
    return "rows of " + count(o.W, "pixels, too long");
  return {};
}

class ThinProvider : public ConvProvider {
 public:
  std::string_view name() const override { return "thin"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    if (std::string reason = half_refusal(device, request); !reason.empty()) return UnsupportedReason{reason};
    const ConvShape& o = request.shape;
    const bool in = o.C <= kThinInputs;
    const bool pointwise = o.R == 1 && o.S == 1 && o.P() == o.H && o.Q() == o.W;
    if (!in && !(pointwise && o.K <= kernels::kThinChannels))
      return UnsupportedReason{"not thin: takes up to " + std::to_string(kThinInputs) +
                               " input channels, or 1x1 to up to " + std::to_string(kernels::kThinChannels)};
    if (std::string reason = refusal_of(o, in); !reason.empty()) return UnsupportedReason{reason};
    if (in) return std::make_unique<ThinInConvolution>(request);
    return std::make_unique<ThinOutConvolution>(request);
  }
};

}  // namespace

ConvProvider& thin_provider() {
  static ThinProvider provider;
  return provider;
}

}  // namespace regolith
