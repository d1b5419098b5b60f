#include "engine/conv/cudnn_graph.h"

#include <cuda_runtime.h>
#include <cudnn_frontend.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "engine/base/error.h"
#include "engine/conv/plan_choice.h"

namespace regolith::cudnn {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

// --- Target ----------------------------------------------------------------------------------------------------------

struct Target::Impl {
  cudnnHandle_t handle = nullptr;         // of a device that is there
  mutable cudaStream_t stream = nullptr;  // that the handle works on
  mutable std::mutex mutex;               // of the handle: its threads are those of its device's networks
  std::shared_ptr<const fe::DeviceProperties> properties;  // of one that is not
  ~Impl() {
    if (handle != nullptr) cudnnDestroy(handle);
  }
};

Target::Target(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Target::~Target() = default;

std::shared_ptr<const Target> Target::of(const Device& device) {
  if (const std::string json = device.description(); !json.empty()) return described(json);
  auto impl = std::make_unique<Impl>();
  if (cudaSetDevice(device.index()) != cudaSuccess) throw DeviceError("CUDA: cannot select " + device.name());
  if (const cudnnStatus_t s = cudnnCreate(&impl->handle); s != CUDNN_STATUS_SUCCESS)
    throw DeviceError(std::string("cuDNN does not start: ") + cudnnGetErrorString(s));
  return std::make_shared<Target>(std::move(impl));
}

std::shared_ptr<const Target> Target::described(const std::string& json) {
  auto properties = std::make_shared<fe::DeviceProperties>();
  if (auto e = properties->deserialize({json.begin(), json.end()}); e.is_bad()) {
    throw DeviceError("cuDNN does not take the description of a device: " + e.get_message());
  }
  auto impl = std::make_unique<Impl>();
  impl->properties = std::move(properties);
  return std::make_shared<Target>(std::move(impl));
}

// --- ConvGraph -------------------------------------------------------------------------------------------------------

namespace {

constexpr const char* kDirections[] = {"forward", "dgrad", "wgrad"};

enum Uid : int64_t { kX = 1, kW, kY, kBias };

fe::DataType_t type_of(DType t) {
  switch (t) {
    case DType::f32:
      return fe::DataType_t::FLOAT;
    case DType::bf16:
      return fe::DataType_t::BFLOAT16;
    case DType::f16:
      return fe::DataType_t::HALF;
    default:
      throw KernelError("cuDNN convolution: takes fp32, bf16 or fp16, not " + std::string(name_of(t)));
  }
}

using Dims = std::array<int64_t, 4>;  // in cuDNN's order N, C, H, W (K, C, R, S); in memory channels come last

template <class Attributes>
Attributes& describe(Attributes& t, Uid uid, const Dims& d, DType type) {
  t.set_uid(uid)
      .set_dim({d.begin(), d.end()})
      .set_stride({d[1] * d[2] * d[3], 1, d[1] * d[3], d[1]})
      .set_data_type(type_of(type));
  return t;
}

std::vector<int64_t> pair(const std::array<int, 2>& p) { return {p[0], p[1]}; }

template <class Attributes>
Attributes geometry(const ConvShape& s) {
  return Attributes()
      .set_pre_padding(pair(s.pad_before))
      .set_post_padding(pair(s.pad_after))
      .set_stride(pair(s.stride))
      .set_dilation(pair(s.dilation));
}

// Puts the operation and, for a forward with an epilogue, bias and ReLU into the graph.
void assemble(fe::graph::Graph& g, const ConvRequest& request, Direction direction, DType result) {
  const ConvShape& s = request.shape;
  const Dims x{s.N, s.C, s.H, s.W}, w{s.K, s.C, s.R, s.S}, y{s.N, s.K, s.P(), s.Q()};
  const auto input = [&](const char* name, Uid uid, const Dims& d, DType type) {
    fe::graph::Tensor_attributes t;
    t.set_name(name);
    return g.tensor(describe(t, uid, d, type));
  };
  const auto output = [&](const Tensor& t, Uid uid, const Dims& d) {
    t->set_output(true);
    describe(*t, uid, d, result);
  };
  switch (direction) {
    case Direction::forward: {
      Tensor t = g.conv_fprop(input("x", kX, x, request.type), input("w", kW, w, request.type),
                              geometry<fe::graph::Conv_fprop_attributes>(s));
      if (request.bias) {
        t = g.pointwise(t, input("bias", kBias, {1, s.K, 1, 1}, request.type),
                        fe::graph::Pointwise_attributes().set_mode(fe::PointwiseMode_t::ADD));
      }
      if (request.relu) {
        t = g.pointwise(t, fe::graph::Pointwise_attributes().set_mode(fe::PointwiseMode_t::RELU_FWD));
      }
      return output(t, kY, y);
    }
    case Direction::dgrad:
      return output(g.conv_dgrad(input("dy", kY, y, request.type), input("w", kW, w, request.type),
                                 geometry<fe::graph::Conv_dgrad_attributes>(s)),
                    kX, x);
    case Direction::wgrad:
      return output(g.conv_wgrad(input("dy", kY, y, request.type), input("x", kX, x, request.type),
                                 geometry<fe::graph::Conv_wgrad_attributes>(s)),
                    kW, w);
  }
}

}  // namespace

std::string text_of(const ConvRequest& request, Direction direction, DType result) {
  std::string text = kDirections[static_cast<int>(direction)];
  if (direction == Direction::forward) text += std::string(request.bias ? "+bias" : "") + (request.relu ? "+relu" : "");
  if (result != request.type) text += " to " + std::string(name_of(result));
  return text + ", " + to_string(request.shape) + ", " + std::string(name_of(request.type)) +
         (request.tf32 ? " as tf32" : "") + ", workspace up to " + std::to_string(request.workspace_limit >> 20) +
         " MiB";
}

struct ConvGraph::Graph : fe::graph::Graph {};

ConvGraph::ConvGraph(std::shared_ptr<const Target> target, const ConvRequest& request, Direction direction,
                     DType result, const MostPlans& most, const std::string& wanted)
    : target_(std::move(target)), direction_(direction), graph_(std::make_unique<Graph>()) {
  const Target::Impl& device = target_->impl();
  Graph& g = *graph_;
  g.set_io_data_type(type_of(request.type))
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  if (device.properties) g.set_device_properties(device.properties);
  assemble(g, request, direction, result);

  const auto bad = [&](fe::error_t e) {
    if (e.is_bad()) refusal_ = e.get_message();
    return e.is_bad();
  };
  if (bad(g.validate()) ||
      bad(device.handle != nullptr ? g.build_operation_graph(device.handle) : g.build_operation_graph()) ||
      bad(g.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}))) {
    return;
  }
  g.deselect_workspace_greater_than(static_cast<int64_t>(request.workspace_limit));
  // Sums in fp32, of the products themselves: transforms round worse, and need workspaces of the size of maps.
  std::vector<fe::NumericalNote_t> forbidden{fe::NumericalNote_t::REDUCED_PRECISION_REDUCTION,
                                             fe::NumericalNote_t::WINOGRAD, fe::NumericalNote_t::FFT};
  if (request.deterministic) forbidden.push_back(fe::NumericalNote_t::NONDETERMINISTIC);
  if (request.type == DType::f32 && !request.tf32) {
    forbidden.insert(forbidden.end(), {fe::NumericalNote_t::TENSOR_CORE, fe::NumericalNote_t::DOWN_CONVERT_INPUTS});
  }
  g.deselect_numeric_notes(forbidden);
  const auto build = [&](int64_t i, bool compiled) {
    int64_t workspace = 0;
    std::string name;
    if (bad(g.get_plan_name_at_index(i, name))) return;
    if (bad(g.build_plan_at_index(i))) {
      // Compiled, and only not loaded for want of a driver: on the device that was described it will be.
      if (device.handle != nullptr || refusal_.find("cuLibraryLoadData") == std::string::npos) return;
    } else if (bad(g.get_workspace_size_plan_at_index(i, workspace)) ||
               workspace > static_cast<int64_t>(request.workspace_limit)) {
      return;
    }
    plans_.push_back({std::move(name), static_cast<size_t>(workspace), i, compiled});
  };
  const auto is_compiled = [&](int64_t i) {
    std::vector<fe::BehaviorNote_t> notes;
    return g.get_behavior_notes_for_plan_at_index(i, notes).is_good() &&
           std::find(notes.begin(), notes.end(), fe::BehaviorNote_t::RUNTIME_COMPILATION) != notes.end();
  };
  for (int64_t i = 0; i < g.get_execution_plan_count() && !wanted.empty() && plans_.empty(); ++i) {
    std::string name;
    if (g.get_plan_name_at_index(i, name).is_good() && name == wanted) build(i, is_compiled(i));
  }
  if (!plans_.empty()) return;
  for (const bool compiled : {false, true}) {
    const int enough = compiled ? most.compiled : most.precompiled;
    for (int64_t i = 0; i < g.get_execution_plan_count() && static_cast<int>(plans_.size()) < enough; ++i) {
      if (is_compiled(i) == compiled) build(i, compiled);
    }
    if (!plans_.empty()) return;
  }
}

