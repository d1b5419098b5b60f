#include <omp.h>

#include <algorithm>
#include <array>
#include <memory>

#include "engine/conv/builtin.h"
#include "engine/conv/pairs.h"
#include "engine/conv/winograd.h"
#include "kernels/core/vec.h"

namespace regolith {
namespace {

using winograd::Pass;
using winograd::Source;
using winograd::Target;
using winograd::Winograd;
constexpr int kL = kernels::fast::kLanes<float>;

// Whether this build and processor multiply fp32 fast enough to be ahead of oneDNN, which chooses its code as it runs.
bool multiplies_well([[maybe_unused]] const ConvRequest& request) {
#if !defined(__AVX2__) || !defined(__FMA__)
  return false;
#else
  if (request.type != DType::bf16) return true;
  // Where bf16 is multiplied much faster than this build multiplies fp32. 2x2 saves less than pairs do.
  if (__builtin_cpu_supports("amx-bf16")) return false;
  return !multiplies_pairs_fast() || (kL == 16 && request.shape.R == 3);
#endif
}

// Odd ends: half of a tile may be thrown away.
bool multiplies_less(const ConvShape& s, int tiles, int planes) {
  return 1.25 * tiles * planes < static_cast<double>(s.macs()) / (s.C * s.K);
}

std::string algorithm(int M, int R) {
  const auto square = [](int n) { return std::to_string(n) + "x" + std::to_string(n); };
  return "F(" + square(M) + ", " + square(R) + ")";
}

// All directions.
template <class T, int R>
class WinogradConvolution : public Convolution {
 public:
  explicit WinogradConvolution(const ConvRequest& request)
      : Convolution(request), winograd_(std::make_shared<const Winograd<T, R>>(request.shape, omp_get_max_threads())) {}
  std::string_view provider() const override { return "winograd"; }
  std::string implementation() const override { return algorithm(Winograd<T, R>::M, R); }
  size_t forward_workspace() const override { return winograd_->forward().workspace_floats(false) * sizeof(float); }
  size_t dgrad_workspace() const override { return winograd_->dgrad().workspace_floats(false) * sizeof(float); }
  size_t wgrad_workspace() const override { return winograd_->wgrad_workspace(); }
  bool has_dgrad_epilogue() const override { return true; }
  bool is_profitable() const override {
    // The transformed weights take 4 times the bytes of fp32 weights, 8 times those of bf16. With fewer tiles, reading
    // them costs more time than the saved multiplications.
    return multiplies_well(request_) && winograd_->forward().tiles() >= 32 &&
           multiplies_less(shape(), winograd_->forward().tiles(), Winograd<T, R>::kPlanes);
  }

  Prepacked prepacked(WeightUse use) const override {
    if (use == WeightUse::dgrad && !request_.needs_dgrad) return {};
    return {"winograd " + implementation(), winograd_->forward().packed_floats() * sizeof(float)};
  }
  void prepack_weights(DeviceStream& stream, WeightUse use, const void* w, void* packed) override {
    stream.enqueue("winograd_pack",
                   [c = winograd_, use, w = static_cast<const T*>(w), to = static_cast<float*>(packed)] {
                     use == WeightUse::forward ? c->forward().pack(w, false, to) : c->dgrad().pack(w, true, to);
                   });
  }
  void forward(DeviceStream& stream, const TensorView& x, const void*, const void* packed, const ChannelBias& bias,
               const TensorView& y, void* workspace, const ForwardEpilogue&) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, y);
    const Source<T> in{x.as<T>(), x.pitch};
    const Target<T> out{
        .data = y.as<T>(), .pitch = y.pitch, .bias = request_.bias ? bias.full : nullptr, .relu = request_.relu};
    stream.enqueue("winograd_forward", [c = winograd_, in, u = static_cast<const float*>(packed), out,
                                        ws = static_cast<float*>(workspace)] { c->forward().run(in, u, out, ws); });
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void*, const void* packed, const TensorView& dx,
             void* workspace, const DgradEpilogue& epilogue) override {
    require(request_.needs_dgrad, "dgrad");
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    const Source<T> in{dy.as<T>(), dy.pitch};
    const Target<T> out{.data = dx.as<T>(),
                        .pitch = dx.pitch,
                        .bias = epilogue.bias,
                        .residual = epilogue.accumulate ? dx.as<T>() : nullptr,
                        .residual_pitch = dx.pitch};
    stream.enqueue("winograd_dgrad", [c = winograd_, in, u = static_cast<const float*>(packed), out,
                                      ws = static_cast<float*>(workspace)] { c->dgrad().run(in, u, out, ws); });
  }
  void wgrad(DeviceStream& stream, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, dy);
    stream.enqueue("winograd_wgrad",
                   [c = winograd_, x = x.as<T>(), dy = dy.as<T>(), dw, db, accumulate,
                    ws = static_cast<float*>(workspace)] { c->wgrad(x, dy, dw, db, accumulate, ws); });
  }

 private:
  std::shared_ptr<const Winograd<T, R>> winograd_;
};

