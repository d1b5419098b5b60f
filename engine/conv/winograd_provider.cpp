#include <omp.h>

#include <algorithm>
#include <array>
#include <memory>

#include "engine/base/error.h"
#include "engine/conv/builtin.h"
#include "engine/conv/winograd.h"
#include "kernels/core/vec.h"

namespace regolith {
namespace {

using winograd::Epilogue;
using winograd::Winograd;
constexpr int kL = kernels::fast::kLanes<float>;

template <class T>
class WinogradConvolution : public Convolution {
 public:
  explicit WinogradConvolution(const ConvRequest& request)
      : request_(request), winograd_(std::make_shared<const Winograd<T>>(request.shape, omp_get_max_threads())) {}
  std::string_view provider() const override { return "winograd"; }
  std::string implementation() const override { return Winograd<T>::M == 2 ? "F(2x2, 3x3)" : "F(4x4, 3x3)"; }
  size_t forward_workspace() const override { return winograd_->forward_workspace(); }
  size_t dgrad_workspace() const override { return winograd_->dgrad_workspace(); }
  size_t wgrad_workspace() const override { return winograd_->wgrad_workspace(); }
  bool has_dgrad_epilogue() const override { return true; }
  bool is_profitable() const override {
#if !defined(__AVX2__) || !defined(__FMA__)
    return false;  // a build for any processor; oneDNN chooses its code as it runs
#else
    // Where bf16 is multiplied much faster than this build multiplies fp32.
    if (request_.type == DType::bf16 && __builtin_cpu_supports("amx-bf16")) return false;
    if (request_.type == DType::bf16 && kL < 16 && __builtin_cpu_supports("avx512bf16")) return false;
    // The transformed weights take 1.8 times the bytes of fp32 weights, 8 times those of bf16. With fewer tiles,
    // reading them costs more time than the saved multiplications.
    return winograd_->tiles() >= 32;
#endif
  }

  Prepacked prepacked(WeightUse use) const override {
    if (use == WeightUse::dgrad && !request_.needs_dgrad) return {};
    return {"winograd", winograd_->prepacked_bytes()};
  }
  void prepack_weights(DeviceStream& stream, WeightUse use, const void* w, void* packed) override {
    stream.enqueue("winograd_pack",
                   [c = winograd_, use, w = static_cast<const T*>(w), to = static_cast<float*>(packed)] {
                     use == WeightUse::forward ? c->pack_forward(w, to) : c->pack_dgrad(w, to);
                   });
  }
  void forward(DeviceStream& stream, const TensorView& x, const void*, const void* packed, const float* bias,
               const TensorView& y, void* workspace, const ForwardEpilogue&) override {
    check_x(provider(), request_, x);
    check_y(provider(), request_, y);
    const Epilogue e{.bias = request_.bias ? bias : nullptr, .relu = request_.relu};
    stream.enqueue("winograd_forward",
                   [c = winograd_, x = x.as<T>(), u = static_cast<const float*>(packed), e, y = y.as<T>(),
                    ws = static_cast<float*>(workspace)] { c->forward(x, u, e, y, ws); });
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void*, const void* packed, const TensorView& dx,
             void* workspace, const DgradEpilogue& epilogue) override {
    if (!request_.needs_dgrad)
      throw KernelError("convolution " + to_string(request_.shape) + " (winograd): its request asked for no dgrad");
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    const Epilogue e{.bias = epilogue.bias, .accumulate = epilogue.accumulate};
    stream.enqueue("winograd_dgrad",
                   [c = winograd_, dy = dy.as<T>(), u = static_cast<const float*>(packed), e, dx = dx.as<T>(),
                    ws = static_cast<float*>(workspace)] { c->dgrad(dy, u, e, dx, ws); });
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
  ConvRequest request_;
  std::shared_ptr<const Winograd<T>> winograd_;
};

struct WinogradProvider : ConvProvider {
  std::string_view name() const override { return "winograd"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    const ConvShape& s = request.shape;
    if (device.kind() != DeviceKind::cpu) return UnsupportedReason{"runs on the CPU only"};
    constexpr std::array one{1, 1};
    if (s.R != 3 || s.S != 3 || s.stride != one || s.dilation != one)
      return UnsupportedReason{"takes 3x3 of stride 1 undilated"};
    if (s.C % kL != 0 || s.K % kL != 0)
      return UnsupportedReason{"takes channels in multiples of " + std::to_string(kL)};
    if (std::max(s.pad_before[0], s.pad_before[1]) > 2) return UnsupportedReason{"takes paddings of at most 2"};
    if (s.P() < 1 || s.Q() < 1) return UnsupportedReason{"the output would be empty"};
    switch (request.type) {
      case DType::f32:
        return std::make_unique<WinogradConvolution<float>>(request);
      case DType::bf16:
        return std::make_unique<WinogradConvolution<bf16>>(request);
      default:
        return UnsupportedReason{"takes fp32 and bf16, not " + std::string(name_of(request.type))};
    }
  }
};

}  // namespace

ConvProvider& winograd_provider() {
  static WinogradProvider provider;
  return provider;
}

}  // namespace regolith