ConvGraph::~ConvGraph() = default;

bool ConvGraph::execute(CUstream_st* stream, const Operands& o, void* workspace, const Plan& plan,
                        std::string* error) const {
  cudnnHandle_t handle = target_->impl().handle;
  std::unordered_map<int64_t, void*> pointers{{kX, o.x}, {kW, o.w}, {kY, o.y}};
  if (o.bias != nullptr) pointers[kBias] = o.bias;
  const std::lock_guard lock(target_->impl().mutex);
  if (cudaStream_t& current = target_->impl().stream; stream != current) {
    if (const cudnnStatus_t s = cudnnSetStream(handle, stream); s != CUDNN_STATUS_SUCCESS) {
      *error = cudnnGetErrorString(s);
      return false;
    }
    current = stream;
  }
  auto status = graph_->execute_plan_at_index(handle, pointers, workspace, plan.index);
  if (status.is_bad()) {
    *error = status.get_message();
    cudaGetLastError();  // a plan that does not run here shall not sink the next one
  }
  return status.is_good();
}

void ConvGraph::run(CUstream_st* stream, const Operands& operands, void* workspace) const {
  std::string error;
  if (!execute(stream, operands, workspace, plans_.front(), &error)) {
    throw DeviceError(std::string("cuDNN ") + kDirections[static_cast<int>(direction_)] + " (" + plans_.front().engine +
                      "): " + error);
  }
}

