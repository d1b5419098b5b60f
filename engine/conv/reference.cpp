// Convolution by plain loops: takes every request on every device, and is slow.
#include "engine/conv/builtin.h"
#include "kernels/channel_sum.h"
#include "kernels/conv_direct.h"

namespace regolith {
namespace {

class ReferenceConvolution : public Convolution {
 public:
  explicit ReferenceConvolution(const ConvRequest& request) : Convolution(request) {
    const ConvShape& o = request.shape;
    window_ = {
        o.R, o.S, {o.stride[0], o.stride[1]}, {o.dilation[0], o.dilation[1]}, {o.pad_before[0], o.pad_before[1]}};
    wgrad_workspace_ = kernels::channel_sum_workspace({.N = o.N, .H = o.P(), .W = o.Q(), .C = o.K, .pitch = o.K});
  }
  std::string_view provider() const override { return "reference"; }
  std::string implementation() const override { return "plain loops"; }
  size_t wgrad_workspace() const override { return wgrad_workspace_; }

  void forward(DeviceStream& stream, const TensorView& x, const void* w, const void*, const ChannelBias& bias,
               const TensorView& y, void*, const ForwardEpilogue&) override {
    kernels::conv_direct_forward(stream, {x, w, bias.full, y, window_, request_.relu});
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void* w, const void*, const TensorView& dx, void*,
             const DgradEpilogue&) override {
    kernels::conv_direct_dgrad(stream, {dy, w, dx, window_});
  }
  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    kernels::conv_direct_wgrad(stream, {x, dy, dw, window_, accumulate});
    if (db != nullptr) kernels::channel_sum(stream, {dy, db, accumulate, workspace});
  }
  int wgrad_launches(bool db) const override { return db ? 3 : 1; }

 private:
  kernels::ConvWindow window_;
  size_t wgrad_workspace_;
};

class ReferenceProvider : public ConvProvider {
 public:
  std::string_view name() const override { return "reference"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    if (std::string reason = half_refusal(device, request); !reason.empty()) return UnsupportedReason{reason};
    if (request.shape.P() < 1 || request.shape.Q() < 1)
      return UnsupportedReason{"the filter is larger than the padded image"};
    return std::make_unique<ReferenceConvolution>(request);
  }
};

}  // namespace

ConvProvider& reference_provider() {
  static ReferenceProvider provider;
  return provider;
}

}  // namespace regolith
