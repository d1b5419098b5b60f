#include <omp.h>

#include <array>
#include <memory>

#include "engine/conv/builtin.h"
#include "engine/conv/tiled_pass.h"
#include "engine/conv/tiled_wgrad.h"

namespace regolith {
namespace {

class AmxConvolution : public Convolution {
 public:
  explicit AmxConvolution(const ConvRequest& request) : Convolution(request) {
    const ConvShape& s = request.shape;
    const int threads = omp_get_max_threads();
    const TiledShape there{s.N, s.H, s.W, s.C, s.P(), s.Q(), s.K, s.R, s.S, s.pad_before[0], s.pad_before[1]};
    const TiledShape back{
        s.N, s.P(), s.Q(), s.K, s.H, s.W, s.C, s.R, s.S, s.R - 1 - s.pad_before[0], s.S - 1 - s.pad_before[1]};
    forward_ = std::make_shared<const TiledPass>(there, threads);
    if (request.needs_dgrad) dgrad_ = std::make_shared<const TiledPass>(back, threads);
    if (request.needs_wgrad) wgrad_ = std::make_shared<const TiledWgrad>(s, threads);
  }
  std::string_view provider() const override { return "amx"; }
  std::string implementation() const override { return ""; }
  bool is_profitable() const override { return request_.frozen && request_.shape.C <= 256 && forward_->yield() > 0.7; }

  size_t forward_workspace() const override { return forward_->workspace_bytes(has_forward_epilogue()); }
  size_t dgrad_workspace() const override { return dgrad_ ? dgrad_->workspace_bytes(false) : 0; }
  size_t wgrad_workspace() const override { return wgrad_ ? wgrad_->workspace() : 0; }
  bool has_forward_epilogue() const override { return request_.frozen; }
  bool has_dgrad_epilogue() const override { return true; }

  Prepacked prepacked(WeightUse use) const override {
    const auto& pass = use == WeightUse::forward ? forward_ : dgrad_;
    return pass ? Prepacked{"amx", pass->packed_bytes()} : Prepacked{};
  }
  void prepack_weights(DeviceStream& stream, WeightUse use, const void* w, void* packed) override {
    stream.enqueue("amx_pack", [c = use == WeightUse::forward ? forward_ : dgrad_, use, w, packed] {
      c->pack(static_cast<const bf16*>(w), use == WeightUse::dgrad, packed);
    });
  }
  void forward(DeviceStream& stream, const TensorView& x, const void*, const void* packed, const ChannelBias& bias,
               const TensorView& y, void* workspace, const ForwardEpilogue& e) override {
    check_x(provider(), request_, x, has_forward_epilogue());
    check_y(provider(), request_, y, has_forward_epilogue());
    if (e.residual) check_y(provider(), request_, e.residual, true);
    run(stream, "amx_forward", forward_, {x.as<bf16>(), x.pitch, e.affine, e.input_relu}, packed,
        {.data = y.as<bf16>(),
         .pitch = y.pitch,
         .bias = request_.bias ? bias.full : nullptr,
         .residual = e.residual.as<bf16>(),
         .residual_pitch = e.residual.pitch,
         .relu = request_.relu,
         .sums = e.sums},
        workspace);
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void*, const void* packed, const TensorView& dx,
             void* workspace, const DgradEpilogue& e) override {
    require(dgrad_ != nullptr, "dgrad");
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    run(stream, "amx_dgrad", dgrad_, {dy.as<bf16>(), dy.pitch}, packed,
        {.data = dx.as<bf16>(),
         .pitch = dx.pitch,
         .bias = e.bias,
         .residual = e.accumulate ? dx.as<bf16>() : nullptr,
         .residual_pitch = dx.pitch},
        workspace);
  }
  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    require(wgrad_ != nullptr, "wgrad");
    check_x(provider(), request_, x);
    check_y(provider(), request_, dy);
    stream.enqueue("amx_wgrad", [c = wgrad_, x = x.data, dy = dy.data, dw, db, accumulate, workspace] {
      c->run(x, dy, dw, db, accumulate, workspace);
    });
  }

 private:
  static void run(DeviceStream& stream, const char* name, const std::shared_ptr<const TiledPass>& pass,
                  const Source<bf16>& in, const void* packed, const Target<bf16>& out, void* workspace) {
    stream.enqueue(name, [=] { pass->run(in, packed, out, workspace); });
  }

  std::shared_ptr<const TiledPass> forward_, dgrad_;
  std::shared_ptr<const TiledWgrad> wgrad_;
};

struct AmxProvider : ConvProvider {
  std::string_view name() const override { return "amx"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    const ConvShape& s = request.shape;
    constexpr std::array one{1, 1};
    if (device.kind() != DeviceKind::cpu) return UnsupportedReason{"runs on the CPU only"};
    if (request.type != DType::bf16) return UnsupportedReason{"takes bf16, not " + std::string(name_of(request.type))};
    if (!TiledPass::available()) return UnsupportedReason{"needs a processor with AMX-BF16, and a build on such a one"};
    if (s.stride != one || s.dilation != one) return UnsupportedReason{"takes stride 1 undilated"};
    if (s.C % 16 != 0) return UnsupportedReason{"takes input channels in multiples of 16"};
    if (std::max(s.pad_before[0], s.pad_after[0]) >= s.R || std::max(s.pad_before[1], s.pad_after[1]) >= s.S)
      return UnsupportedReason{"takes paddings smaller than the window"};
    if (s.P() < 1 || s.Q() < 1) return UnsupportedReason{"the output would be empty"};
    return std::make_unique<AmxConvolution>(request);
  }
};

}  // namespace

ConvProvider& amx_provider() {
  static AmxProvider provider;
  return provider;
}

}  // namespace regolith
