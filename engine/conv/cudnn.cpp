// Convolutions by cuDNN: its graph API, plans kept per device and direction for the whole process. A plan is a part of
// the run, for each rounds in its own way: Device::choices() has their names.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/conv/builtin.h"
#include "engine/conv/cudnn_graph.h"
#include "engine/conv/plan_choice.h"
#include "kernels/bias.h"
#include "kernels/cast.h"
#include "kernels/channel_sum.h"

namespace regolith {
namespace {

using cudnn::ConvGraph;
using cudnn::Direction;
using cudnn::Operands;

constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// A direction of a request, with all that its graph depends on and no more: requests that differ otherwise share it.
struct GraphKey {
  std::pair<int, std::string> device;  // one that is described is not the one of its index
  ConvRequest request;
  Direction direction;
  DType result;
  GraphKey(const Device& on, ConvRequest r, Direction d, DType written)
      : device(on.index(), on.description()), request(std::move(r)), direction(d), result(written) {
    request.needs_forward = request.needs_dgrad = request.needs_wgrad = true;
    request.frozen = false;
    if (d == Direction::forward)
      request.bias |= request.relu;  // ReLU without a bias would be compiled at run time
    else
      request.bias = request.relu = false;
  }
  auto operator<=>(const GraphKey&) const = default;
};

// Null: not asked for.
struct Graphs {
  std::shared_ptr<const ConvGraph> forward, dgrad, wgrad;
  bool fused = true;              // bias and ReLU are in the forward graph
  DType wgrad_type = DType::f32;  // what the wgrad graph writes
};

size_t workspace_of(const std::shared_ptr<const ConvGraph>& graph) {
  return graph == nullptr ? 0 : graph->plans().front().workspace;
}

CUstream_st* native(DeviceStream& stream) { return static_cast<CUstream_st*>(stream.native()); }

class CudnnConvolution : public Convolution {
 public:
  CudnnConvolution(const ConvRequest& request, Graphs graphs) : Convolution(request), graphs_(std::move(graphs)) {
    const ConvShape& s = request.shape;
    bias_at_ = aligned(workspace_of(graphs_.forward));
    const TensorView dy{nullptr, s.N, s.P(), s.Q(), s.K, s.K, request.type};
    result_at_ = aligned(workspace_of(graphs_.wgrad));
    sums_at_ = result_at_ + aligned(static_cast<size_t>(s.weights()) * size_of(graphs_.wgrad_type));
    wgrad_workspace_ = sums_at_ + aligned(kernels::channel_sum_workspace(dy));
  }

  std::string_view provider() const override { return "cudnn"; }
  std::string implementation() const override {
    std::string text;
    const auto add = [&](const char* direction, const std::shared_ptr<const ConvGraph>& graph) {
      if (graph == nullptr) return;
      const cudnn::Plan& plan = graph->plans().front();
      text += (text.empty() ? "" : ", ") + (direction + plan.engine) + (plan.compiled ? " compiled at run time" : "");
    };
    add("", graphs_.forward);
    if (!graphs_.fused) text += " + bias kernel";
    add("dgrad ", graphs_.dgrad);
    add("wgrad ", graphs_.wgrad);
    return text;
  }

  size_t forward_workspace() const override {
    return adds_bias() ? bias_at_ + aligned(shape().K * size_of(request_.type)) : workspace_of(graphs_.forward);
  }
  size_t dgrad_workspace() const override { return workspace_of(graphs_.dgrad); }
  size_t wgrad_workspace() const override { return graphs_.wgrad ? wgrad_workspace_ : 0; }

  void forward(DeviceStream& s, const TensorView& x, const void* w, const void*, const ChannelBias& bias,
               const TensorView& y, void* workspace, const ForwardEpilogue&) override {
    Operands o{x.data, const_cast<void*>(w), y.data, nullptr};
    if (adds_bias()) o.bias = rounded(s, bias, static_cast<char*>(workspace) + bias_at_);
    graphs_.forward->run(native(s), o, workspace);
    if (!graphs_.fused) kernels::bias_forward(s, {y, bias.full, y, request_.relu});
  }
  void dgrad(DeviceStream& s, const TensorView& dy, const void* w, const void*, const TensorView& dx, void* workspace,
             const DgradEpilogue&) override {
    graphs_.dgrad->run(native(s), {dx.data, const_cast<void*>(w), dy.data, nullptr}, workspace);
  }
  void wgrad(DeviceStream& s, const TensorView& x, const TensorView& dy, float* dw, float* db, bool accumulate,
             void* workspace) override {
    const DType type = graphs_.wgrad_type;
    const bool direct = type == DType::f32 && !accumulate;
    void* result = direct ? static_cast<void*>(dw) : static_cast<char*>(workspace) + result_at_;
    graphs_.wgrad->run(native(s), {x.data, result, dy.data, nullptr}, workspace);
    if (!direct) kernels::cast(s, {result, type, dw, DType::f32, shape().weights(), accumulate});
    if (db != nullptr) kernels::channel_sum(s, {dy, db, accumulate, static_cast<char*>(workspace) + sums_at_});
  }
  int wgrad_launches(bool db) const override { return 1 + (graphs_.wgrad_type != DType::f32) + (db ? 2 : 0); }

