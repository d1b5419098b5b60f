// A graph compiled for one batch size on one device: ops with their kernels chosen, every tensor at its place in an
// arena, ready to run forward and backward.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/graph/graph.h"
#include "engine/graph/plan.h"
#include "engine/run/parameters.h"

namespace regolith {

struct ProgramOptions {
  int N = 1;  // images of one pass: the batch, or a slice of it
  DType type = DType::f32;
  bool tf32 = false;
  bool batch_statistics = true;
  bool dropout = true;
  bool deterministic = true;
  uint64_t seed = 0;
  PlanOptions plan;
  ConvChoice conv;
};

// Told when an op begins and ends: how the profiler and the tests look into a run.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  virtual void begin(const Node& node, bool backward) = 0;
  virtual void end(const Node& node, bool backward) = 0;
};

class Program {
 public:
  // Infers the graph for N images, lets every op choose its kernels, and plans. The graph has been fused.
  Program(Graph graph, Device& device, const ProgramOptions& options);

  const Graph& graph() const { return graph_; }
  const Plan& plan() const { return plan_; }
  const ProgramOptions& options() const { return options_; }
  size_t packed_bytes() const { return packed_.bytes(); }

  // Places the tensors in `arena` (plan().bytes or more) and the parameters; `step` counts steps in device memory.
  void bind(void* arena, const Parameters& parameters, const int64_t* step);

  TensorView image() const { return value(graph_.input); }  // (N,H,W,C): write it before forward
  TensorView value(int node) const { return runs_[node].y; }
  TensorView gradient(int node) const { return runs_[node].dy; }

  // Rewrites the providers' copies of the weights if the weights have changed since.
  void pack(DeviceStream& stream);
  // first_sample: of this slice within the batch.
  void forward(DeviceStream& stream, int first_sample = 0);
  // After the gradients of the loss heads have been written. accumulate: add to the parameters' gradients.
  void backward(DeviceStream& stream, bool accumulate);

  void observe(RunObserver* observer) { observer_ = observer; }

 private:
  TensorView place(const Placement& placement, int node, void* arena) const;
  void* buffer(int index, void* arena) const;

  Graph graph_;
  Device& device_;
  ProgramOptions options_;
  Plan plan_;
  std::vector<OpRun> runs_;
  std::vector<std::vector<TensorView>> gradients_;  // per node and input: where the gradient is added up, behind a temp
  DeviceBuffer packed_;
  std::vector<size_t> packed_offset_;
  void* arena_ = nullptr;
  const Parameters* parameters_ = nullptr;
  int64_t packed_generation_ = 0;
  RunObserver* observer_ = nullptr;
};

}  // namespace regolith
