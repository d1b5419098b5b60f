// Convolutions by cuDNN: its graph API, plans chosen by timing on the device, kept per device and request for the whole
// process.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/conv/builtin.h"
#include "engine/conv/cudnn_graph.h"
#include "kernels/bias.h"
#include "kernels/cast.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

using cudnn::ConvGraph;
using cudnn::Direction;
using cudnn::Operands;

// How many of the heuristics' plans are timed. Those with an epilogue are compiled at run time, half a second each.
constexpr int kMostPlans = 8, kMostFusedPlans = 3;

constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// The graphs of a request. Shared by all convolutions that ask the same.
struct CompiledGraph {
  std::unique_ptr<ConvGraph> forward, dgrad, wgrad;
  bool fused = true;              // bias and ReLU are in the forward graph
  DType wgrad_type = DType::f32;  // what the wgrad graph writes
};

CUstream_st* native(DeviceStream& stream) { return static_cast<CUstream_st*>(stream.native()); }

class CudnnConvolution : public Convolution {
 public:
  CudnnConvolution(const ConvRequest& request, std::shared_ptr<const CompiledGraph> compiled)
      : request_(request), compiled_(std::move(compiled)) {
    const ConvShape& s = request.shape;
    const size_t graph = compiled_->wgrad ? aligned(compiled_->wgrad->plans().front().workspace) : 0;
    const TensorView dy{nullptr, s.N, s.P(), s.Q(), s.K, s.K, request.type};
    result_at_ = graph;
    sums_at_ = result_at_ + aligned(static_cast<size_t>(s.weights()) * size_of(compiled_->wgrad_type));
    wgrad_workspace_ = sums_at_ + aligned(kernels::channel_sum_workspace(dy));
  }

  std::string_view provider() const override { return "cudnn"; }
  std::string implementation() const override {
    std::string text = "cudnn " + compiled_->forward->plans().front().engine;
    if (!compiled_->fused) text += " + bias kernel";
    if (compiled_->dgrad) text += ", dgrad " + compiled_->dgrad->plans().front().engine;
    if (compiled_->wgrad) text += ", wgrad " + compiled_->wgrad->plans().front().engine;
    return text;
  }

  size_t forward_workspace() const override { return compiled_->forward->plans().front().workspace; }
  size_t dgrad_workspace() const override { return compiled_->dgrad ? compiled_->dgrad->plans().front().workspace : 0; }
  size_t wgrad_workspace() const override { return compiled_->wgrad ? wgrad_workspace_ : 0; }

  void forward(DeviceStream& s, const TensorView& x, const void* w, const void*, const float* bias, const TensorView& y,
               void* workspace, const ForwardEpilogue&) override {
    Operands o{x.data, const_cast<void*>(w), y.data, nullptr};
    if (compiled_->fused && request_.bias) o.bias = const_cast<float*>(bias);
    compiled_->forward->run(native(s), o, workspace);
    if (!compiled_->fused) kernels::bias_forward(s, {y, bias, y, request_.relu});
  }
  void dgrad(DeviceStream& s, const TensorView& dy, const void* w, const void*, const TensorView& dx, void* workspace,
             const DgradEpilogue&) override {
    compiled_->dgrad->run(native(s), {dx.data, const_cast<void*>(w), dy.data, nullptr}, workspace);
  }
  void wgrad(DeviceStream& s, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    const DType type = compiled_->wgrad_type;
    const bool direct = type == DType::f32 && !accumulate;
    void* result = direct ? static_cast<void*>(dw) : static_cast<char*>(workspace) + result_at_;
    compiled_->wgrad->run(native(s), {x.data, result, dy.data, nullptr}, workspace);
    if (!direct) kernels::cast(s, {result, type, dw, DType::f32, request_.shape.weights(), accumulate});
    if (db != nullptr) kernels::channel_sum(s, {dy, db, accumulate, static_cast<char*>(workspace) + sums_at_});
  }
  int wgrad_launches(bool db) const override { return 1 + (compiled_->wgrad_type != DType::f32) + (db ? 2 : 0); }

 private:
  ConvRequest request_;
  std::shared_ptr<const CompiledGraph> compiled_;
  size_t result_at_, sums_at_, wgrad_workspace_;  // bytes into wgrad's workspace: after the graph's own
};

