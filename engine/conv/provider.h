// Providers of convolution behind one interface, and the choice among them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/config/compute_options.h"
#include "engine/tensor/device.h"
#include "kernels/conv_tile.h"
#include "kernels/core/tensor_view.h"

namespace regolith {

// A two-dimensional cross-correlation in NHWC: y[n,p,q,k] = sum_{r,s,c} w[k,r,s,c] * x[n, p*stride - pad + r*dilation,
// ...]. Maps: x (N,H,W,C), y (N,P,Q,K); weights (K,R,S,C). Paddings before and after may differ; they are zeros.
struct ConvShape {
  int N, H, W, C;
  int K, R, S;
  std::array<int, 2> stride{1, 1}, dilation{1, 1};
  std::array<int, 2> pad_before{0, 0}, pad_after{0, 0};  // (top, left), (bottom, right)

  int P() const { return (H + pad_before[0] + pad_after[0] - (R - 1) * dilation[0] - 1) / stride[0] + 1; }
  int Q() const { return (W + pad_before[1] + pad_after[1] - (S - 1) * dilation[1] - 1) / stride[1] + 1; }
  int64_t weights() const { return static_cast<int64_t>(K) * R * S * C; }
  // Multiplications of one direction, padding counted.
  int64_t macs() const { return static_cast<int64_t>(N) * P() * Q() * weights(); }
  auto operator<=>(const ConvShape&) const = default;
};

// "2x8x8x3 -> 16, 3x3 stride 1 dilation 2 pad 2,2,2,2"
std::string to_string(const ConvShape& shape);

struct ConvRequest {
  ConvShape shape;
  DType type = DType::f32;  // of x, y, dy, dx and of the weights that forward and dgrad read
  bool tf32 = false;        // fp32 products may round their factors to tf32
  bool bias = false;        // forward adds a bias per output channel ...
  bool relu = false;        // ... and applies ReLU, in its epilogue
  bool needs_forward = true;
  bool needs_dgrad = true;
  bool needs_wgrad = true;
  bool frozen =
      false;  // of the network: it is asked for no gradients, and shares no copies of weights with those that are
  bool deterministic = true;
  size_t workspace_limit = kWorkspaceLimit;              // bytes that an engine of cuDNN may ask for
  auto operator<=>(const ConvRequest&) const = default;  // a key of caches of what was compiled
};

// A request for the shape with the type, determinism and limits of the network. Bias, ReLU and gradients are the
// caller's to add; the weight gradient is asked for in training.
ConvRequest conv_request(const ConvShape& shape, const ComputeOptions& options);

// A bias per output channel, K values: in fp32, and rounded to the request's type.
struct ChannelBias {
  const float* full = nullptr;
  const void* low = nullptr;
  ChannelBias(const float* in_fp32 = nullptr, const void* rounded = nullptr) : full(in_fp32), low(rounded) {}
};

// What dgrad does in its epilogue, one of: add to what stands in dx; add a bias per input channel (fp32, C values).
struct DgradEpilogue {
  bool accumulate = false;
  const float* bias = nullptr;
};

// What forward does beside the bias and ReLU of the request.
struct ForwardEpilogue {
  TensorView residual{};  // (N,P,Q,K), perhaps a slice: added before ReLU
  float* sums = nullptr;  // (N,2,K): also written, the sums over P and Q of y, and of its squares
  // (N,2,C), scale and shift as a norm leaves them: x is read as x * scale + shift (then ReLU); the padding stays zero.
  const float* affine = nullptr;
  bool input_relu = false;
  // Where takes_norms(), in training: the norm that left its value to this reader, and where the moments of y go.
  kernels::NormOnLoad norm{};
  float* moments = nullptr;
};

// Both gradients at once, with the norms around the convolution: kernels/conv_tile.h. Null: dx or dw is not wanted.
struct ConvBackward {
  TensorView x{};
  kernels::NormOnLoad norm{};
  TensorView dy{};
  kernels::GradientOnLoad gradient{};
  TensorView dx{};
  bool accumulate_dx = false;
  float* sums = nullptr;
  float* dw = nullptr;
  bool accumulate_dw = false;
};

enum class WeightUse { forward, dgrad };

// One convolution, compiled for its shape. Not thread-safe; used from the thread that owns the stream.
// Maps are whole buffers (pitch == C) on 64-byte lines. Workspaces are device memory on 256-byte lines, of at least
// the size that was asked for. Everything is enqueued on the stream; nothing waits.
class Convolution {
 public:
  explicit Convolution(const ConvRequest& request) : request_(request) {}
  virtual ~Convolution() = default;
  virtual std::string_view provider() const = 0;
  // What runs: "brgconv:avx512_core_bf16", "cudnn engine 42", for --explain.
  virtual std::string implementation() const = 0;