// Forward alone, with an epilogue.
template <class T, int M, int R>
class WinogradInference : public Convolution {
 public:
  explicit WinogradInference(const ConvRequest& request) : Convolution(request) {
    const ConvShape& s = request.shape;
    const winograd::PassShape shape{s.N, s.H, s.W, s.C, s.P(), s.Q(), s.K, s.pad_before[0], s.pad_before[1]};
    pass_ = std::make_shared<const Pass<T, M, R>>(shape, omp_get_max_threads());
  }
  std::string_view provider() const override { return "winograd"; }
  std::string implementation() const override { return algorithm(M, R); }
  size_t forward_workspace() const override { return pass_->workspace_floats(true) * sizeof(float); }
  bool has_forward_epilogue() const override { return true; }
  bool is_profitable() const override {
    // Few tiles: reading the transformed weights takes the time.
    return multiplies_well(request_) && pass_->tiles() >= 16 &&
           multiplies_less(shape(), pass_->tiles(), Pass<T, M, R>::kPlanes);
  }

  Prepacked prepacked(WeightUse use) const override {
    if (use == WeightUse::dgrad) return {};
    return {"winograd " + implementation(), pass_->packed_floats() * sizeof(float)};
  }
  void prepack_weights(DeviceStream& stream, WeightUse, const void* w, void* packed) override {
    stream.enqueue("winograd_pack", [c = pass_, w = static_cast<const T*>(w), to = static_cast<float*>(packed)] {
      c->pack(w, false, to);
    });
  }
  void forward(DeviceStream& stream, const TensorView& x, const void*, const void* packed, const ChannelBias& bias,
               const TensorView& y, void* workspace, const ForwardEpilogue& e) override {
    check_x(provider(), request_, x, true);
    check_y(provider(), request_, y, true);
    if (e.residual) check_y(provider(), request_, e.residual, true);
    const Source<T> in{x.as<T>(), x.pitch, e.affine, e.input_relu};
    const Target<T> out{.data = y.as<T>(),
                        .pitch = y.pitch,
                        .bias = request_.bias ? bias.full : nullptr,
                        .residual = e.residual.as<T>(),
                        .residual_pitch = e.residual.pitch,
                        .relu = request_.relu,
                        .sums = e.sums};
    stream.enqueue("winograd_forward", [c = pass_, in, u = static_cast<const float*>(packed), out,
                                        ws = static_cast<float*>(workspace)] { c->run(in, u, out, ws); });
  }

 private:
  std::shared_ptr<const Pass<T, M, R>> pass_;
};

// Larger tiles multiply less, but their transformed weights are larger, and more of them lies outside small maps.
std::unique_ptr<Convolution> inference_of(const ConvRequest& request) {
  const bool two = request.shape.R == 2;
  if (request.type == DType::bf16 && two) return std::make_unique<WinogradInference<bf16, 5, 2>>(request);
  if (request.type == DType::bf16) return std::make_unique<WinogradInference<bf16, 4, 3>>(request);
  if (two) return std::make_unique<WinogradInference<float, 5, 2>>(request);
  auto large = std::make_unique<WinogradInference<float, 4, 3>>(request);
  if (large->is_profitable()) return large;
  return std::make_unique<WinogradInference<float, 2, 3>>(request);
}

template <class T>
std::unique_ptr<Convolution> training_of(const ConvRequest& request) {
  if (request.shape.R == 2) return std::make_unique<WinogradConvolution<T, 2>>(request);
  return std::make_unique<WinogradConvolution<T, 3>>(request);
}

struct WinogradProvider : ConvProvider {
  std::string_view name() const override { return "winograd"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    const ConvShape& s = request.shape;
    if (device.kind() != DeviceKind::cpu) return UnsupportedReason{"runs on the CPU only"};
    constexpr std::array one{1, 1};
    if ((s.R != 3 && s.R != 2) || s.S != s.R || s.stride != one || s.dilation != one)
      return UnsupportedReason{"takes 3x3 and 2x2 of stride 1 undilated"};
    if (s.C % kL != 0 || s.K % kL != 0)
      return UnsupportedReason{"takes channels in multiples of " + std::to_string(kL)};
    if (std::max(s.pad_before[0], s.pad_before[1]) >= s.R)
      return UnsupportedReason{"takes paddings smaller than the window"};
    if (s.P() < 1 || s.Q() < 1) return UnsupportedReason{"the output would be empty"};
    if (request.type != DType::f32 && request.type != DType::bf16)
      return UnsupportedReason{"takes fp32 and bf16, not " + std::string(name_of(request.type))};
    if (request.frozen && !request.needs_dgrad && !request.needs_wgrad) return inference_of(request);
    return request.type == DType::f32 ? training_of<float>(request) : training_of<bf16>(request);
  }
};

}  // namespace

ConvProvider& winograd_provider() {
  static WinogradProvider provider;
  return provider;
}

}  // namespace regolith
