// One direction of a convolution as a cuDNN graph, with the plans that cuDNN's heuristics offer for it. Building plans
// needs no device: a Target may be one described by JSON.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/conv/provider.h"

struct CUstream_st;

namespace regolith::cudnn {

class Target {
 public:
  // A CUDA device, or the one that it describes. Throws DeviceError where cuDNN does not start on it.
  static std::shared_ptr<const Target> of(const Device& device);
  // A device that need not be there: what a cuDNN device property descriptor serialises to. Throws DeviceError.
  static std::shared_ptr<const Target> described(const std::string& json);
  struct Impl;
  explicit Target(std::unique_ptr<Impl> impl);
  ~Target();
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

enum class Direction { forward, dgrad, wgrad };

// What a graph computes, in one line: "wgrad to bf16, 32x64x128x64 -> 32, 3x3 stride 1 pad 1,1,1,1, bf16".
std::string text_of(const ConvRequest& request, Direction direction, DType result);

struct Plan {
  std::string engine;  // cuDNN's name: engine and knobs
  size_t workspace;    // bytes
  int64_t index;       // in the graph
  bool compiled;       // at run time, by NVRTC: up to a second each, in each process anew
};

// How many plans a graph builds: of engines that are compiled at run time only where no other takes the graph.
struct MostPlans {
  int precompiled = 8, compiled = 3;
};

// Device memory: the maps and weights of the convolution (gradients in place of what they are gradients of).
struct Operands {
  void* x = nullptr;     // (N, H, W, C)
  void* w = nullptr;     // (K, R, S, C)
  void* y = nullptr;     // (N, P, Q, K)
  void* bias = nullptr;  // (K), of a forward graph whose request has a bias
};

class ConvGraph {
 public:
  // `result`: the element type of what is computed; only wgrad has a choice. Plans come in the order of the
  // heuristics, without those that need too much workspace, or that the request's precision and determinism forbid.
  // `wanted`: the name of the one that is built alone, where it is among them.
  ConvGraph(std::shared_ptr<const Target> target, const ConvRequest& request, Direction direction, DType result,
            const MostPlans& most = {}, const std::string& wanted = "");
  ~ConvGraph();

  const std::vector<Plan>& plans() const { return plans_; }  // the first is run
  const std::string& refusal() const { return refusal_; }    // why there is no plan
  // Runs plans on the device, and keeps the first that runs there; by_time: the fastest. Waits for the stream. Throws
  // DeviceError where none runs.
  void settle(CUstream_st* stream, const Operands& operands, void* workspace, bool by_time);
  void run(CUstream_st* stream, const Operands& operands, void* workspace) const;

 private:
  struct Graph;
  bool execute(CUstream_st* stream, const Operands& operands, void* workspace, const Plan& plan,
               std::string* error) const;
  std::shared_ptr<const Target> target_;
  Direction direction_;
  std::unique_ptr<Graph> graph_;
  std::vector<Plan> plans_;
  std::string refusal_;
};

}  // namespace regolith::cudnn
