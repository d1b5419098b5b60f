// Kernels of our own for convolutions of few channels on a GPU: they take the norms around them (kernels/conv_tile.h).
#include "engine/conv/builtin.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

constexpr int kWide = 16;  // channels; of fewer, some of a product are zeros

class TileConvolution : public Convolution {
 public:
  TileConvolution(const ConvRequest& request, Execution execution) : Convolution(request) {
    window_ = {shape().R, shape().S, {shape().pad_before[0], shape().pad_before[1]}};
    const size_t partial = kernels::tile_workspace(shape().N, shape().H, shape().C, shape().K, shape().R, shape().S);
    const TensorView x{nullptr, shape().N, shape().H, shape().W, shape().C, shape().C, request.type};
    const TensorView dy{nullptr, shape().N, shape().P(), shape().Q(), shape().K, shape().K, request.type};
    workspace_ = std::max(partial, kernels::channel_sum_workspace(dy));
    const size_t maps = static_cast<size_t>(x.elements() + dy.elements()) * size_of(request.type);
    traffic_ = 2 * partial;
    is_profitable_ = request.needs_wgrad ? execution != Execution::gpu || traffic_ <= 2 * maps
                                         : std::min(shape().C, shape().K) >= kWide;
  }
  std::string_view provider() const override { return "tile"; }
  std::string implementation() const override { return "with norms"; }
  // In training where what the blocks leave of dw is less than the passes over the maps that it and a norm are spared,
  // which only a GPU minds; for the thin ends only there, where norms are around them.
  bool is_profitable() const override { return is_profitable_; }
  size_t wgrad_workspace() const override { return workspace_; }
  bool takes_norms() const override { return true; }

  void forward(DeviceStream& stream, const TensorView& x, const void* w, const void*, const ChannelBias& bias,
               const TensorView& y, void*, const ForwardEpilogue& epilogue) override {
    kernels::tile_forward(stream, {.x = x,
                                   .norm = epilogue.norm,
                                   .w = w,
                                   .bias = bias.full,
                                   .y = y,
                                   .window = window_,
                                   .relu = request_.relu,
                                   .moments = epilogue.moments});
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void* w, const void*, const TensorView& dx, void*,
             const DgradEpilogue&) override {
    backward(stream, {.x = dx, .dy = dy, .dx = dx}, w, nullptr);
  }
  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    backward(stream, {.x = x, .dy = dy, .dw = dw, .accumulate_dw = accumulate}, nullptr, workspace);
    if (db != nullptr) kernels::channel_sum(stream, {dy, db, accumulate, workspace});
  }
  void backward(DeviceStream& stream, const ConvBackward& k, const void* w, void* workspace) override {
    kernels::tile_backward(stream, {.x = k.x,
                                    .norm = k.norm,
                                    .w = w,
                                    .dy = k.dy,
                                    .gradient = k.gradient,
                                    .window = window_,
                                    .dx = k.dx,
                                    .accumulate_dx = k.accumulate_dx,
                                    .sums = k.sums,
                                    .dw = k.dw,
                                    .accumulate_dw = k.accumulate_dw,
                                    .workspace = workspace});
  }
  int wgrad_launches(bool db) const override { return db ? 4 : 2; }
  size_t wgrad_traffic() const override { return traffic_; }

 private:
  kernels::TileWindow window_;
  size_t workspace_ = 0, traffic_ = 0;
  bool is_profitable_ = true;
};

class TileProvider : public ConvProvider {
 public:
  std::string_view name() const override { return "tile"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    const ConvShape& o = request.shape;
    if (device.kind() == DeviceKind::cpu && device.execution() == Execution::fast)
      return UnsupportedReason{"needs a GPU: on a CPU the others are faster"};
    if (request.type == DType::f32) return UnsupportedReason{"takes maps of bf16 and fp16"};
    if (std::string reason = half_refusal(device, request); !reason.empty()) return UnsupportedReason{reason};
    if (o.P() < 1 || o.Q() < 1) return UnsupportedReason{"the filter is larger than the padded image"};
    if (o.stride != std::array{1, 1} || o.dilation != std::array{1, 1}) return UnsupportedReason{"strided or dilated"};
    std::string reason = kernels::tile_refusal(o.C, o.K, o.R, o.S, device.shared_memory());
    if (!reason.empty()) return UnsupportedReason{reason};
    return std::make_unique<TileConvolution>(request, device.execution());
  }
};

}  // namespace

ConvProvider& tile_provider() {
  static TileProvider provider;
  return provider;
}

}  // namespace regolith