// Times the plans on buffers of the true sizes; where the device has no room for them, the heuristics' order stays.
void tune(Device& device, const ConvRequest& request, CompiledGraph& compiled) {
  const ConvShape& s = request.shape;
  const size_t element = size_of(request.type);
  size_t workspace_bytes = 0;
  for (const ConvGraph* g : {compiled.forward.get(), compiled.dgrad.get(), compiled.wgrad.get()}) {
    if (g == nullptr) continue;
    for (const cudnn::Plan& p : g->plans()) workspace_bytes = std::max(workspace_bytes, p.workspace);
  }
  const size_t x_bytes = static_cast<size_t>(s.N) * s.H * s.W * s.C * element;
  const size_t y_bytes = static_cast<size_t>(s.N) * s.P() * s.Q() * s.K * element;
  const size_t w_bytes = static_cast<size_t>(s.weights()) * sizeof(float);
  if (x_bytes + y_bytes + 2 * w_bytes + workspace_bytes > device.free_bytes() / 2) return;
  DeviceBuffer x(device, x_bytes), y(device, y_bytes), w(device, w_bytes), workspace(device, workspace_bytes);
  DeviceBuffer bias(device, static_cast<size_t>(s.K) * sizeof(float));
  auto stream = device.make_stream();
  for (const DeviceBuffer* b : {&x, &y, &w, &bias}) {
    device.fill(b->as(), 0x3c, b->bytes(), *stream);  // about 0.01 in fp32 and bf16, about 1 in fp16
  }
  const Operands operands{x.as(), w.as(), y.as(), request.bias && compiled.fused ? bias.as() : nullptr};
  for (ConvGraph* g : {compiled.forward.get(), compiled.dgrad.get(), compiled.wgrad.get()}) {
    if (g != nullptr) g->tune(native(*stream), operands, workspace.as());
  }
  stream->synchronize();
}

class CudnnProvider : public ConvProvider {
 public:
  std::string_view name() const override { return "cudnn"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    if (device.kind() != DeviceKind::cuda) return UnsupportedReason{"needs a CUDA device"};
    const std::pair key{device.index(), request};
    const std::lock_guard lock(mutex_);
    auto found = cache_.find(key);
    if (found == cache_.end()) found = cache_.emplace(key, compile(device, request)).first;
    if (const auto* reason = std::get_if<UnsupportedReason>(&found->second)) return *reason;
    return std::make_unique<CudnnConvolution>(request, std::get<std::shared_ptr<const CompiledGraph>>(found->second));
  }

 private:
  using Entry =
      std::variant<std::shared_ptr<const CompiledGraph>, UnsupportedReason>;  // the reason: not compiled again

  Entry compile(Device& device, const ConvRequest& request) {
    auto& target = targets_[device.index()];
    if (!target) target = cudnn::Target::of(device);
    const auto graph = [&](const ConvRequest& r, Direction direction, DType result, int most) {
      return std::make_unique<ConvGraph>(target, r, direction, result, most);
    };
    std::optional<UnsupportedReason> refusal;
    const auto expect = [&](const char* what, const ConvGraph& g) {
      if (g.plans().empty() && !refusal)
        refusal = UnsupportedReason{std::string("no engine for ") + what + ": " + g.refusal()};
    };

    auto c = std::make_shared<CompiledGraph>();
    const bool epilogue = request.bias || request.relu;
    c->forward = graph(request, Direction::forward, request.type, epilogue ? kMostFusedPlans : kMostPlans);
    if (c->forward->plans().empty() && request.bias) {
      ConvRequest plain = request;
      plain.bias = plain.relu = false;
      c->fused = false;
      c->forward = graph(plain, Direction::forward, request.type, kMostPlans);
    }
    expect("forward", *c->forward);
    if (request.needs_dgrad) {
      c->dgrad = graph(request, Direction::dgrad, request.type, kMostPlans);
      expect("dgrad", *c->dgrad);
    }
    if (request.needs_wgrad) {
      c->wgrad = graph(request, Direction::wgrad, DType::f32, kMostPlans);
      if (c->wgrad->plans().empty() && request.type != DType::f32) {  // cuDNN before 9.26: no fp32 from 16 bits
        c->wgrad_type = request.type;
        c->wgrad = graph(request, Direction::wgrad, request.type, kMostPlans);
      }
      expect("wgrad", *c->wgrad);
    }
    if (refusal) return *refusal;
    tune(device, request, *c);
    return c;
  }

  std::map<int, std::shared_ptr<const cudnn::Target>> targets_;
  std::map<std::pair<int, ConvRequest>, Entry> cache_;
  std::mutex mutex_;
};

}  // namespace

ConvProvider& cudnn_provider() {
  static auto* provider = new CudnnProvider;  // never destroyed: at exit the driver may be gone before it
  return *provider;
}

}  // namespace regolith