void ConvGraph::settle(CUstream_st* stream, const Operands& operands, void* workspace, bool by_time) {
  struct Events {
    cudaEvent_t start = nullptr, stop = nullptr;
    Events() {
      if (cudaEventCreate(&start) != cudaSuccess || cudaEventCreate(&stop) != cudaSuccess) {
        throw DeviceError("CUDA: no event to time cuDNN's plans with");
      }
    }
    ~Events() {
      cudaEventDestroy(start);
      cudaEventDestroy(stop);
    }
  } events;
  const auto time = [&](int plan, int runs) {
    std::string error;
    float ms = 0;
    bool ran = true;
    cudaEventRecord(events.start, stream);
    for (int i = 0; i < runs && ran; ++i) ran = execute(stream, operands, workspace, plans_[plan], &error);
    cudaEventRecord(events.stop, stream);
    if (cudaEventSynchronize(events.stop) != cudaSuccess || !ran ||
        cudaEventElapsedTime(&ms, events.start, events.stop) != cudaSuccess) {
      cudaGetLastError();
      return std::numeric_limits<float>::infinity();
    }
    return ms / static_cast<float>(runs);
  };
  const int plans = static_cast<int>(plans_.size());
  const int best = by_time ? fastest_that_runs(plans, time) : first_that_runs(plans, time);
  if (best < 0) throw DeviceError("cuDNN: none of its plans for this convolution runs on this device");
  plans_ = {plans_[best]};
}

}  // namespace regolith::cudnn