  // Whether it is expected to be faster than the convolutions of the providers after its own. pick_convolution() asks
  // where the user names no provider.
  virtual bool is_profitable() const { return true; }

  virtual size_t forward_workspace() const { return 0; }
  virtual size_t dgrad_workspace() const { return 0; }
  virtual size_t wgrad_workspace() const { return 0; }

  // The provider's own copy of the weights, in the layout that it reads in this direction. Copies of one layout are
  // equal byte for byte, whatever the batch they were compiled for.
  virtual Prepacked prepacked(WeightUse) const { return {}; }
  // Writes that copy from `w` (K,R,S,C) of the request's type. Called where it has bytes, whenever the weights have
  // changed.
  virtual void prepack_weights(DeviceStream&, WeightUse, const void* /*w*/, void* /*packed*/) {}

  // In the following `w` is the (K,R,S,C) weights of the request's type, `packed` the copy of the call's direction.
  // y = x * w (+ bias) (ReLU). bias: null where the request has none; cuDNN reads `low`. An epilogue only where
  // has_forward_epilogue() says that there is one; there x and y may be slices, too. A direction that the request did
  // not ask for throws KernelError.
  virtual void forward(DeviceStream&, const TensorView& x, const void* w, const void* packed, const ChannelBias& bias,
                       const TensorView& y, void* workspace, const ForwardEpilogue& epilogue = {});
  virtual bool has_forward_epilogue() const { return false; }
  // dx = dy * w^T, written. An epilogue only where has_dgrad_epilogue() says that there is one.
  virtual void dgrad(DeviceStream&, const TensorView& dy, const void* w, const void* packed, const TensorView& dx,
                     void* workspace, const DgradEpilogue& epilogue = {});
  virtual bool has_dgrad_epilogue() const { return false; }
  // dw = x^T * dy in fp32 (K,R,S,C); `accumulate` adds to what stands there. db likewise, or null: K fp32 sums of dy.
  virtual void wgrad(DeviceStream&, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
                     void* workspace);
  // Whether forward takes the norm of x and gives the moments of y, and backward() is there. Then all maps may be
  // slices.
  virtual bool takes_norms() const { return false; }
  virtual void backward(DeviceStream&, const ConvBackward&, const void* /*w*/, void* /*workspace*/) {}
  // Kernels of wgrad, or of backward(), for report/traffic.h. More with db than without: dy is read once more. And the
  // bytes of its workspace that it writes and reads.
  virtual int wgrad_launches(bool /*db*/) const { return 1; }
  virtual size_t wgrad_traffic() const { return 0; }

 protected:
  void require(bool asked_for, const char* what) const;  // else throws KernelError
  const ConvShape& shape() const { return request_.shape; }

  const ConvRequest request_;
};

// Why a provider does not take a request: "no bf16 on this CPU (needs AVX512)".
struct UnsupportedReason {
  std::string reason;
};

class ConvProvider {
 public:
  virtual ~ConvProvider() = default;
  virtual std::string_view name() const = 0;  // cudnn, onednn, amx, winograd, upscale, tile, thin, reference
  virtual std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                               const ConvRequest& request) = 0;
};

// "auto" tries the providers in the order of conv_providers() and takes the first that supports the request and is
// profitable: amx (CPU), tile (CUDA), `thin` for the thin ends, winograd, upscale, onednn (CPU) or cudnn (CUDA).
// `reference` is used where it is named, and beside tile on the simulated device. Throws GraphError, with every
// provider's reason, where none supports the request.
std::unique_ptr<Convolution> pick_convolution(Device& device, const ConvRequest& request, const ConvChoice& choice);

// The providers of this build, in the order in which "auto" asks them.
std::vector<ConvProvider*> conv_providers();

}  // namespace regolith
