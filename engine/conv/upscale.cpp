// Transposed convolutions of inference whose kernel is their stride, on the CPU in fp32: each input pixel gives R*S
// pixels of its own, so that all is one product of matrices whose rows are written to where they belong. oneDNN runs
// these at half of the machine's rate.
#include <omp.h>

#include <array>
#include <memory>

#include "engine/conv/builtin.h"
#include "engine/conv/winograd_products.h"

namespace regolith {
namespace winograd {
namespace {

class Upscale {
 public:
  explicit Upscale(const ConvShape& s) : s_(s), threads_(omp_get_max_threads()) {}
  size_t packed_floats() const { return static_cast<size_t>(s_.weights()); }

  // packed (R*S, panels of C, K, panel) of w (K,R,S,C)
  void pack(const float* w, float* packed) const {
    const int taps = s_.R * s_.S;
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int k = 0; k < s_.K; ++k) {
      for (int tap = 0; tap < taps; ++tap) {
        for (int c = 0; c < s_.C; c += kL) {
          const int panel = c / kPanel;
          float* const to = packed + (static_cast<size_t>(tap) * s_.C + panel * kPanel) * s_.K;
          store(to + k * width_of_panel(s_.C, panel) + c % kPanel,
                load<V>(w + (static_cast<size_t>(k) * taps + tap) * s_.C + c));
        }
      }
    }
  }

  // dx (N,H,W,C) = or += the weights' panels by dy (N,P,Q,K), + bias (C) or null
  void run(const float* dy, const float* packed, const DgradEpilogue& e, float* dx) const {
    constexpr int block = 8 * kRows;  // pixels of dy that read a panel of weights together
    const int pixels = s_.N * s_.P() * s_.Q();
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int first = 0; first < pixels; first += block) {
      const int end = std::min(first + block, pixels);
      for (int tap = 0; tap < s_.R * s_.S; ++tap) {
        for (int panel = 0; panel < panels_of(s_.C); ++panel) {
          const int c = panel * kPanel, width = width_of_panel(s_.C, panel);
          const float* const u = packed + (static_cast<size_t>(tap) * s_.C + c) * s_.K;
          for (int pixel = first; pixel < end; pixel += kRows) {
            const int count = std::min(kRows, end - pixel);
            width == kPanel ? multiply<2>(dy, u, e, pixel, count, tap, c, dx)
                            : multiply<1>(dy, u, e, pixel, count, tap, c, dx);
          }
        }
      }
    }
  }

 private:
  template <int Vecs>
  void multiply(const float* dy, const float* u, const DgradEpilogue& e, int pixel, int count, int tap, int c,
                float* dx) const {
    float* out[kRows];
    ptrdiff_t in[kRows];
    for (int i = 0; i < kRows; ++i) {  // those past the last are the last again, and are not written
      const int at = pixel + std::min(i, count - 1), line = at / s_.Q(), q = at % s_.Q();
      in[i] = static_cast<ptrdiff_t>(at) * s_.K;
      const ptrdiff_t row = static_cast<ptrdiff_t>(line) * s_.R + tap / s_.S;
      out[i] = dx + (row * s_.W + q * s_.S + tap % s_.S) * s_.C + c;
      __builtin_prefetch(out[i], 1);
    }
    RegisterTile<Factor<float>, kRows, Vecs> tile([&](int i, int j) {
      if (e.accumulate) return load<V>(out[i] + j * kL);
      return e.bias != nullptr ? load<V>(e.bias + c + j * kL) : V(0.0f);
    });
    tile.add(
        dy, [&](int i) { return in[i]; }, 1, u, Vecs * kL, s_.K);
    tile.each([&](int i, const V(&sums)[Vecs]) {
      for (int j = 0; j < Vecs && i < count; ++j) store(out[i] + j * kL, sums[j]);
    });
  }

  ConvShape s_;
  int threads_;
};

}  // namespace
}  // namespace winograd

namespace {

class UpscaleConvolution : public Convolution {
 public:
  explicit UpscaleConvolution(const ConvRequest& request)
      : Convolution(request), upscale_(std::make_shared<const winograd::Upscale>(request.shape)) {}
  std::string_view provider() const override { return "upscale"; }
  std::string implementation() const override { return "product of matrices"; }
  bool is_profitable() const override {
#if defined(__AVX2__) && defined(__FMA__)
    return true;
#else
    return false;  // a build for any processor; oneDNN chooses its code as it runs
#endif
  }
  bool has_dgrad_epilogue() const override { return true; }

  Prepacked prepacked(WeightUse use) const override {
    if (use == WeightUse::forward) return {};
    return {"upscale", upscale_->packed_floats() * sizeof(float)};
  }
  void prepack_weights(DeviceStream& stream, WeightUse, const void* w, void* packed) override {
    stream.enqueue("upscale_pack", [c = upscale_, w = static_cast<const float*>(w), to = static_cast<float*>(packed)] {
      c->pack(w, to);
    });
  }
  void dgrad(DeviceStream& stream, const TensorView& dy, const void*, const void* packed, const TensorView& dx, void*,
             const DgradEpilogue& epilogue) override {
    check_x(provider(), request_, dx);
    check_y(provider(), request_, dy);
    stream.enqueue("upscale", [c = upscale_, dy = dy.as<float>(), u = static_cast<const float*>(packed), epilogue,
                               dx = dx.as<float>()] { c->run(dy, u, epilogue, dx); });
  }

 private:
  std::shared_ptr<const winograd::Upscale> upscale_;
};

struct UpscaleProvider : ConvProvider {
  std::string_view name() const override { return "upscale"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    const ConvShape& s = request.shape;
    if (device.kind() != DeviceKind::cpu) return UnsupportedReason{"runs on the CPU only"};
    if (!request.frozen || !request.needs_dgrad || request.needs_wgrad || request.type != DType::f32)
      return UnsupportedReason{"takes transposed convolutions of fp32 inference"};
    constexpr std::array none{0, 0}, one{1, 1};
    if (s.stride != std::array{s.R, s.S} || s.pad_before != none || s.pad_after != none || s.dilation != one ||
        s.H % s.R != 0 || s.W % s.S != 0)
      return UnsupportedReason{"takes kernels that are their stride, without padding"};
    if (s.C % winograd::kL != 0 || s.P() < 1 || s.Q() < 1)
      return UnsupportedReason{"takes input channels in multiples of " + std::to_string(winograd::kL)};
    return std::make_unique<UpscaleConvolution>(request);
  }
};

}  // namespace

ConvProvider& upscale_provider() {
  static UpscaleProvider provider;
  return provider;
}

}  // namespace regolith