 private:
  bool adds_bias() const { return graphs_.fused && (request_.bias || request_.relu); }
  // The bias in the request's type, made in `memory` where the caller has none: zeros for ReLU alone.
  void* rounded(DeviceStream& s, const ChannelBias& bias, void* memory) const {
    if (bias.low != nullptr) return const_cast<void*>(bias.low);
    const size_t bytes = shape().K * size_of(request_.type);
    if (bias.full != nullptr)
      kernels::cast(s, {bias.full, DType::f32, memory, request_.type, shape().K});
    else if (const cudaError_t e = cudaMemsetAsync(memory, 0, bytes, native(s)); e != cudaSuccess)
      throw DeviceError(std::string("CUDA: a bias of zeros: ") + cudaGetErrorString(e));
    return memory;
  }

  Graphs graphs_;
  size_t bias_at_;                                // bytes into forward's workspace: after the graph's own
  size_t result_at_, sums_at_, wgrad_workspace_;  // and into wgrad's
};

// Keeps one plan, on buffers of the true sizes; where the device has no room for them, the first of the heuristics.
void settle(Device& device, const ConvRequest& request, ConvGraph& graph, bool by_time) {
  const ConvShape& s = request.shape;
  const size_t element = size_of(request.type);
  size_t workspace_bytes = 0;
  for (const cudnn::Plan& p : graph.plans()) workspace_bytes = std::max(workspace_bytes, p.workspace);
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
  const Operands operands{x.as(), w.as(), y.as(), request.bias ? bias.as() : nullptr};
  graph.settle(native(*stream), operands, workspace.as(), by_time);
  stream->synchronize();
}

class CudnnProvider : public ConvProvider {
 public:
  std::string_view name() const override { return "cudnn"; }
  std::variant<std::unique_ptr<Convolution>, UnsupportedReason> create(Device& device,
                                                                       const ConvRequest& request) override {
    if (device.kind() != DeviceKind::cuda) return UnsupportedReason{"needs a CUDA device"};
    const std::lock_guard lock(mutex_);
    std::optional<UnsupportedReason> refusal;
    const auto expect = [&](const char* what, const ConvGraph& g) {
      if (g.plans().empty() && !refusal)
        refusal = UnsupportedReason{std::string("no engine for ") + what + ": " + g.refusal()};
    };
    Graphs g;
    if (request.needs_forward) {
      g.forward = graph(device, request, Direction::forward, request.type);
      if (g.forward->plans().empty() && request.bias) {
        ConvRequest plain = request;
        plain.bias = plain.relu = g.fused = false;
        g.forward = graph(device, plain, Direction::forward, request.type);
      }
      expect("forward", *g.forward);
    }
    if (request.needs_dgrad) {
      g.dgrad = graph(device, request, Direction::dgrad, request.type);
      expect("dgrad", *g.dgrad);
    }
    if (request.needs_wgrad) {
      g.wgrad = graph(device, request, Direction::wgrad, DType::f32);
      if (g.wgrad->plans().empty() && request.type != DType::f32) {
        g.wgrad_type = request.type;
        g.wgrad = graph(device, request, Direction::wgrad, request.type);
      }
      expect("wgrad", *g.wgrad);
    }
    if (refusal) return *refusal;
    return std::make_unique<CudnnConvolution>(request, std::move(g));
  }

 private:
  // Compiled at the first call; without plans it is kept too, so that it is not compiled again.
  std::shared_ptr<const ConvGraph> graph(Device& device, const ConvRequest& request, Direction direction,
                                         DType result) {
    const GraphKey key(device, request, direction, result);
    const std::string text = cudnn::text_of(key.request, direction, result);
    const auto stored = device.choices().find(text);
    const std::string wanted = stored == device.choices().end() ? "" : stored->second;
    auto& found = cache_[key];
    const auto chosen = [&] { return found->plans().empty() ? "" : found->plans().front().engine; };
    if (found == nullptr || (!wanted.empty() && chosen() != wanted)) found = compile(device, key, text, wanted);
    if (!found->plans().empty()) device.choices()[text] = chosen();
    return found;
  }

  // Its plan is the wanted one, else the heuristics' first that runs; where results need not be those of another
  // process, the one that was found to be the fastest, now or earlier.
  std::shared_ptr<const ConvGraph> compile(Device& device, const GraphKey& key, const std::string& text,
                                           std::string wanted) {
    const bool there = device.description().empty();
    auto& target = targets_[key.device];
    if (!target) target = cudnn::Target::of(device);
    PlanCache* remembered = nullptr;
    if (wanted.empty() && !key.request.deterministic && there) {
      auto versions = device.versions();
      const std::string name = versions["gpu"] + ", cuDNN " + versions["cuDNN"];
      remembered = &remembered_.try_emplace(key.device, PlanCache::user_folder(), name).first->second;
      wanted = remembered->find(text);
    }
    cudnn::MostPlans most;
    // For fp32 out of 16 bits cuDNN has none before 9.26, and then one, compiled at run time, against 40 that write 16.
    if (key.result != key.request.type) most.compiled = 0;
    auto made = std::make_shared<ConvGraph>(target, key.request, key.direction, key.result, most, wanted);
    if (made->plans().empty() || !there) return made;
    const bool known = made->plans().front().engine == wanted;
    settle(device, key.request, *made, remembered != nullptr && !known);
    if (remembered != nullptr && !known) remembered->add(text, made->plans().front().engine);
    return made;
  }

  std::map<std::pair<int, std::string>, PlanCache> remembered_;
  std::map<std::pair<int, std::string>, std::shared_ptr<const cudnn::Target>> targets_;
  std::map<GraphKey, std::shared_ptr<const ConvGraph>> cache_;
  std::mutex mutex_;
};

}  // namespace

ConvProvider& cudnn_provider() {
  static auto* provider = new CudnnProvider;  // never destroyed: at exit the driver may be gone before it
  return *provider;
}

}  // namespace regolith
